//! The answers that are not pages or sockets.

use super::{Phase, Web};
use crate::actors::shard_host::{HistoryError, HostMsg};
use crate::protocol::Timestamp;
use crate::protocol::message::Message;
use crate::protocol::names::{NameError, RoomName};
use crate::protocol::wire;
use crate::storage::store::{Found, Range};
use http::{HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use ractor::rpc::CallResult;
use serde::Serialize;
use std::time::{Duration, Instant};
use tracing::error;
use warp::reply::Response;

/// Messages in one answer, unless asked otherwise.
const HISTORY_LIMIT_DEFAULT: usize = crate::protocol::BACKLOG_DEFAULT;

/// Most messages in one answer.
const HISTORY_LIMIT_MAX: usize = crate::protocol::BACKLOG_MAX;

/// How long a page of history may take.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a page of history waits for its shard to have a leader: as long as it takes to hand the lead on, with plenty
/// to spare. An election may take longer; then the asker is told.
const LEADER_WAIT: Duration = Duration::from_secs(1);

/// How often it is asked meanwhile.
const LEADER_POLL: Duration = Duration::from_millis(50);

/// An answer that is not what was asked for. On `/api` its body is `{"error":"…"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// What is wrong.
    pub reason: String,
}

impl Refusal {
    /// A refusal with this status and reason.
    #[must_use]
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    /// The refusal as JSON.
    #[must_use]
    pub fn json(&self) -> Response {
        let body = serde_json::json!({ "error": self.reason });
        with_type(self.status, "application/json", body.to_string())
    }

    /// The refusal as text.
    #[must_use]
    pub fn text(&self) -> Response {
        with_type(self.status, "text/plain; charset=utf-8", format!("{}\n", self.reason))
    }
}

/// An answer of the given type.
#[must_use]
pub fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Reads a room's name from a path segment; a private one must have been issued here.
///
/// # Errors
/// 404 for a name that is too long or a private id that was not issued, 400 for one that is not text.
pub fn room_name(web: &Web, segment: &str) -> Result<RoomName, Refusal> {
    let name = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "The room's name is not UTF-8"))?;
    let name = RoomName::parse(&name).map_err(|error| match error {
        NameError::TooLong | NameError::Empty => Refusal::new(StatusCode::NOT_FOUND, error.to_string()),
    })?;
    if name.is_private() {
        let secret = web.context.secret().ok_or_else(not_founded)?;
        if !secret.verify(&name) {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "No such private room"));
        }
    }
    Ok(name)
}

fn not_founded() -> Refusal {
    Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "The cluster's nodes have not all met yet, please try again",
    )
}

/// The value of `key` in a query string, as a number.
///
/// # Errors
/// 400 when it is there and not a number.
pub fn number<T: std::str::FromStr>(query: &str, key: &str) -> Result<Option<T>, Refusal> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, text)) = pairs.into_iter().find(|(name, _)| *name == key) else { return Ok(None) };
    let number = text.parse().map(Some);
    number.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, format!("{key} must be a whole number")))
}

/// `POST /api/room`
#[must_use]
pub fn new_private_room(web: &Web) -> Response {
    let mut random = [0; 16];
    if let Err(error) = getrandom::fill(&mut random) {
        error!(%error, "no random bytes for a private room");
        return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The system gives no random bytes").json();
    }
    let Some(secret) = web.context.secret() else { return not_founded().json() };
    let name = secret.issue(random);
    for_any_page(with_type(StatusCode::OK, "text/plain; charset=utf-8", name.as_str().to_owned()))
}

/// Lets pages from elsewhere read an answer: a page that one node served goes on at another when that node dies.
///
/// Only for answers that hold nothing but what the asker may know anyway: they depend on no cookie and no password.
#[must_use]
pub fn for_any_page(mut response: Response) -> Response {
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// `GET /api/cluster`
#[must_use]
pub fn cluster(web: &Web) -> Response {
    json(&web.context.cluster_view())
}

fn json(body: &impl Serialize) -> Response {
    match serde_json::to_string(body) {
        Ok(json) => with_type(StatusCode::OK, "application/json", json),
        Err(error) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).json(),
    }
}

