//! Agreement: what is said in a shard's rooms is the same on all nodes that keep it, or it was not acknowledged.
//!
//! One Raft group a shard, and one more, `meta`, for what concerns the cluster as a whole. Raft itself is openraft's;
//! here are its log ([`log`]) and state machine ([`machine`]) in the node's one database, its way to other nodes
//! ([`transport`]), and what we ask of a group ([`group`]): to take messages, and whether this node leads it, up to the
//! moment ([`group::Group::holds_lease`]).
//!
//! Invariants:
//! - A voter is a data folder's incarnation, not a node's name: a folder that lost what it had promised comes back as
//!   somebody else, who first has to be taught ([`tending`]).
//! - What a leader proposes is refused once it leads no more, even if it leads again: `propose` names the term.
//! - State follows the log in the journal of the one database, and entries leave the log only after their effects
//!   entered the state: whatever a crash leaves is a state that the log behind it completes.

pub mod group;
pub mod log;
pub mod machine;
pub mod node;
pub mod placement;
pub mod tending;
pub mod transport;
pub mod types;

#[cfg(test)]
mod node_tests;
