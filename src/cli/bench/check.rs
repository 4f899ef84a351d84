//! The rules a run is held to. Pure: no sockets, no clock.
//!
//! - Every member of a room receives every message of it exactly once, whole, with the name of its sender.
//! - Timestamps strictly increase, and all members see the same sequence of (timestamp, message).
//! - A message is acknowledged once, with the timestamp it is relayed with.
//!
//! [`MemberCheck`] is what one session knows of its room, [`RoomOrder`] what the sessions of a room have in common:
//! the first to receive a message writes it down, the others compare, the last strikes it out.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::payload::Payload;

/// A session that lacks this many messages is not merely waiting for them.
const ABSENT_MAX: usize = 10_000;

/// A broken promise. Read after "session S of room R: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("message {seq} of m{sender} is missing")]
    Missing { sender: u32, seq: u32 },
    #[error("message {seq} of m{sender} came twice")]
    Doubled { sender: u32, seq: u32 },
    #[error("message {seq} of m{sender} came out of order, after later ones")]
    Reordered { sender: u32, seq: u32 },
    #[error("message {seq} of m{sender} came out of order: timestamp {timestamp} after {last}")]
    TimestampBack { sender: u32, seq: u32, timestamp: u64, last: u64 },
    #[error("message {seq} of m{sender} has timestamp {timestamp} here and {other} at another session")]
    TimestampDiffers { sender: u32, seq: u32, timestamp: u64, other: u64 },
    #[error(
        "timestamp {timestamp} is on message {seq} of m{sender} here and on message {other_seq} of m{other_sender} at another \
         session"
    )]
    TimestampShared { timestamp: u64, sender: u32, seq: u32, other_sender: u32, other_seq: u32 },
    #[error("the sequence of messages differs from another session's")]
    OrderDiffers,
    #[error("a message was altered, or is not of this run: {0:?}")]
    Altered(String),
    #[error("message {seq} of m{sender} in room {room} came here")]
    OtherRoom { sender: u32, seq: u32, room: u32 },
    #[error("message {seq} of m{sender} came under the name {name:?}")]
    OtherName { sender: u32, seq: u32, name: String },
    #[error("message {seq} of m{sender} was never sent")]
    NeverSent { sender: u32, seq: u32 },
    #[error("an acknowledgement of {0:?}, which this session did not send or was acknowledged already")]
    AckUnasked(String),
    #[error("message {seq} was acknowledged with timestamp {acked} and relayed with {relayed}")]
    AckTimestamp { seq: u32, acked: u64, relayed: u64 },
}

#[derive(Debug)]
struct Entry {
    timestamp: u64,
    sender: u32,
    seq: u32,
    /// How many members have yet to see it.
    left: u32,
}

#[derive(Debug, Default)]
struct OrderLog {
    /// The position in the room's sequence of the first entry.
    base: u64,
    /// From what the slowest member has yet to see to what the fastest has seen.
    entries: VecDeque<Entry>,
    /// A member left the common sequence: the run has failed, and the log, which nobody would strike out now, ends.
    ended: bool,
}

/// The sequence that all members of a room must see.
#[derive(Debug)]
pub(super) struct RoomOrder {
    members: u32,
    log: Mutex<OrderLog>,
}

enum Compared {
    Same,
    /// Another message stands here: with a lower timestamp the session lacks it, with a higher one the others lack ours.
    Other,
}

