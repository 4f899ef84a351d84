//! What the sessions of one room share, and what the coordinator reads of it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::check::RoomOrder;
use super::common::room_name;

/// One room of a run.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) members: u32,
    /// The first so many members speak.
    pub(super) senders: u32,
    /// The number in the run of the room's first member.
    first_session: u32,
    pub(super) order: RoomOrder,
    /// By sender: messages sent. Raised before the message is on its way.
    sent: Box<[AtomicU32]>,
    /// By sender: messages that ought to have been sent by now, when the pace is given.
    due: Box<[AtomicU32]>,
    /// Messages received, over all members.
    pub(super) received: AtomicU64,
    /// Acknowledgements received, over all members.
    pub(super) acked: AtomicU64,
}

/// The counters of a run at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) acked: u64,
    /// What must be received for all that was sent.
    pub(super) expected: u64,
}

impl Room {
    /// Lays out rooms of these (members, senders).
    pub(super) fn lay_out(run_id: u32, sizes: impl IntoIterator<Item = (u32, u32)>) -> Vec<Self> {
        let mut first_session = 0;
        (0..)
            .zip(sizes)
            .map(|(index, (members, senders))| {
                let counters = || (0..senders).map(|_| AtomicU32::new(0)).collect();
                let room = Self {
                    index,
                    name: room_name(run_id, index),
                    members,
                    senders,
                    first_session,
                    order: RoomOrder::new(members),
                    sent: counters(),
                    due: counters(),
                    received: AtomicU64::new(0),
                    acked: AtomicU64::new(0),
                };
                first_session += members;
                room
            })
            .collect()
    }

    /// The numbers in the run of this room's sessions.
    pub(super) fn sessions(&self) -> Range<u32> {
        self.first_session..self.first_session + self.members
    }

    pub(super) fn count_sent(&self, sender: u32) {
        self.sent[sender as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// By sender: how many messages it sent. Final once all senders have stopped.
    pub(super) fn sent(&self) -> Vec<u32> {
        self.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn raise_due(&self, sender: u32) {
        self.due[sender as usize].fetch_add(1, Ordering::Release);
    }

    pub(super) fn due(&self, sender: u32) -> u32 {
        self.due[sender as usize].load(Ordering::Acquire)
    }
}

/// Adds up the counters of all rooms.
pub(super) fn counts(rooms: &[Room]) -> Counts {
    rooms.iter().fold(Counts::default(), |mut counts, room| {
        let sent: u64 = room.sent.iter().map(|sent| u64::from(sent.load(Ordering::Relaxed))).sum();
        counts.sent += sent;
        counts.expected += sent * u64::from(room.members);
        counts.received += room.received.load(Ordering::Relaxed);
        counts.acked += room.acked.load(Ordering::Relaxed);
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_numbered_through_the_rooms() {
        let rooms = Room::lay_out(1, [(3, 1), (2, 2)]);
        assert_eq!((rooms[0].sessions(), rooms[1].sessions()), (0..3, 3..5));
        assert_ne!(rooms[0].name, rooms[1].name);
    }

    #[test]
    fn every_member_is_owed_every_message() {
        let rooms = Room::lay_out(1, [(3, 1), (2, 2)]);
        rooms[0].count_sent(0);
        rooms[1].count_sent(0);
        rooms[1].count_sent(1);
        rooms[1].received.fetch_add(4, Ordering::Relaxed);
        assert_eq!(rooms[1].sent(), vec![1, 1]);
        assert_eq!(counts(&rooms), Counts { sent: 3, received: 4, acked: 0, expected: 3 + 4 });
    }
}
