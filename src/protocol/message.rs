//! A message as it is kept for ever.

use super::Timestamp;
use super::frames::{ChatMessage, ServerFrame};
use super::internal::Posted;
use super::names::MessageId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A message as the history keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its place in the room's order.
    pub timestamp: Timestamp,
    /// Who said it.
    pub name: Arc<str>,
    /// What was said.
    pub text: Arc<str>,
    /// Its identity.
    pub id: MessageId,
}

impl Message {
    /// The message as clients see it.
    #[must_use]
    pub fn as_chat(&self) -> ChatMessage<'_> {
        ChatMessage {
            name: (&*self.name).into(),
            message: (&*self.text).into(),
            timestamp: self.timestamp,
            id: self.id.client().map(Into::into),
        }
    }

    /// The message as a room relays it.
    #[must_use]
    pub fn post(&self) -> Posted {
        Posted {
            timestamp: self.timestamp,
            id: self.id.clone(),
            wire: ServerFrame::Message(self.as_chat()).encode(),
        }
    }
}
