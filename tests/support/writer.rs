//! A client that writes until its session ends, and the account of what became of its messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::client::Client;
use super::frames::{Frame, Said};
use super::node::Node;

/// What one writer sent and what it was told.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) name: String,
    /// Id and text of each message, in the order of sending. The last may not have reached the node.
    pub(crate) sent: Vec<(String, String)>,
    /// Acks in the order of arrival: id and timestamp.
    pub(crate) acked: Vec<(String, u64)>,
    /// The writer's own messages as they were relayed to it.
    pub(crate) relayed: Vec<Said>,
    /// Ids of messages that the node refused, in the order of arrival.
    pub(crate) refused: Vec<String>,
    pub(crate) closed_with: Option<u16>,
}

impl Client {
    /// Writes messages with ids, at most `window` of them unanswered, until the session ends; counts acks in `total`.
    pub(crate) async fn write_until_closed(
        mut self,
        prefix: String,
        window: usize,
        total: Arc<AtomicUsize>,
    ) -> Written {
        let mut written = Written {
            name: prefix.clone(),
            sent: Vec::new(),
            acked: Vec::new(),
            relayed: Vec::new(),
            refused: Vec::new(),
            closed_with: None,
        };
        let mut broken = false;
        loop {
            while !broken && written.sent.len() - written.acked.len() - written.refused.len() < window {
                let number = written.sent.len();
                let (id, text) = (format!("{prefix}-{number}"), long_text(&prefix, number));
                let frame = json!({ "message": text, "id": id }).to_string();
                broken = self.try_send(Message::text(frame)).await.is_err();
                written.sent.push((id, text));
            }
            match self.next().await {
                Frame::Said(said) if said.name == prefix => written.relayed.push(said),
                Frame::Said(_) | Frame::Joined(_) | Frame::Quit(_) => {}
                Frame::Ack { id, timestamp } => {
                    written.acked.push((id, timestamp));
                    total.fetch_add(1, Ordering::Relaxed);
                }
                Frame::Error(refusal) => match refusal.id {
                    Some(id) => written.refused.push(id),
                    None => self.fail("an error that names no message"),
                },
                Frame::Close(code) => {
                    written.closed_with = code;
                    broken = true;
                }
                Frame::Lost => return written,
                other => self.fail(&format!("{other:?}")),
            }
        }
    }
    /// Says long things until somebody is seen to quit, and returns who. Control characters take six bytes each in JSON.
    pub(crate) async fn flood_until_quit(&mut self, limit: Duration) -> String {
        let start = Instant::now();
        let text = "\u{1}".repeat(256);
        let (mut sent, mut acked) = (0, 0);
        loop {
            assert!(start.elapsed() < limit, "said {sent} long things in {limit:?}, and nobody quit");
            if sent - acked < 60 {
                self.say_with_id(&text, &format!("flood-{sent}")).await;
                sent += 1;
                continue;
            }
            match self.next().await {
                Frame::Ack { .. } => acked += 1,
                Frame::Said(_) => {}
                Frame::Quit(name) => {
                    self.read_acks(sent - acked).await;
                    return name;
                }
                other => self.fail(&format!("{other:?}")),
            }
        }
    }
}

/// A text that differs from message to message and does not compress well.
fn long_text(prefix: &str, number: usize) -> String {
    let mut mixed =
        number as u32 ^ prefix.bytes().fold(7, |sum: u32, byte| sum.rotate_left(5) ^ u32::from(byte));
    let mut text = format!("{prefix} {number} ");
    for _ in 0..number % 200 {
        mixed = mixed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Somewhere in the CJK block: three bytes a character.
        text.extend(char::from_u32(0x4e00 + (mixed >> 12) % 0x5000));
    }
    text
}

impl Written {
    /// Checks a history that was read after the node came back: all that was acked is there once and unchanged, what
    /// was relayed kept its timestamp, and of what this writer sent there is a prefix, in the order of sending.
    pub(crate) fn check_against(&self, history: &[Said]) {
        let mine = self.check_order(history);
        for (said, there) in self.relayed.iter().zip(mine) {
            assert_eq!(there, said, "what was relayed is what is kept");
        }
    }

    /// Checks a history like [`Written::check_against`], but for what was relayed and not acked.
    pub(crate) fn check_acked(&self, history: &[Said]) {
        self.check_order(history);
    }

    fn check_order<'a>(&self, history: &'a [Said]) -> Vec<&'a Said> {
        for pair in history.windows(2) {
            assert!(pair[0].timestamp < pair[1].timestamp, "{pair:?}");
        }
        let mine: Vec<&Said> = history.iter().filter(|said| said.name == self.name).collect();
        let ids: Vec<&str> = mine.iter().map(|said| said.id.as_deref().unwrap()).collect();
        let sent: Vec<&str> = self.sent.iter().map(|(id, _)| id.as_str()).collect();
        assert!(sent.starts_with(&ids), "{}: sent {sent:?}, but the history has {ids:?}", self.name);
        for (index, said) in mine.iter().enumerate() {
            assert_eq!(said.text, self.sent[index].1, "{} is unchanged", ids[index]);
        }
        for (index, (id, timestamp)) in self.acked.iter().enumerate() {
            assert_eq!(*id, self.sent[index].0, "{}: acks come in the order of sending", self.name);
            let there = mine.get(index).unwrap_or_else(|| panic!("{id} was acked and is lost"));
            assert_eq!(there.timestamp, *timestamp, "{id} has the timestamp of its ack");
        }
        for (index, said) in self.relayed.iter().enumerate() {
            assert_eq!(
                said.id.as_deref(),
                Some(sent[index]),
                "{}: relayed in the order of sending",
                self.name
            );
        }
        mine
    }

    /// Sends again, with the same ids, everything that was not acked, and waits until it is.
    pub(crate) async fn say_the_rest(&self, node: &Node, room: &str) {
        let before = node.history(room).await;
        let mut client = Client::join(node, room, &self.name).await;
        let rest = &self.sent[self.acked.len()..];
        let lines: Vec<_> = rest.iter().map(|(id, text)| (text.clone(), id.clone())).collect();
        let (_, acks) = client.say_all(&lines, 60).await;
        for ((id, timestamp), (sent, _)) in acks.iter().zip(rest) {
            assert_eq!(id, sent);
            if let Some(there) = before.iter().find(|said| said.id.as_ref() == Some(id)) {
                assert_eq!(there.timestamp, *timestamp, "{id} was there already");
            }
        }
        client.leave().await;
    }

    /// Checks that all that was ever sent is there, once, in order and unchanged. What was relayed, but died with the
    /// node and was said again, has a new timestamp.
    pub(crate) fn check_complete(&self, history: &[Said]) {
        assert_eq!(
            self.check_order(history).len(),
            self.sent.len(),
            "{}: everything is there at the end",
            self.name
        );
    }
}
