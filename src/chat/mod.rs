//! The rules of the chat, pure: commands and time go in, effects come out. No async, no clock, no I/O.
//!
//! [`session`] is what one socket may do, [`room`] is the one voice of a room, [`audience`] is a room's sessions as
//! one gateway sees them, [`limiter`] is how often an address may speak.

pub mod audience;
pub mod limiter;
pub mod room;
pub mod session;
mod shown;
mod unacked;

#[cfg(test)]
mod simulation;
