//! Reads the history back after a run: everything acknowledged must be in it, once, with the timestamp it was
//! acknowledged with.

use std::time::Duration;

use hyper::StatusCode;

use super::check::AckCheck;
use super::payload::Payload;
use super::wire::{HistoryPage, Said};
use crate::cli::http;
use crate::cli::target::Resolved;

const PAGE_MESSAGES: u32 = 1000;
/// A thousand messages at their longest, with every unit escaped, are below 4 MiB.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// One room's history held against its writers' acknowledgements. Pure.
#[derive(Debug)]
pub(super) struct HistoryCheck<'a> {
    run_id: u32,
    room: u32,
    /// The number in the run of the room's first writer: part of the messages' ids.
    first_session: u32,
    /// By writer: the timestamps of its acknowledged messages.
    acked: &'a [Vec<u64>],
    seen: Vec<Vec<bool>>,
    last_timestamp: u64,
}

impl<'a> HistoryCheck<'a> {
    pub(super) fn new(run_id: u32, room: u32, first_session: u32, acked: &'a [Vec<u64>]) -> Self {
        let seen = acked.iter().map(|messages| vec![false; messages.len()]).collect();
        Self { run_id, room, first_session, acked, seen, last_timestamp: 0 }
    }

    /// Takes the next message of the history.
    pub(super) fn take(&mut self, said: &Said<'_>) -> Result<(), String> {
        let text = said.message.as_ref();
        let payload =
            Payload::decode(self.run_id, text).filter(|payload| payload.room == self.room).ok_or_else(
                || format!("the history holds a message that was altered, or is not of this room: {text:?}"),
            )?;
        let Payload { sender, seq, .. } = payload;
        let what = |trouble: String| format!("message {seq} of m{sender} {trouble}");
        let acked = self.acked.get(sender as usize).and_then(|messages| messages.get(seq as usize));
        let Some(&acked) = acked else {
            return Err(what("is in the history, but was never sent".to_owned()));
        };
        if acked != said.timestamp {
            return Err(what(format!(
                "was acknowledged with timestamp {acked} and is in the history with {}",
                said.timestamp
            )));
        }
        if std::mem::replace(&mut self.seen[sender as usize][seq as usize], true) {
            return Err(what("is in the history twice".to_owned()));
        }
        if said.timestamp <= self.last_timestamp {
            return Err(what(format!(
                "has timestamp {} in the history, after one of {}",
                said.timestamp, self.last_timestamp
            )));
        }
        self.last_timestamp = said.timestamp;
        if said.name.as_ref().strip_prefix('m') != Some(sender.to_string().as_str()) {
            return Err(what(format!("is in the history under the name {:?}", said.name.as_ref())));
        }
        match &said.id {
            Some(id) if id.as_ref() != AckCheck::id(self.run_id, self.first_session + sender, seq) => {
                Err(what(format!("is in the history with id {:?}", id.as_ref())))
            }
            _ => Ok(()),
        }
    }

    /// Says how many acknowledged messages the history held.
    pub(super) fn finish(self) -> Result<u64, String> {
        for (sender, seen) in self.seen.iter().enumerate() {
            if let Some(seq) = seen.iter().position(|&seen| !seen) {
                return Err(format!(
                    "message {seq} of m{sender} was acknowledged, but is not in the history"
                ));
            }
        }
        Ok(self.seen.iter().map(|seen| seen.len() as u64).sum())
    }
}

/// Reads a room's whole history and holds it against the acknowledgements. `None` when the server offers no history.
///
/// # Errors
/// What is wrong with the history, or why it could not be read.
pub(super) async fn verify(
    target: &Resolved,
    room_name: &str,
    mut check: HistoryCheck<'_>,
    timeout: Duration,
) -> Result<Option<u64>, String> {
    loop {
        let after = check.last_timestamp;
        let path = format!("/api/room/{room_name}/history?after={after}&limit={PAGE_MESSAGES}");
        let (status, body) =
            tokio::time::timeout(timeout, http::get(target, &path, PAGE_BYTES_MAX)).await.unwrap_or_else(
                |_| Err(format!("the history was not answered within {} s", timeout.as_secs())),
            )?;
        if status == StatusCode::NOT_FOUND && after == 0 {
            return Ok(None);
        }
        if status != StatusCode::OK {
            return Err(format!("the history was answered with HTTP {status}"));
        }
        let page: HistoryPage<'_> = serde_json::from_slice(&body)
            .map_err(|error| format!("the history is not understood: {error}"))?;
        for said in &page.messages {
            check.take(said)?;
        }
        if !page.more {
            return check.finish().map(Some);
        }
        if page.messages.is_empty() {
            return Err("an empty page of the history says that there is more".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(sender: u32, seq: u32, timestamp: u64) -> String {
        let mut text = String::new();
        Payload { room: 3, sender, seq, sent_us: 1 }.encode(7, 100, &mut text);
        let id = AckCheck::id(7, 10 + sender, seq);
        format!(r#"{{"name":"m{sender}","message":"{text}","timestamp":{timestamp},"id":"{id}"}}"#)
    }

    /// Two writers, the first with two acknowledged messages, the second with one.
    fn check(history: &[String]) -> Result<u64, String> {
        let acked = [vec![100, 102], vec![101]];
        let mut check = HistoryCheck::new(7, 3, 10, &acked);
        for said in history {
            check.take(&serde_json::from_str(said).unwrap())?;
        }
        check.finish()
    }

    #[test]
    fn a_whole_history_is_right() {
        assert_eq!(check(&[said(0, 0, 100), said(1, 0, 101), said(0, 1, 102)]), Ok(3));
        let without_id = said(0, 1, 102).replace(",\"id\":\"00000007-10-1\"", "");
        assert!(!without_id.contains("id"));
        assert_eq!(check(&[said(0, 0, 100), said(1, 0, 101), without_id]), Ok(3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let whole = [said(0, 0, 100), said(1, 0, 101), said(0, 1, 102)];
        let with = |at: usize, other: String| {
            let mut history = whole.to_vec();
            history[at] = other;
            check(&history).unwrap_err()
        };
        assert_eq!(
            check(&whole[..2]).unwrap_err(),
            "message 1 of m0 was acknowledged, but is not in the history"
        );
        assert_eq!(with(2, said(1, 0, 101)), "message 0 of m1 is in the history twice");
        assert!(with(2, said(0, 1, 103)).contains("acknowledged with timestamp 102"));
        assert!(with(2, said(0, 2, 103)).contains("never sent"));
        assert!(with(2, said(2, 0, 103)).contains("never sent"));
        assert!(with(1, said(1, 0, 101).replace("quick", "quack")).contains("altered"));
        assert!(with(1, said(1, 0, 101).replace("\"m1\"", "\"m0\"")).contains("under the name"));
        assert!(with(1, said(1, 0, 101).replace("00000007-11-0", "x")).contains("with id \"x\""));
        assert!(check(&[whole[1].clone(), whole[0].clone()]).unwrap_err().contains("after one of 101"));
    }
}
