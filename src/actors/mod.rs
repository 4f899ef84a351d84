//! The actors: thin shells that drive the pure rules, perform their effects and look after each other.
//!
//! ```text
//! root ─┬─ shard host 0 … n ─┬─ rooms       (started on first use, stopped when idle)
//!       │                    └─ limiters    (started on first use, stopped when worthless)
//!       └─ gateway 0 … k                    (one a core; the sessions of a room share one)
//! ```
//!
//! A frontend finds the host of a shard in the process group `shard/N/leader`, a room finds a gateway in
//! `gateway/NODE/K`, both in the scope [`SCOPE`]. Nobody holds an address that outlives its actor.

pub mod context;
pub mod gateway;
mod idle;
mod inheritance;
mod limiter;
pub mod neighbours;
mod remote;
mod room;
pub mod root;
pub mod shard_host;

#[cfg(feature = "fault-injection")]
pub(crate) mod fault;

pub use crate::protocol::names::SCOPE;
