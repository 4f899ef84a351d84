//! The chat protocol's frames: JSON texts, and the WebSocket frames around them.
//!
//! A frame for many is encoded once, header included: what a server sends is not masked, so the very same bytes go
//! to every socket of a room ([RFC 6455 §5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2)).

use super::Timestamp;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Largest frame a client may send, in bytes; a larger one closes the socket with 1009.
pub const CLIENT_FRAME_BYTES_MAX: usize = 64 * 1024;

/// A message as a room relays it and as the history lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage<'a> {
    /// Who said it.
    pub name: Cow<'a, str>,
    /// What was said.
    pub message: Cow<'a, str>,
    /// When, and its place in the room's order.
    pub timestamp: Timestamp,
    /// The sender's id for it, where one was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<Cow<'a, str>>,
}

/// What a client's frame may hold. Fields that are not here are ignored.
#[derive(Debug, Deserialize)]
#[serde(expecting = "expected a JSON object")]
pub struct ClientFrame<'a> {
    /// In the first frame: what the session wants to be called.
    #[serde(borrow, default)]
    pub name: Option<Cow<'a, str>>,
    /// In later frames: the text to say.
    #[serde(borrow, default)]
    pub message: Option<Cow<'a, str>>,
    /// In later frames: the client's own id for the message.
    #[serde(borrow, default)]
    pub id: Option<Cow<'a, str>>,
}

impl<'a> ClientFrame<'a> {
    /// Reads a text frame.
    ///
    /// # Errors
    /// A sentence for the client: what is wrong and where.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        // serde would also read an array as the fields in order.
        if !text.trim_start().starts_with('{') {
            return Err("Expected a JSON object like {\"message\":\"hi\"}.".to_owned());
        }
        serde_json::from_str(text).map_err(|error| format!("Not a valid frame: {error}."))
    }
}

/// A frame from the server, before encoding.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ServerFrame<'a> {
    /// Somebody is here.
    Joined {
        /// Their name.
        joined: &'a str,
    },
    /// Somebody left.
    Quit {
        /// Their name.
        quit: &'a str,
    },
    /// Something was said.
    Message(ChatMessage<'a>),
    /// Roster and backlog are complete.
    Ready {
        /// Always true.
        ready: bool,
    },
    /// The backlog does not reach back to `since`.
    Gap {
        /// Always true.
        gap: bool,
    },
    /// The message with this id is durable.
    Ack {
        /// The client's id.
        ack: &'a str,
        /// The message's timestamp.
        timestamp: Timestamp,
    },
    /// Something was refused.
    Error {
        /// A sentence for a person.
        error: &'a str,
        /// The refused message's id.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// How long to wait before trying again, in ms.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

impl ServerFrame<'_> {
    /// The frame as bytes for the wire, WebSocket header included.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut wire = BytesMut::with_capacity(256);
        self.encode_into(&mut wire);
        wire.freeze()
    }

    /// Appends the frame to `wire`.
    pub fn encode_into(&self, wire: &mut BytesMut) {
        let start = wire.len();
        // The short header is written first and widened if the text turns out longer: most texts are short, and
        // nobody has to know the length of the JSON before it is made.
        wire.put_bytes(0, SHORT_HEADER_LEN);
        let written = serde_json::to_writer((&mut *wire).writer(), self);
        debug_assert!(written.is_ok(), "writing these frames to memory cannot fail");
        let text_len = wire.len() - start - SHORT_HEADER_LEN;
        wire[start] = FIN_TEXT;
        if text_len < 126 {
            wire[start + 1] = text_len as u8;
            return;
        }
        // 65,535 is far above what a name and a text can become: 320 units of at most 6 bytes each.
        debug_assert!(text_len <= usize::from(u16::MAX));
        wire[start + 1] = 126;
        wire.put_bytes(0, 2);
        let text_start = start + SHORT_HEADER_LEN;
        wire.copy_within(text_start..text_start + text_len, text_start + 2);
        wire[text_start..text_start + 2].copy_from_slice(&(text_len as u16).to_be_bytes());
    }
}

/// Reads a frame that holds a message, as [`ServerFrame::encode`] wrote it; `None` for anything else.
#[must_use]
pub fn decode_message(wire: &[u8]) -> Option<ChatMessage<'_>> {
    let [FIN_TEXT, len, body @ ..] = wire else { return None };
    let text = match (len, body) {
        (126, [_, _, text @ ..]) => text,
        (0..126, text) => text,
        _ => return None,
    };
    serde_json::from_slice(text).ok()
}

/// First byte of an unfragmented text frame.
const FIN_TEXT: u8 = 0x81;

/// Bytes of a header for texts below 126 bytes.
const SHORT_HEADER_LEN: usize = 2;

/// Several encoded frames as one piece.
#[must_use]
pub fn concat(frames: &[Bytes]) -> Bytes {
    match frames {
        [one] => one.clone(),
        many => {
            let mut joined = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            for frame in many {
                joined.extend_from_slice(frame);
            }
            joined.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> ServerFrame<'_> {
        ServerFrame::Message(ChatMessage {
            name: "alice".into(),
            message: text.into(),
            timestamp: 1_700_000_000_000,
            id: None,
        })
    }

    #[test]
    fn a_short_frame_has_a_two_byte_header() {
        let wire = message("hi").encode();
        let text = r#"{"name":"alice","message":"hi","timestamp":1700000000000}"#;
        assert_eq!(wire[..2], [0x81, text.len() as u8]);
        assert_eq!(&wire[2..], text.as_bytes());
    }

    #[test]
    fn a_long_frame_has_a_four_byte_header_and_keeps_what_is_before_it() {
        let mut wire = BytesMut::from(&b"before"[..]);
        let text = "x".repeat(256);
        message(&text).encode_into(&mut wire);
        let len = wire.len() - 6 - 4;
        assert_eq!(&wire[..6], b"before");
        assert_eq!(wire[6..10], [0x81, 126, (len >> 8) as u8, len as u8]);
        assert!(wire.ends_with(format!("\"message\":\"{text}\",\"timestamp\":1700000000000}}").as_bytes()));
    }

    #[test]
    fn the_longest_possible_message_fits_the_sixteen_bit_length() {
        let name = "\u{1}".repeat(32);
        let text = "\u{1}".repeat(256);
        let id = "\u{1}".repeat(64);
        let frame = ServerFrame::Message(ChatMessage {
            name: name.into(),
            message: text.into(),
            timestamp: u64::MAX,
            id: Some(id.into()),
        });
        assert!(frame.encode().len() < usize::from(u16::MAX));
    }

    #[test]
    fn what_is_not_an_object_is_refused_with_a_sentence() {
        for text in ["", "[]", "[\"alice\"]", "5", "null", "{", "{\"name\":5}", "{\"name\":\"\\ud800\"}"] {
            assert!(ClientFrame::parse(text).is_err(), "{text}");
        }
        assert!(ClientFrame::parse(" {\"name\":null,\"more\":[1]}").unwrap().name.is_none());
    }
}
