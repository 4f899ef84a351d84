//! Parley: a chat server that a group of people runs on its own machines.
//!
//! # The way of a message
//!
//! 1. A browser's frame arrives at its session, a task that owns the socket ([`web::socket`]). The session's rules
//!    ([`chat::session`]) parse it, check its lengths and ask the session's own account whether it may speak now.
//! 2. The session casts it to the gateway that carries its room on this node ([`actors::gateway`]). The gateway keeps
//!    it as unacknowledged ([`chat::audience`]), tells the address's limiter ([`chat::limiter`]) in passing, and casts
//!    it to the host of the room's shard ([`actors::shard_host`]), which it finds in a process group.
//! 3. The host hands it to the room's actor (`actors::room`). The room's rules ([`chat::room`]) drop it if its id is
//!    known, stamp it, and encode it once ([`protocol::frames`]).
//! 4. When the actor's mailbox has been emptied the round ends: all its messages go to the writer as one append, and
//!    at once to every gateway as one batch ([`protocol::internal`]), which queues the same bytes for every session.
//!    Relaying waits for no disk.
//! 5. The writer ([`storage::writer`]) makes all appends that have arrived durable with one fsync, messages and the
//!    rows that find them by their ids ([`storage::keys`], [`storage::record`]). The room then acknowledges them; the
//!    gateway forgets what it kept; the session writes `{"ack":…}`.
//!
//! Whoever comes in, comes back, or lost its room to a failure *attaches*: one operation that says who is there, what
//! was seen last and what is unacknowledged, and is answered with the roster and everything since.
//!
//! # Layers
//!
//! Imports point down this list only: [`protocol`] and [`metrics`] ← [`chat`], [`storage`], [`cluster`] ← [`actors`] ←
//! [`web`] ← [`node`] ← `main`; [`config`] and [`cli`] stand beside them. A test holds it.

pub mod actors;
pub mod chat;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod storage;
pub mod web;
