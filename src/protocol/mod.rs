//! The words everyone uses: names, the browser's frames, and what the actors of the house say to each other.
//!
//! The lowest layer. It knows no actor, no socket and no store.

pub mod frames;
pub mod internal;
pub mod message;
pub mod names;
pub mod private_id;
pub mod view;
pub mod wire;

/// Milliseconds since the Unix epoch. Within a room they strictly increase for ever, so one names one message.
pub type Timestamp = u64;

/// Longest name of a session or a public room, in UTF-16 code units (what a browser's `length` counts).
pub const NAME_UNITS_MAX: usize = 32;

/// Longest text of a message, in UTF-16 code units.
pub const TEXT_UNITS_MAX: usize = 256;

/// Longest message id a client may choose, in UTF-16 code units.
pub const ID_UNITS_MAX: usize = 64;

/// Messages a new session is shown when it does not say where it left off.
pub const BACKLOG_DEFAULT: usize = 100;

/// Most messages one attach or one page of history carries.
pub const BACKLOG_MAX: usize = 1000;

/// Length of `text` as a browser counts it.
#[must_use]
pub fn utf16_units(text: &str) -> usize {
    text.encode_utf16().count()
}
