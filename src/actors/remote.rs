//! How the messages of remotable actors cross to other nodes.

use crate::protocol::wire;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// A message that expects no answer.
pub(super) fn pack<T: Serialize>(message: &T) -> SerializedMessage {
    SerializedMessage::Cast { variant: String::new(), args: wire::encode(message), metadata: None }
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxedDowncastErr> {
    wire::decode(bytes).ok_or_else(|| {
        warn!(bytes = bytes.len(), "another node sent what this version does not understand; it was dropped");
        BoxedDowncastErr
    })
}
