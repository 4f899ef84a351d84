//! Several nodes as one chat: what is promised when they die, freeze, part and come back.
//!
//! Every test has real processes on a loopback address of its own, does to them one thing that happens to machines and
//! networks, and then asks the same: was everything that was acknowledged kept, once, in one order, and shown to all
//! who were there? Times are printed, and only held where a wait would be a failure in itself.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test by panicking, like the test itself"
)]

#[path = "../support/cluster.rs"]
#[expect(dead_code, reason = "some of it is for the mix of faults")]
mod cluster;
#[path = "../support/person.rs"]
mod person;
#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "some of it is for the mix of faults")]
mod proxy;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "some of it is for the tests of one node alone")]
mod support;

#[cfg(feature = "fault-injection")]
mod absent;
mod bursts;
mod clocks;
mod crowds;
mod deaths;
mod five;
mod frozen;
mod harness;
mod links;
mod returns;
mod stops;
mod strangers;
mod together;
