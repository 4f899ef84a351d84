//! The durable history: one fjall database a node.
//!
//! Invariants:
//! - What [`writer`] reports as durable was fsynced before (with `durability = sync`).
//! - A message and the row that finds it by its id are written together or not at all.
//! - After a failed write nothing more is written: the store is poisoned, and the node stops.
//! - What was durable and is not there any more, or not as it was written, is noticed: on opening or on reading.
//!
//! `folder` checks a folder before it is opened, and with `journal`, `batch`, `ledger` and `tables` that
//! nothing is missing;
//! [`keys`] says how rows are ordered, [`record`] how a message is written, [`rows`] which rows it needs, [`store`]
//! reads, [`writer`] writes.

mod batch;
#[cfg(test)]
mod damage_tests;
mod folder;
mod journal;
pub mod keys;
mod ledger;
pub mod record;
pub mod rows;
pub mod store;
mod tables;
pub mod writer;
