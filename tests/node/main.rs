//! The program as its users meet it: the real binary, real sockets, real folders, real signals.
//!
//! Each file tests one area of what a node promises, from the outside alone. All of it runs in parallel: every test
//! has its own node on a port and in a folder of its own, and waits for conditions, never for time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test by panicking, like the test itself"
)]

#[path = "../support/mod.rs"]
mod support;

mod backlog;
mod clock;
mod config;
mod damage;
mod durability;
mod failing_disk;
#[cfg(feature = "fault-injection")]
mod faults;
mod history;
mod http;
mod ids;
mod limits;
mod patience;
mod protocol;
mod sessions;
mod status;
mod stopping;
mod torn_journal;
