//! Parley: a chat server that a group of people runs on its own machines.
//!
//! # The way of a message
//!
//! 1. A browser's frame arrives at its session, a task that owns the socket ([`web::socket`]). The session's rules
//!    ([`chat::session`]) parse it, check its lengths and ask the session's own account whether it may speak now.
//! 2. The session casts it to the gateway that carries its room on this node ([`actors::gateway`]). The gateway keeps
//!    it as unacknowledged ([`chat::audience`]), tells the address's limiter ([`chat::limiter`]) in passing, and casts
//!    it to the host that leads the room's shard ([`actors::shard_host`]), on this node or another, which it finds in a
//!    process group.
//! 3. The host hands it to the room's actor (`actors::room`). The room's rules ([`chat::room`]) drop it if its id is
//!    known, stamp it, and encode it once ([`protocol::frames`]).
//! 4. When the actor's mailbox has been emptied the round ends: all its messages go to the shard's group as one append,
//!    and at once, if no other node can have been elected meanwhile, to every gateway as one batch
//!    ([`protocol::internal`]), which queues the same bytes for every session. Relaying waits for no disk.
//! 5. The group ([`consensus::group`]) makes one log entry of all appends that have arrived and has it kept by a
//!    majority of its replicas ([`consensus::transport`]). Each writes it with one fsync for all groups
//!    ([`storage::writer`]). Once agreed upon it enters the history ([`consensus::machine`]): messages and the rows that
//!    find them by their ids ([`storage::keys`], [`storage::record`]). The room then acknowledges them; the gateway
//!    forgets what it kept; the session writes `{"ack":…}`.
//!
//! Whoever comes in, comes back, or lost its room to a failure *attaches*: one operation that says who is there, what
//! was seen last and what is unacknowledged, and is answered with the roster and everything since. A node that was
//! elected is first *handed over* what the history may lack. `docs/architecture.md` tells what that survives.
//!
//! # Layers
//!
//! Imports point down this list only: [`protocol`] and [`metrics`] ← [`chat`], [`storage`], [`cluster`] ←
//! [`consensus`] ← [`actors`] ← [`web`] ← [`node`] ← `main`; [`config`] and [`cli`] stand beside them. A test holds it.

pub mod actors;
pub mod chat;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod consensus;
pub mod metrics;
pub mod node;
mod planted;
pub mod protocol;
pub mod storage;
pub mod web;
