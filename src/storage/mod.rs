//! The durable history: one fjall database a node.
//!
//! Invariants:
//! - What [`writer`] reports as durable was fsynced before (with `durability = sync`).
//! - A message and the row that finds it by its id are written together or not at all.
//! - After a failed write nothing more is written: the store is poisoned, and the node stops.
//!
//! [`journal`] checks a folder before it is opened, [`keys`] says how rows are ordered, [`record`] how a message is
//! written, [`rows`] which rows it needs, [`store`] reads, [`writer`] writes.

pub mod journal;
pub mod keys;
pub mod record;
pub mod rows;
pub mod store;
pub mod writer;
