//! What gateways and shard hosts say to each other across nodes, and how it is written.
//!
//! A version byte, then postcard. Nodes of one cluster run versions that know each other's; what does not decode is
//! dropped and logged, like a message that was lost on the way, from which everyone recovers.

use super::internal::{Member, Posted, ToGateway, ToRoom};
use super::names::{GatewayId, LimiterKey, RoomName, SessionNumber, ShardId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The first byte of everything written today.
const VERSION: u8 = 1;

/// About how many bytes of messages one part of a [`ToHost::HandedOver`] holds: far below what a link carries at once.
pub const HAND_OVER_PART_BYTES: usize = 256 * 1024;

/// From a gateway to the host of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// For one of its rooms.
    Room {
        /// The room.
        room: RoomName,
        /// What for.
        message: ToRoom,
    },
    /// A session said something from an address, or comes from it and is to know how long to be quiet.
    Count {
        /// The address.
        key: LimiterKey,
        /// The session's gateway.
        gateway: GatewayId,
        /// The session.
        session: SessionNumber,
        /// How often it said something.
        actions: u64,
    },
    /// The answer to a [`FromHost::HandOver`], in parts.
    HandedOver {
        /// Who answers.
        gateway: GatewayId,
        /// The term it was asked for.
        term: u64,
        /// What is known of each room.
        rooms: Vec<Share>,
        /// Whether this is the last part.
        complete: bool,
    },
}

impl ToHost {
    /// About how many bytes it takes up on a link.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Room { message, .. } => message.size(),
            Self::Count { .. } => 64,
            Self::HandedOver { rooms, .. } => rooms.iter().map(Share::size).sum(),
        }
    }
}

/// What a gateway knows of a room that lost its leader, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The room.
    pub room: RoomName,
    /// Who of this gateway is in it.
    pub members: Vec<Member>,
    /// What it said that is not known to be durable, in order.
    pub messages: Vec<Posted>,
    /// The latest term whose leader the gateway had believed.
    pub believed: u64,
}

impl Share {
    /// About how many bytes it takes up on a link.
    #[must_use]
    pub fn size(&self) -> usize {
        let members: usize = self.members.iter().map(Member::size).sum();
        let messages: usize = self.messages.iter().map(|posted| posted.wire.len() + 32).sum();
        self.room.as_str().len() + members + messages
    }
}

/// From the host of a shard to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHost {
    /// A room speaks.
    Room {
        /// The room.
        room: RoomName,
        /// What it says.
        message: ToGateway,
    },
    /// A limiter wants a session to be quiet.
    Cooldown {
        /// The session.
        session: SessionNumber,
        /// For how long, in ms.
        cooldown_ms: u64,
    },
    /// A node was elected to lead a shard: believe nobody of an earlier term, and say what is known.
    HandOver {
        /// The shard.
        shard: ShardId,
        /// The new leader's term.
        term: u64,
        /// The new leader.
        node: String,
    },
    /// The host that was asked does not lead the shard.
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// The node that was asked.
        node: String,
        /// The node that leads, as far as that one knows.
        leader: Option<String>,
    },
}

/// Writes a message for another node.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION])
        .unwrap_or_else(|_| unreachable!("a vector takes what is written to it"))
}

/// Reads what [`encode`] wrote; `None` for anything else.
#[must_use]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match bytes {
        [VERSION, body @ ..] => postcard::from_bytes(body).ok(),
        _ => None,
    }
}
