//! How a message is written: a version byte, then postcard.
//!
//! A later version gets another first byte and its own reader; this one stays, so that old rows remain readable.

use crate::protocol::Timestamp;
use crate::protocol::message::Message;
use crate::protocol::names::MessageId;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The first byte of every record written today.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct RecordV1<'a> {
    name: Cow<'a, str>,
    text: Cow<'a, str>,
    id: Cow<'a, MessageId>,
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer program.
    #[error("a message is stored in format {0}, which this version does not know")]
    Version(u8),
    /// Not what was written.
    #[error("a stored message is damaged")]
    Damaged,
}

/// A message without its timestamp, which is in the key.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    let record = RecordV1 {
        name: (&*message.name).into(),
        text: (&*message.text).into(),
        id: Cow::Borrowed(&message.id),
    };
    let buffer = Vec::with_capacity(message.name.len() + message.text.len() + 48);
    let mut bytes = buffer;
    bytes.push(VERSION);
    postcard::to_extend(&record, bytes)
        .unwrap_or_else(|_| unreachable!("a vector takes what is written to it"))
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// When the bytes are of another version or damaged.
pub fn decode(timestamp: Timestamp, bytes: &[u8]) -> Result<Message, RecordError> {
    match bytes {
        [VERSION, body @ ..] => {
            let record: RecordV1<'_> = postcard::from_bytes(body).map_err(|_| RecordError::Damaged)?;
            Ok(Message {
                timestamp,
                name: record.name.into(),
                text: record.text.into(),
                id: record.id.into_owned(),
            })
        }
        [version, ..] => Err(RecordError::Version(*version)),
        [] => Err(RecordError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(name in ".{0,32}", text in ".{0,256}", client in ".{1,64}", made in any::<u128>()) {
            for id in [MessageId::Client(client.into()), MessageId::Made(made)] {
                let message = Message { timestamp: 7, name: name.as_str().into(), text: text.as_str().into(), id };
                prop_assert_eq!(decode(7, &encode(&message)).unwrap(), message);
            }
        }

        #[test]
        fn damaged_bytes_are_an_error_or_a_message_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(1, &bytes);
        }
    }

    #[test]
    fn the_format_of_version_1_is_fixed() {
        let message =
            Message { timestamp: 1, name: "al".into(), text: "hi".into(), id: MessageId::Client("x".into()) };
        assert_eq!(encode(&message), b"\x01\x02al\x02hi\x00\x01x");
        assert!(matches!(decode(1, b"\x02"), Err(RecordError::Version(2))));
    }
}
