//! What Raft is about here: the commands, the voters, and how they are written.

use crate::protocol::message::Message;
use crate::protocol::names::{RoomName, ShardId};
use openraft::impls::{BoxedErrorSource, InlineBatch, TokioRuntime, Vote, leader_id_std};
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A voter: the incarnation of a data folder.
pub type Incarnation = u64;

/// A consensus group: a shard's, or the one of the cluster as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId(pub u16);

impl GroupId {
    /// The group of the cluster as a whole.
    pub const META: Self = Self(u16::MAX);

    /// The group of a shard.
    #[must_use]
    pub fn of(shard: ShardId) -> Self {
        Self(shard.0)
    }

    /// The shard this is the group of, if it is one's.
    #[must_use]
    pub fn shard(self) -> Option<ShardId> {
        (self != Self::META).then_some(ShardId(self.0))
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shard() {
            Some(shard) => write!(f, "shard {}", shard.0),
            None => f.write_str("meta"),
        }
    }
}

/// What Raft knows of a voter beside its incarnation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name, under which it is reached.
    pub name: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Messages of one room, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The room.
    pub room: RoomName,
    /// What was said.
    pub messages: Vec<Message>,
}

/// What makes a cluster this one: agreed upon once, when its first members met.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charter {
    /// Random; nodes of another cluster are refused by it.
    pub cluster_id: u128,
    /// The key of private rooms' names.
    pub secret: [u8; 32],
    /// Who founded it, by name.
    pub founders: BTreeMap<String, Incarnation>,
    /// Who belongs to it today, by name; the incarnation is the one that is believed.
    pub members: BTreeMap<String, Incarnation>,
}

// By hand, because a derived one would print the secret.
impl fmt::Debug for Charter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charter").field("members", &self.members).finish_non_exhaustive()
    }
}

/// An entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Things said in a shard's rooms.
    Append(Vec<Append>),
    /// The cluster is founded; only the first of these counts.
    Found(Charter),
    /// A node came back without its past: this is its incarnation from now on.
    Replace {
        /// The node.
        name: String,
        /// Its incarnation.
        incarnation: Incarnation,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append(appends) => {
                let messages: usize = appends.iter().map(|append| append.messages.len()).sum();
                write!(f, "{messages} messages")
            }
            Self::Found(charter) => write!(f, "{charter:?}"),
            Self::Replace { name, incarnation } => write!(f, "{name} is {incarnation:x}"),
        }
    }
}

/// The types that openraft is instantiated with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = ();
    type NodeId = Incarnation;
    type Node = Member;
    type Term = u64;
    // One leader a term: the term alone then says who speaks.
    type LeaderId = leader_id_std::LeaderId<u64, Incarnation>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Command, Incarnation, Member>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Called with the outcome of a proposal; with `None` when there is none, because Raft has stopped.
pub struct Callback<T>(Option<Box<dyn FnOnce(Option<T>) + Send>>);

impl<T> Callback<T> {
    /// Calls `then`, exactly once.
    pub fn new(then: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Callback<T> {
    fn on_complete(mut self, result: T) {
        if let Some(then) = self.0.take() {
            then(Some(result));
        }
    }
}

impl<T> Drop for Callback<T> {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(None);
        }
    }
}

/// The first byte of everything of Raft's that is stored today.
const VERSION: u8 = 1;

/// Writes `value` as it is stored: a version byte, then postcard.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION])
        .unwrap_or_else(|_| unreachable!("a vector takes what is written to it"))
}

/// Reads what [`encode`] wrote.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> std::io::Result<T> {
    let damaged = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    match bytes {
        [VERSION, body @ ..] => postcard::from_bytes(body)
            .map_err(|error| damaged(format!("a consensus record is damaged: {error}"))),
        [version, ..] => Err(damaged(format!("a consensus record has the unknown format {version}"))),
        [] => Err(damaged("a consensus record is empty".to_owned())),
    }
}
