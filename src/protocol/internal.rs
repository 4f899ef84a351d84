//! What gateways and rooms say to each other. Every message is plain data, so that it can cross to another node.

use super::Timestamp;
use super::frames::decode_message;
use super::message::Message;
use super::names::{GatewayId, MessageId, SessionKey, SessionNumber};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The instance of a room that speaks. A higher epoch is a later instance: what an earlier one says is not believed.
/// Leaders of a later term are later, whatever they count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// The term of the leader under whom the room was opened.
    pub term: u64,
    /// Counts the rooms opened by that leader's process.
    pub instance: u64,
}

/// Somebody in a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The session.
    pub session: SessionKey,
    /// What it calls itself.
    pub name: Arc<str>,
}

/// Which part of the history an attach asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backlog {
    /// Everything after this timestamp, and the newest [`BACKLOG_DEFAULT`](super::BACKLOG_DEFAULT) before; at most
    /// [`BACKLOG_MAX`](super::BACKLOG_MAX). For a session that saw nothing yet and connected at that time.
    Around(Timestamp),
    /// The newest [`BACKLOG_MAX`](super::BACKLOG_MAX) after this timestamp; fewer than there are is a gap.
    Since(Timestamp),
    /// Everything after this timestamp, a page of [`BACKLOG_MAX`](super::BACKLOG_MAX) an attach, oldest first.
    From(Timestamp),
    /// What is not known to be durable yet. For a gateway of which nobody has seen anything.
    Unsettled,
}

/// Something to be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Say {
    /// Who says it.
    pub from: Member,
    /// Its identity.
    pub id: MessageId,
    /// The text.
    pub text: Arc<str>,
    /// Whether it may have been handed to a room before, so that even an id of our own making needs to be looked up.
    pub again: bool,
}

/// From a gateway to a room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRoom {
    /// Register sessions and send what they have missed.
    Attach(Attach),
    /// Say something. Ignored unless the gateway is attached to this very instance.
    Say {
        /// The instance the gateway is attached to.
        epoch: Epoch,
        /// What to say.
        say: Say,
    },
    /// A session is gone.
    Leave(SessionKey),
    /// The gateway has no more sessions here.
    Detach(GatewayId),
}

impl ToRoom {
    /// About how many bytes it takes up on a link.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Attach(Attach { purpose: Purpose::Sync { live, unacked, .. }, .. }) => {
                let live: usize = live.iter().map(Member::size).sum();
                live + unacked.iter().map(Say::size).sum::<usize>() + ITEM_BYTES
            }
            Self::Say { say, .. } => say.size(),
            Self::Attach(_) | Self::Leave(_) | Self::Detach(_) => 2 * ITEM_BYTES,
        }
    }
}

impl Say {
    fn size(&self) -> usize {
        self.from.size() + self.text.len() + 2 * ITEM_BYTES
    }
}

/// The one operation by which a gateway comes to hear a room: first, again, or for one more session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Who attaches.
    pub gateway: GatewayId,
    /// Numbers the gateway's attempts; the answer repeats it.
    pub attempt: u64,
    /// Why, which also decides what the answer holds.
    pub purpose: Purpose,
    /// What the sessions have missed.
    pub backlog: Backlog,
}

/// Why a gateway attaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To hear the room at all, or again after it was lost. `live` is everyone of the gateway who is in the room
    /// and replaces whoever the room thought was; `unacked` is what they said and nobody acknowledged, in order.
    Sync {
        /// All live sessions of the gateway in this room.
        live: Vec<Member>,
        /// Said, not acknowledged, oldest first.
        unacked: Vec<Say>,
        /// The newest message that any of them was shown: nothing may be stamped at or below it any more.
        seen: Timestamp,
    },
    /// For one more session, on top of a sync with this instance of the room.
    Enter {
        /// The instance the gateway is attached to.
        epoch: Epoch,
        /// The new session.
        member: Member,
    },
}

/// A message as a room relays it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    /// Its place in the room's order.
    pub timestamp: Timestamp,
    /// Its identity.
    pub id: MessageId,
    /// The encoded frame, the same bytes for everyone.
    pub wire: Bytes,
}

impl Posted {
    /// The message as the history keeps it; `None` when the frame holds none.
    #[must_use]
    pub fn to_message(&self) -> Option<Message> {
        let said = decode_message(&self.wire)?;
        let (name, text) = (said.name.into(), said.message.into());
        Some(Message { timestamp: self.timestamp, name, text, id: self.id.clone() })
    }
}

/// Something that everyone in a room gets to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A session joined. `place` orders the roster and is unique within the room's epoch.
    Joined {
        /// The roster's order.
        place: u64,
        /// Who.
        member: Member,
    },
    /// A session left.
    Quit {
        /// The place it had.
        place: u64,
    },
    /// A message was said.
    Message(Posted),
}

/// The answer to an [`Attach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The instance that answers.
    pub epoch: Epoch,
    /// The attach that is answered.
    pub attempt: u64,
    /// What is answered.
    pub scope: Scope,
    /// The backlog, oldest first.
    pub messages: Vec<Posted>,
}

