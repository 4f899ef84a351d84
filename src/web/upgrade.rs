//! Turns a request into a WebSocket: our own filter instead of warp's `ws()`, which allocates 128 KiB a socket and
//! offers no way to change that.

use super::api::{self, Refusal};
use super::server::Peer;
use super::socket::{self, Admission};
use super::{Phase, Web, address};
use crate::chat::session::Session;
use crate::protocol::frames::CLIENT_FRAME_BYTES_MAX;
use crate::protocol::names::LimiterKey;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;
use warp::reply::Response;

/// Bytes a socket reads at once, allocated for each: chat messages are short, and most sockets are silent.
const READ_BUFFER_BYTES: usize = 1024;

/// What a request for a socket brings along.
pub struct Request<'a> {
    /// The room's name as it stands in the path.
    pub name: &'a str,
    /// The query string.
    pub query: &'a str,
    /// The headers.
    pub headers: HeaderMap,
    /// The connection's promise to become a socket.
    pub on_upgrade: Option<OnUpgrade>,
    /// Who is at the other end.
    pub peer: Option<Peer>,
}

/// Answers the request with 101 and starts the session.
///
/// # Errors
/// 404 for a room that cannot be, 400 when no upgrade was asked for, 403 for a foreign page, 503 when no more
/// sessions fit or the node is stopping.
pub fn upgrade(web: &Arc<Web>, request: Request<'_>) -> Result<Response, Refusal> {
    let Request { name, query, headers, on_upgrade, peer } = request;
    let room = api::room_name(web, name)?;
    let expected = || Refusal::new(StatusCode::BAD_REQUEST, "expected websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(expected)?;
    if !has_token(&headers, header::CONNECTION, "upgrade")
        || !has_token(&headers, header::UPGRADE, "websocket")
        || !has_token(&headers, header::SEC_WEBSOCKET_VERSION, "13")
    {
        return Err(expected());
    }
    let (on_upgrade, Peer(peer)) = on_upgrade.zip(peer).ok_or_else(expected)?;
    let since = api::number(query, "since")?;
    if !web.origins.allows(&headers) {
        let reason = "This page may not open sockets here; see http.allowed_origins";
        return Err(Refusal::new(StatusCode::FORBIDDEN, reason));
    }
    let unavailable = |reason| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    if *web.phase.borrow() != Phase::Running {
        return Err(unavailable("The node is stopping, please connect again"));
    }
    let slot = Arc::clone(&web.session_slots)
        .try_acquire_owned()
        .map_err(|_| unavailable("This node holds as many sessions as it can"))?;
    let alive = web.session_alive.upgrade().ok_or_else(|| unavailable("The node is stopping"))?;
    let accept_key = derive_accept_key(key.as_bytes());
    let admission = Admission {
        web: Arc::clone(web),
        room,
        since,
        limiter: LimiterKey::of(address::client_address(peer, &headers, &web.trusted_proxies)),
        session: Session::new(web.context.limits),
        slot,
        alive,
    };
    tokio::spawn(async move {
        match on_upgrade.await {
            Ok(upgraded) => {
                if let Some(stream) = into_websocket(upgraded).await {
                    // Only now, so that the task of an open socket holds nothing of its handshake.
                    tokio::spawn(socket::run(stream, admission));
                }
            }
            Err(error) => debug!(%error, "a connection ended before it became a socket"),
        }
    });
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::try_from(accept_key).map_err(|_| expected())?;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

async fn into_websocket(upgraded: Upgraded) -> Option<WebSocketStream<TcpStream>> {
    // Our own server makes every connection from a TcpStream: nothing else can come out.
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        // What this side sends through tungstenite is short and rare: pongs, pings, errors, the close.
        .write_buffer_size(0)
        .max_write_buffer_size(2 * CLIENT_FRAME_BYTES_MAX)
        .max_message_size(Some(CLIENT_FRAME_BYTES_MAX))
        .max_frame_size(Some(CLIENT_FRAME_BYTES_MAX));
    let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    Some(WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await)
}

/// Whether a header's comma-separated list holds `token`.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name);
    lines
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}
