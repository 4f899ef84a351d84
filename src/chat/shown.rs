//! What the live sessions of an audience were shown, here or where they were before, as far as it may still vanish with
//! its room.
//!
//! Invariant: everything the sessions were shown is durable up to `floor`, or was forgotten because there was too much
//! of it; above it, `relayed` has it, in order.

use crate::protocol::Timestamp;
use crate::protocol::internal::Posted;
use std::collections::VecDeque;

/// Messages that are remembered. A room refuses more before that many wait for the disk.
const RELAYED_MAX: usize = 2 * super::room::PENDING_MAX;

/// What was shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    last: Timestamp,
    floor: Timestamp,
    relayed: VecDeque<Posted>,
}

impl Shown {
    /// The newest message that was shown, or that the room had when nobody had to be shown it.
    pub(super) fn last(&self) -> Timestamp {
        self.last
    }

    /// From where on it must be asked what the room has.
    pub(super) fn floor(&self) -> Timestamp {
        self.floor
    }

    /// What may still vanish, in order.
    pub(super) fn relayed(&self) -> Vec<Posted> {
        self.relayed.iter().cloned().collect()
    }

    /// Whether the sessions have seen this message.
    pub(super) fn contains(&self, posted: &Posted) -> bool {
        posted.timestamp <= self.floor || self.relayed.iter().any(|shown| is_same(shown, posted))
    }

    /// The sessions are shown this message.
    pub(super) fn note(&mut self, posted: &Posted) {
        self.pass_over(posted.timestamp);
        let place = self.relayed.partition_point(|shown| shown.timestamp <= posted.timestamp);
        self.relayed.insert(place, posted.clone());
        if self.relayed.len() > RELAYED_MAX
            && let Some(dropped) = self.relayed.pop_front()
        {
            self.floor = self.floor.max(dropped.timestamp);
        }
    }

    /// The room goes on above this timestamp.
    pub(super) fn pass_over(&mut self, last: Timestamp) {
        self.last = self.last.max(last);
    }

    /// Everything the room has up to `durable` is durable, and the sessions have seen it.
    pub(super) fn settle(&mut self, durable: Timestamp) {
        self.floor = self.floor.max(durable.min(self.last));
        while self.relayed.front().is_some_and(|oldest| oldest.timestamp <= self.floor) {
            self.relayed.pop_front();
        }
    }

    /// What the room does not have among `kept` has vanished.
    pub(super) fn keep_only(&mut self, kept: &[Posted]) {
        self.relayed.retain(|shown| kept.iter().any(|kept| is_same(kept, shown)));
    }
}

/// Whether both are the same message at the same place.
fn is_same(a: &Posted, b: &Posted) -> bool {
    a.timestamp == b.timestamp && a.id == b.id
}
