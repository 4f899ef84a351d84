//! What sessions said and neither an ack nor a refusal has settled, in the order it was said.

use crate::protocol::internal::Say;
use crate::protocol::names::{MessageId, SessionNumber};
use std::collections::VecDeque;

/// So many rooms may fail that had been given a message before its sender is told that it cannot be delivered.
const FAILURES_MAX: u32 = 5;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unacked(VecDeque<Message>);

#[derive(Debug)]
struct Message {
    say: Say,
    /// Whether it was ever handed to a room.
    delivered: bool,
    /// How many rooms have failed that had been given it.
    failures: u32,
    /// When it was said, in ms of the node's uptime.
    said_at: u64,
}

impl Message {
    /// As the next instance gets it.
    fn deliver(&mut self) -> Say {
        let say = Say { again: self.delivered, ..self.say.clone() };
        self.delivered = true;
        say
    }
}

impl Unacked {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// When the oldest was said.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.front().map(|oldest| oldest.said_at)
    }

    pub(super) fn push(&mut self, say: Say, said_at: u64) {
        self.0.push_back(Message { say, delivered: false, failures: 0, said_at });
    }

    /// The newest, to be delivered at once.
    pub(super) fn deliver_newest(&mut self) -> Option<Say> {
        self.0.back_mut().map(Message::deliver)
    }

    /// All that may be delivered, for a room that knows of none of it.
    pub(super) fn deliver(&mut self, may_be: impl Fn(&Say) -> bool) -> Vec<Say> {
        self.0.iter_mut().filter(|message| may_be(&message.say)).map(Message::deliver).collect()
    }

    /// What may be delivered and never was.
    pub(super) fn deliver_new(&mut self, may_be: impl Fn(&Say) -> bool) -> Vec<Say> {
        let new = self.0.iter_mut().filter(|message| !message.delivered && may_be(&message.say));
        new.map(Message::deliver).collect()
    }

    /// The room failed by itself: perhaps over one of these.
    pub(super) fn count_failure(&mut self) {
        self.0.iter_mut().filter(|message| message.delivered).for_each(|message| message.failures += 1);
    }

    /// Gives up what too many rooms have failed over.
    pub(super) fn take_undeliverable(&mut self) -> Vec<Say> {
        self.take(|message| message.failures >= FAILURES_MAX)
    }

    /// Gives up what was said `hold_ms` or longer ago.
    pub(super) fn take_held_longer(&mut self, hold_ms: u64, now_ms: u64) -> Vec<Say> {
        self.take(|message| message.said_at + hold_ms <= now_ms)
    }

    fn take(&mut self, is_taken: impl Fn(&Message) -> bool) -> Vec<Say> {
        let (taken, kept) = std::mem::take(&mut self.0).into_iter().partition(is_taken);
        self.0 = kept;
        let taken: VecDeque<Message> = taken;
        taken.into_iter().map(|message| message.say).collect()
    }

    /// Forgets one; false when it was settled before.
    pub(super) fn settle(&mut self, number: SessionNumber, id: &MessageId) -> bool {
        // Acks come in the order of the messages, so this is nearly always the first.
        let is_it = |message: &Message| message.say.from.session.number == number && message.say.id == *id;
        let found = self.0.iter().position(is_it);
        found.and_then(|place| self.0.remove(place)).is_some()
    }
}
