//! The text of a message of a run: it says who sent it, which one it is and when, and carries a checksum, so that
//! whoever receives it can tell whether it is whole and whether it is the one that comes next.
//!
//! `ROOM.SENDER.SEQ.SENT_US.FILLING.CHECKSUM`, all ASCII: one byte is one UTF-16 unit.

use std::fmt::Write;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The longest header, with every number at its largest, and the checksum.
pub(super) const SIZE_MIN: usize = 64;
/// The longest message the protocol allows.
pub(super) const SIZE_MAX: usize = 256;

const CHECKSUM_LEN: usize = 16;
const FILLING: &str = "the-quick-brown-fox-jumps-over-the-lazy-dog-";

/// What a message says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) room: u32,
    /// The index in its room of the session that sent it.
    pub(super) sender: u32,
    /// Counts the messages of this sender, from 0.
    pub(super) seq: u32,
    /// When it was sent, or ought to have been, in microseconds since the run began.
    pub(super) sent_us: u64,
}

impl Payload {
    /// Appends the text, `size` bytes of it, to `into`.
    pub(super) fn encode(&self, run_id: u32, size: usize, into: &mut String) {
        let start = into.len();
        // Writing to a string cannot fail.
        let _ = write!(into, "{}.{}.{}.{}.", self.room, self.sender, self.seq, self.sent_us);
        let filling = (size - CHECKSUM_LEN - 1).saturating_sub(into.len() - start);
        into.extend(FILLING.chars().cycle().take(filling));
        let checksum = xxh3_64_with_seed(&into.as_bytes()[start..], u64::from(run_id));
        let _ = write!(into, ".{checksum:016x}");
    }

    /// Reads a text back. `None` if it is not exactly what a session of this run sent.
    pub(super) fn decode(run_id: u32, text: &str) -> Option<Self> {
        let (body, checksum) = text.rsplit_once('.')?;
        if checksum.len() != CHECKSUM_LEN
            || u64::from_str_radix(checksum, 16).ok()?
                != xxh3_64_with_seed(body.as_bytes(), u64::from(run_id))
        {
            return None;
        }
        let mut fields = body.split('.');
        let payload = Self {
            room: fields.next()?.parse().ok()?,
            sender: fields.next()?.parse().ok()?,
            seq: fields.next()?.parse().ok()?,
            sent_us: fields.next()?.parse().ok()?,
        };
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: Payload =
        Payload { room: 999_999, sender: 999_999, seq: u32::MAX, sent_us: 99_999_999_999 };

    fn text(payload: Payload, size: usize) -> String {
        let mut text = String::new();
        payload.encode(7, size, &mut text);
        text
    }

    #[test]
    fn comes_back_at_every_size() {
        for size in SIZE_MIN..=SIZE_MAX {
            for payload in [LARGEST, Payload { room: 0, sender: 0, seq: 0, sent_us: 0 }] {
                let text = text(payload, size);
                assert_eq!(text.len(), size);
                assert_eq!(Payload::decode(7, &text), Some(payload));
            }
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let text = text(LARGEST, 100);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            assert_eq!(Payload::decode(7, std::str::from_utf8(&bytes).unwrap()), None, "byte {at}");
        }
        assert_eq!(Payload::decode(7, &text[..99]), None);
        assert_eq!(Payload::decode(7, &format!("{text}0")), None);
    }

    #[test]
    fn another_run_and_other_texts_are_not_ours() {
        assert_eq!(Payload::decode(8, &text(LARGEST, 100)), None);
        assert_eq!(Payload::decode(7, ""), None);
        assert_eq!(Payload::decode(7, "hello"), None);
    }
}
