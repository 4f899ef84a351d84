//! What gateways and rooms say to each other. Every message is plain data, so that it can cross to another node.

use super::Timestamp;
use super::names::{GatewayId, MessageId, SessionKey, SessionNumber};
use bytes::Bytes;
use std::sync::Arc;

/// The instance of a room that speaks. A higher epoch is a later instance: what an earlier one says is not believed.
pub type Epoch = u64;

/// Somebody in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The session.
    pub session: SessionKey,
    /// What it calls itself.
    pub name: Arc<str>,
}

/// Which part of the history an attach asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backlog {
    /// Everything after this timestamp, and the newest [`BACKLOG_DEFAULT`](super::BACKLOG_DEFAULT) before; at most
    /// [`BACKLOG_MAX`](super::BACKLOG_MAX). For a session that saw nothing yet and connected at that time.
    Around(Timestamp),
    /// The newest [`BACKLOG_MAX`](super::BACKLOG_MAX) after this timestamp; fewer than there are is a gap.
    Since(Timestamp),
    /// Everything after this timestamp, a page of [`BACKLOG_MAX`](super::BACKLOG_MAX) an attach, oldest first.
    From(Timestamp),
}

/// Something to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The one operation by which a gateway comes to hear a room: first, again, or for one more session.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// To hear the room at all, or again after it was lost. `live` is everyone of the gateway who is in the room
    /// and replaces whoever the room thought was; `unacked` is what they said and nobody acknowledged, in order.
    Sync {
        /// All live sessions of the gateway in this room.
        live: Vec<Member>,
        /// Said, not acknowledged, oldest first.
        unacked: Vec<Say>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// Its place in the room's order.
    pub timestamp: Timestamp,
    /// The encoded frame, the same bytes for everyone.
    pub wire: Bytes,
}

/// Something that everyone in a room gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// There is more to come: nobody was registered yet, attach again from the last of these messages.
    Page,
    /// The gateway now hears the room: the next batch has number 1, and this is who is there.
    Synced {
        /// Everyone in the room, by place.
        roster: Vec<(u64, Member)>,
        /// The room's newest message.
        last: Timestamp,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Whose.
    pub number: SessionNumber,
    /// Which.
    pub id: MessageId,
    /// Its timestamp.
    pub timestamp: Timestamp,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// More is waiting for the disk than the room may hold.
    Overloaded,
    /// The store has failed; the node is about to stop.
    StorageFailed,
    /// The room failed every time it was given this message.
    Undeliverable,
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
        }
    }

    /// How long to wait before another try, in ms, where waiting helps.
    #[must_use]
    pub fn retry_after_ms(self) -> Option<u64> {
        match self {
            Self::Overloaded => Some(1000),
            Self::StorageFailed => Some(5000),
            Self::Undeliverable => None,
        }
    }
}

/// From a room to a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGateway {
    /// The answer to an attach.
    Attached(Attached),
    /// What happened in the room in one round.
    Batch {
        /// The instance that speaks.
        epoch: Epoch,
        /// Counts the batches since the gateway was synced, from 1: a missing number is a gap.
        number: u64,
        /// What happened, in order; shared by all gateways of a node.
        events: Arc<[Event]>,
    },
    /// Messages became durable.
    Acks(Vec<Ack>),
    /// A message was not taken.
    Refused {
        /// Whose.
        number: SessionNumber,
        /// Which.
        id: MessageId,
        /// Why.
        refusal: Refusal,
    },
    /// The instance the gateway was attached to, or wanted to attach to, is gone: attach again.
    Lost,
}
