//! The frames that a node may send, read strictly: a field too many, or of another kind, is no frame.

use serde_json::Value;

/// A message as it arrived, with exactly the fields that the contract names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) timestamp: u64,
    pub(crate) id: Option<String>,
}

impl Said {
    /// Reads a message, or `None` when a field is missing, strange or of the wrong kind.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let id = match object.get("id") {
            Some(id) => Some(id.as_str()?.to_owned()),
            None => None,
        };
        if object.len() != 3 + usize::from(id.is_some()) {
            return None;
        }
        Some(Self {
            name: object.get("name")?.as_str()?.to_owned(),
            text: object.get("message")?.as_str()?.to_owned(),
            timestamp: object.get("timestamp")?.as_u64()?,
            id,
        })
    }
}

/// A refusal, with the fields that may go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) text: String,
    pub(crate) id: Option<String>,
    pub(crate) retry_after_ms: Option<u64>,
}

/// Everything a node may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Joined(String),
    Quit(String),
    Said(Said),
    Ready,
    Gap,
    Error(Refusal),
    Ack {
        id: String,
        timestamp: u64,
    },
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The connection ended without a close frame.
    Lost,
}

/// What a session gets between its name and `ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) gap: bool,
    pub(crate) roster: Vec<String>,
    pub(crate) backlog: Vec<Said>,
}

impl Welcome {
    /// The texts of the backlog, in order.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.backlog.iter().map(|said| said.text.as_str()).collect()
    }
}

/// Reads a text frame, or `None` when the contract knows no such frame.
pub(crate) fn parse(text: &str) -> Option<Frame> {
    let value: Value = serde_json::from_str(text).ok()?;
    let object = value.as_object()?;
    let text_of = |key: &str| object.get(key)?.as_str().map(str::to_owned);
    if let Some(error) = object.get("error") {
        let refusal = Refusal {
            text: error.as_str()?.to_owned(),
            id: text_of("id"),
            retry_after_ms: object.get("retry_after_ms").and_then(Value::as_u64),
        };
        let fields = 1 + usize::from(refusal.id.is_some()) + usize::from(refusal.retry_after_ms.is_some());
        return (object.len() == fields && !refusal.text.is_empty()).then_some(Frame::Error(refusal));
    }
    if object.contains_key("ack") {
        let (id, timestamp) = (text_of("ack")?, object.get("timestamp")?.as_u64()?);
        return (object.len() == 2).then_some(Frame::Ack { id, timestamp });
    }
    if object.contains_key("message") {
        return Said::from_json(&value).map(Frame::Said);
    }
    if object.len() != 1 {
        return None;
    }
    match object.keys().next()?.as_str() {
        "joined" => text_of("joined").map(Frame::Joined),
        "quit" => text_of("quit").map(Frame::Quit),
        "ready" => (value["ready"] == true).then_some(Frame::Ready),
        "gap" => (value["gap"] == true).then_some(Frame::Gap),
        _ => None,
    }
}
