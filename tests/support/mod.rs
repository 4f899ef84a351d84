//! What every test needs: a node that is the real program, a client that speaks the chat protocol strictly, a bare
//! HTTP client, and random choices that can be repeated.

mod client;
pub(crate) mod disk;
mod folder;
mod frames;
mod http;
mod node;
mod plan;
mod seed;
mod wire;
mod writer;

use std::time::{Duration, Instant};

pub(crate) use client::{Client, Opening, room_path};
pub(crate) use disk::Disk;
pub(crate) use folder::{Folder, copy_all, end_of_data};
pub(crate) use frames::{Frame, Said};
pub(crate) use http::request;
pub(crate) use node::Node;
pub(crate) use plan::Plan;
pub(crate) use seed::Seed;
pub(crate) use wire::{Opcode, Wire};
pub(crate) use writer::Written;

/// How long a test waits for something that should happen at once. Generous, since tests share a small machine with
/// compilers; nothing passes because of it.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits until the condition holds, and fails the test when it does not within `limit`.
pub(crate) async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