/// Which kind of attach is answered, and what only that kind needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// There is more to come: nobody was registered yet, attach again from the last of these messages.
    Page,
    /// The gateway now hears the room: the next batch has number 1, and this is who is there.
    Synced {
        /// Everyone in the room, by place.
        roster: Vec<(u64, Member)>,
        /// The room's newest message.
        last: Timestamp,
        /// Everything up to here is durable.
        durable: Timestamp,
    },
    /// The session may go live after this.
    Entered {
        /// The session.
        number: SessionNumber,
        /// Whether the backlog is shorter than what was missed.
        gap: bool,
    },
}

/// A message of a session was made durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Whose.
    pub number: SessionNumber,
    /// Which.
    pub id: MessageId,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// More is waiting for the disk than the room may hold.
    Overloaded,
    /// The store has failed; the node is about to stop.
    StorageFailed,
    /// The room failed every time it was given this message.
    Undeliverable,
    /// No node leads the room's shard, and none has for a while.
    Unavailable,
}

impl Refusal {
    /// The sentence the sender reads.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Overloaded => "The room is overloaded, please try again in a moment.",
            Self::StorageFailed => {
                "The message could not be stored. Please send it again when you are reconnected."
            }
            Self::Undeliverable => "The message could not be delivered.",
            Self::Unavailable => "The room cannot be reached at the moment, please try again.",
        }
    }

    /// How long to wait before another try, in ms, where waiting helps.
    #[must_use]
    pub fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::Overloaded => Some(1000),
            Self::StorageFailed => Some(5000),
            Self::Unavailable => Some(2000),
            Self::Undeliverable => None,
        }
    }
}

impl ToGateway {
    /// About how many bytes it takes up on a link.
    #[must_use]
    pub fn size(&self) -> usize {
        let posted = |messages: &[Posted]| messages.iter().map(Posted::size).sum::<usize>();
        match self {
            Self::Attached(Attached { scope, messages, .. }) => {
                let roster = match scope {
                    Scope::Synced { roster, .. } => {
                        roster.iter().map(|(_, member)| member.size()).sum::<usize>()
                    }
                    Scope::Page | Scope::Entered { .. } => 0,
                };
                roster + posted(messages)
            }
            Self::Batch { events, .. } => events
                .iter()
                .map(|event| match event {
                    Event::Joined { member, .. } => member.size(),
                    Event::Quit { .. } => ITEM_BYTES,
                    Event::Message(posted) => posted.size(),
                })
                .sum(),
            Self::Acks { acks, .. } => acks.len() * 2 * ITEM_BYTES,
            Self::Refused { .. } | Self::Lost | Self::Failed => ITEM_BYTES,
        }
    }
}

/// What anything takes up beside its texts, at the most.
const ITEM_BYTES: usize = 64;

impl Posted {
    fn size(&self) -> usize {
        self.wire.len() + 2 * ITEM_BYTES
    }
}

impl Member {
    /// About how many bytes it takes up on a link.
    #[must_use]
    pub fn size(&self) -> usize {
        self.name.len() + ITEM_BYTES
    }
}

/// From a room to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// The answer to an attach.
    Attached(Attached),
    /// What happened in the room in one round.
    Batch {
        /// The instance that speaks.
        epoch: Epoch,
        /// Counts the batches since the gateway was synced, from 1: a missing number is a gap.
        number: u64,
        /// Everything up to here is durable.
        durable: Timestamp,
        /// What happened, in order; shared by all gateways of a node.
        events: Arc<[Event]>,
    },
    /// Messages are durable.
    Acks {
        /// The instance that speaks.
        epoch: Epoch,
        /// Which.
        acks: Vec<Ack>,
        /// Everything up to here is durable.
        durable: Timestamp,
    },
    /// A message was not taken.
    Refused {
        /// The instance that speaks.
        epoch: Epoch,
        /// Whose.
        number: SessionNumber,
        /// Which.
        id: MessageId,
        /// Why.
        refusal: Refusal,
    },
    /// The instance the gateway was attached to, or wanted to attach to, is gone: attach again.
    Lost,
    /// As [`ToGateway::Lost`], and it was the room's own fault: something it was told may have been too much for it.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_survives_being_relayed(
            timestamp in any::<u64>(),
            name in ".{0,32}",
            text in ".{0,256}",
            id in prop_oneof![
                ".{1,64}".prop_map(|id| MessageId::Client(id.into())),
                any::<u128>().prop_map(MessageId::Made),
            ],
        ) {
            let message = Message { timestamp, name: name.into(), text: text.into(), id };
            prop_assert_eq!(message.post().to_message(), Some(message));
        }

        #[test]
        fn nonsense_is_no_message(wire in prop::collection::vec(any::<u8>(), 0..64)) {
            let posted = Posted { timestamp: 1, id: MessageId::Made(1), wire: wire.into() };
            let _ = posted.to_message();
        }
    }
}
