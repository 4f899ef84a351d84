//! The links between nodes: who is there, who has fallen silent, and a way for bytes to get there in order.
//!
//! A library (`ractor_cluster`) carries casts between actors of two nodes over one TCP stream, authenticated by the
//! cookie, and keeps process groups alike on both. It neither dials again nor notices a peer that has fallen silent,
//! and it queues without bound. That is what is done here:
//!
//! - A *dialer* a peer (`dialer`) keeps a link up for ever, with one attempt at a time.
//! - The *keeper* (`keeper`) watches all sessions of the library, beats on every link each
//!   [`BEAT_EVERY`], and ends the session of a peer that was silent for [`SUSPECT_AFTER`]: then its actors leave the
//!   process groups here, and other layers go on without it.
//! - A *courier* (`courier`) is the one actor of a node that takes beats, hellos and frames, in the process group
//!   `node/NAME`. What it is told is described in `wire`.
//! - A peer counts as up once its [`Hello`] was heard and nothing in it is against working together.
//! - What is on its way to a peer is bounded by [`CREDIT_BYTES_MAX`] (`credit`).
//!
//! **Which side dials.** Both may, so that a node that comes back is linked as soon as it can dial, whatever the
//! others' patience has grown to, and a wrong address on one side harms nothing. The node whose name sorts first lets
//! the other go ahead by `dialer::HEAD_START`, so that they rarely meet; when they do, the library keeps the
//! connection that the node with the later name has opened.
//!
//! **Which process.** The name a node gives to the library is `NAME@RANDOM`, where the random part is new in every
//! process. So the library takes no process for an earlier one of that name, and a second node with our own name is
//! noticed here, where it can be told in plain words, instead of being mistaken for a connection to oneself.

mod courier;
mod credit;
mod dialer;
mod keeper;
mod links;
mod peer;
mod wire;

pub use credit::CREDIT_BYTES_MAX;
pub use links::{Handler, LinkError, Links, LinksConfig, SendError};
pub use peer::{PeerState, PeerView};
pub use wire::{FRAME_BYTES_MAX, Hello};

use std::time::Duration;

/// How often every linked peer is sent a beat.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// How long a peer may be silent before it is suspected.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(1500);