/// `GET /api/room/NAME/history`
///
/// With `after` a page forward from there, otherwise a page backward from `before` or from the end.
///
/// # Errors
/// 400 for a bad number, 404 for a bad name, 503 when the room's history cannot be reached now.
pub async fn history(web: &Web, segment: &str, query: &str) -> Result<Response, Refusal> {
    let room = room_name(web, segment)?;
    let range = history_range(query)?;
    let deadline = Instant::now() + LEADER_WAIT;
    loop {
        match page(web, &room, range).await {
            Some(Ok(found)) => return Ok(history_page(&found)),
            Some(Err(HistoryError::Unreadable)) => {
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "The history cannot be read"));
            }
            Some(Err(HistoryError::NotLeader)) | None if Instant::now() < deadline => {
                tokio::time::sleep(LEADER_POLL).await;
            }
            Some(Err(HistoryError::NotLeader)) | None => {
                let reason = "The room's history cannot be reached now, please try again";
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
            }
        }
    }
}

/// Asks the node that leads the room's shard; `None` when there is none, or when it does not answer.
async fn page(web: &Web, room: &RoomName, range: Range) -> Option<Result<Found, HistoryError>> {
    let leader = web.context.neighbours.leader_of(room.shard(web.context.shards))?;
    let question = |reply| HostMsg::History { room: room.clone(), range, reply };
    // A host that fails meanwhile, or whose node does, drops the question.
    match leader.host.call(question, Some(HISTORY_TIMEOUT)).await {
        Ok(CallResult::Success(answer)) => wire::decode(&answer),
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => None,
    }
}

fn history_range(query: &str) -> Result<Range, Refusal> {
    let before: Option<Timestamp> = number(query, "before")?;
    let after: Option<Timestamp> = number(query, "after")?;
    let limit = number(query, "limit")?.unwrap_or(HISTORY_LIMIT_DEFAULT);
    if !(1..=HISTORY_LIMIT_MAX).contains(&limit) {
        let reason = format!("limit must be 1 to {HISTORY_LIMIT_MAX}");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
    }
    Ok(Range {
        after: after.unwrap_or(0),
        before: before.unwrap_or(Timestamp::MAX),
        newest: after.is_none(),
        limit,
    })
}

fn history_page(found: &Found) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        messages: Vec<crate::protocol::frames::ChatMessage<'a>>,
        more: bool,
    }
    let body = Body { messages: found.messages.iter().map(Message::as_chat).collect(), more: found.more };
    json(&body)
}

/// `GET /readyz`
#[must_use]
pub fn ready(web: &Web) -> Response {
    let reason = match &*web.phase.borrow() {
        Phase::Running => web.context.not_ready(),
        Phase::Stopping => Some("the node is stopping".to_owned()),
        Phase::Failed(reason) => Some(reason.clone()),
    };
    match reason {
        None => with_type(StatusCode::OK, "text/plain; charset=utf-8", "ready\n".to_owned()),
        Some(reason) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason).text(),
    }
}

/// `GET /metrics`
#[must_use]
pub fn metrics(web: &Web) -> Response {
    match web.context.metrics.render() {
        Ok(text) => with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_query() {
        assert_eq!(number::<u64>("before=5&limit=2", "limit"), Ok(Some(2)));
        assert_eq!(number::<u64>("", "limit"), Ok(None));
        for bad in ["limit=", "limit=x", "limit=-1", "limit=99999999999999999999"] {
            assert_eq!(number::<u64>(bad, "limit").unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }

    #[test]
    fn a_page_goes_forward_only_from_after() {
        let range = history_range("after=5").unwrap();
        assert_eq!((range.after, range.newest, range.limit), (5, false, HISTORY_LIMIT_DEFAULT));
        assert!(history_range("before=9").unwrap().newest);
        assert!(history_range("limit=0").is_err());
        assert!(history_range("limit=1001").is_err());
    }
}