impl RoomOrder {
    pub(super) fn new(members: u32) -> Self {
        Self { members, log: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, OrderLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut log = self.lock();
        log.ended = true;
        log.entries = VecDeque::new();
    }

    /// Holds the message that a member saw at `position` against what the others saw there.
    fn compare(&self, position: u64, timestamp: u64, sender: u32, seq: u32) -> Result<Compared, Violation> {
        let mut log = self.lock();
        if log.ended {
            return Ok(Compared::Same);
        }
        // The first entry is the one the slowest member has yet to see, so `base <= position <= base + len`.
        let at = usize::try_from(position - log.base).unwrap_or(usize::MAX);
        let Some(entry) = log.entries.get_mut(at) else {
            if self.members > 1 {
                log.entries.push_back(Entry { timestamp, sender, seq, left: self.members - 1 });
            } else {
                log.base += 1;
            }
            return Ok(Compared::Same);
        };
        let same_message = (entry.sender, entry.seq) == (sender, seq);
        match (same_message, entry.timestamp == timestamp) {
            (true, true) => {
                entry.left -= 1;
                while log.entries.front().is_some_and(|first| first.left == 0) {
                    log.entries.pop_front();
                    log.base += 1;
                }
                Ok(Compared::Same)
            }
            (true, false) => {
                Err(Violation::TimestampDiffers { sender, seq, timestamp, other: entry.timestamp })
            }
            (false, true) => Err(Violation::TimestampShared {
                timestamp,
                sender,
                seq,
                other_sender: entry.sender,
                other_seq: entry.seq,
            }),
            (false, false) => Ok(Compared::Other),
        }
    }
}

/// What one member has seen of its room.
#[derive(Debug)]
pub(super) struct MemberCheck {
    room: u32,
    /// By sender: the message that should come next.
    next: Vec<u32>,
    last_timestamp: u64,
    position: u64,
    /// Messages that were passed over. One that still comes was reordered, the rest are missing.
    absent: BTreeSet<(u32, u32)>,
    /// Left the common sequence. What exactly is wrong shows later, at the latest in [`Self::finish`].
    diverged: bool,
}

impl MemberCheck {
    /// A member of the room with this index, in which `senders` sessions speak.
    pub(super) fn new(room: u32, senders: u32) -> Self {
        Self {
            room,
            next: vec![0; senders as usize],
            last_timestamp: 0,
            position: 0,
            absent: BTreeSet::new(),
            diverged: false,
        }
    }

    /// Takes the next message of the room as this member received it.
    ///
    /// # Errors
    /// The promise it breaks. A message that was passed over is no error yet: it may come late, which is another one.
    pub(super) fn receive(
        &mut self,
        order: &RoomOrder,
        run_id: u32,
        name: &str,
        text: &str,
        timestamp: u64,
    ) -> Result<Payload, Violation> {
        let payload = Payload::decode(run_id, text).ok_or_else(|| Violation::Altered(text.to_owned()))?;
        let Payload { room, sender, seq, .. } = payload;
        if room != self.room {
            return Err(Violation::OtherRoom { sender, seq, room });
        }
        if name.strip_prefix('m').and_then(|index| index.parse().ok()) != Some(sender) {
            return Err(Violation::OtherName { sender, seq, name: name.to_owned() });
        }
        self.count(sender, seq)?;
        if timestamp <= self.last_timestamp {
            return Err(Violation::TimestampBack { sender, seq, timestamp, last: self.last_timestamp });
        }
        self.last_timestamp = timestamp;
        if !self.diverged {
            match order.compare(self.position, timestamp, sender, seq)? {
                Compared::Same => self.position += 1,
                Compared::Other => {
                    self.diverged = true;
                    order.end();
                }
            }
        }
        Ok(payload)
    }

    fn count(&mut self, sender: u32, seq: u32) -> Result<(), Violation> {
        let Some(next) = self.next.get_mut(sender as usize) else {
            return Err(Violation::NeverSent { sender, seq });
        };
        if seq < *next {
            return Err(if self.absent.contains(&(sender, seq)) {
                Violation::Reordered { sender, seq }
            } else {
                Violation::Doubled { sender, seq }
            });
        }
        if (seq - *next) as usize + self.absent.len() > ABSENT_MAX {
            return Err(Violation::Missing { sender, seq: *next });
        }
        self.absent.extend((*next..seq).map(|passed| (sender, passed)));
        *next = seq + 1;
        Ok(())
    }

    /// Closes the account when nothing more is to come: `sent` holds how many messages each sender sent.
    ///
    /// # Errors
    /// The first promise that turns out broken.
    pub(super) fn finish(&self, sent: &[u32]) -> Result<(), Violation> {
        if let Some(&(sender, seq)) = self.absent.first() {
            return Err(Violation::Missing { sender, seq });
        }
        for ((&next, &sent), sender) in self.next.iter().zip(sent).zip(0..) {
            if next < sent {
                return Err(Violation::Missing { sender, seq: next });
            }
            if next > sent {
                return Err(Violation::NeverSent { sender, seq: sent });
            }
        }
        if self.diverged { Err(Violation::OrderDiffers) } else { Ok(()) }
    }
}

/// The two timestamps a writer learns of one of its messages; 0 while it has not.
#[derive(Debug, Clone, Copy, Default)]
struct Stamps {
    relayed: u64,
    acked: u64,
}

/// What a writer knows of its own messages' acknowledgements.
#[derive(Debug, Default)]
pub(super) struct AckCheck {
    stamps: Vec<Stamps>,
    /// Message and the moment it was sent, in microseconds, oldest first: at most as many as may be in flight.
    waiting: VecDeque<(u32, u64)>,
}

impl AckCheck {
    /// The id of a writer's message: at most 31 characters, unique to it.
    pub(super) fn id(run_id: u32, writer: u32, seq: u32) -> String {
        format!("{run_id:08x}-{writer}-{seq}")
    }

    fn seq_of(id: &str, run_id: u32, writer: u32) -> Option<u32> {
        let seq = id.rsplit('-').next()?.parse().ok()?;
        (Self::id(run_id, writer, seq) == id).then_some(seq)
    }

    /// How many messages wait for their acknowledgement.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The oldest message that waits.
    pub(super) fn oldest_waiting(&self) -> Option<u32> {
        self.waiting.front().map(|&(seq, _)| seq)
    }

    /// The writer sent its next message.
    pub(super) fn sent(&mut self, seq: u32, at_us: u64) {
        self.stamps.push(Stamps::default());
        self.waiting.push_back((seq, at_us));
    }

    /// A message of this writer was relayed to it.
    pub(super) fn relayed(&mut self, sender: u32, seq: u32, timestamp: u64) -> Result<(), Violation> {
        let stamps = self.stamps.get_mut(seq as usize).ok_or(Violation::NeverSent { sender, seq })?;
        stamps.relayed = timestamp;
        Self::agree(seq, *stamps)
    }

    /// An acknowledgement came; says when the message was sent, in microseconds.
    pub(super) fn acked(
        &mut self,
        run_id: u32,
        writer: u32,
        id: &str,
        timestamp: u64,
    ) -> Result<u64, Violation> {
        let unasked = || Violation::AckUnasked(id.to_owned());
        let seq = Self::seq_of(id, run_id, writer).ok_or_else(unasked)?;
        let at = self.waiting.iter().position(|&(waiting, _)| waiting == seq).ok_or_else(unasked)?;
        let (_, sent_us) = self.waiting.remove(at).ok_or_else(unasked)?;
        let stamps = self.stamps.get_mut(seq as usize).ok_or_else(unasked)?;
        stamps.acked = timestamp;
        Self::agree(seq, *stamps)?;
        Ok(sent_us)
    }

    fn agree(seq: u32, stamps: Stamps) -> Result<(), Violation> {
        let Stamps { relayed, acked } = stamps;
        if relayed != 0 && acked != 0 && relayed != acked {
            return Err(Violation::AckTimestamp { seq, acked, relayed });
        }
        Ok(())
    }

    /// The timestamp each message was acknowledged with, 0 where it was not.
    pub(super) fn into_acked(self) -> Vec<u64> {
        self.stamps.into_iter().map(|stamps| stamps.acked).collect()
    }
}

#[cfg(test)]
mod tests;
