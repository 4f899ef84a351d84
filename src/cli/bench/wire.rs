//! The frames of the chat protocol, read without copying and written without a serializer: the generator shares the
//! machine with the server it measures.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

/// A JSON string, borrowed from the frame when nothing in it is escaped.
#[derive(Debug)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

/// A message as it is relayed, and as it stands in the history.
#[derive(Debug, Deserialize)]
pub(super) struct Said<'a> {
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow)]
    pub(super) message: Text<'a>,
    /// Milliseconds.
    pub(super) timestamp: u64,
    #[serde(borrow)]
    pub(super) id: Option<Text<'a>>,
}

/// One page of `GET /api/room/NAME/history`.
#[derive(Debug, Deserialize)]
pub(super) struct HistoryPage<'a> {
    #[serde(borrow)]
    pub(super) messages: Vec<Said<'a>>,
    pub(super) more: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    joined: Option<Text<'a>>,
    #[serde(borrow)]
    quit: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    message: Option<Text<'a>>,
    timestamp: Option<u64>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    ack: Option<Text<'a>>,
    ready: Option<bool>,
    #[serde(borrow)]
    error: Option<Text<'a>>,
    retry_after_ms: Option<u64>,
}

/// A frame from the server.
#[derive(Debug)]
pub(super) enum Incoming<'a> {
    Said(Said<'a>),
    Ack { id: Text<'a>, timestamp: u64 },
    Joined,
    Quit(Text<'a>),
    Ready,
    Error { text: Text<'a>, retry_after_ms: Option<u64> },
}

impl<'a> Incoming<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// A sentence's end that says what is wrong with it.
    pub(super) fn parse(frame: &'a str) -> Result<Self, String> {
        let fields: Fields<'a> = serde_json::from_str(frame)
            .map_err(|error| format!("is not the protocol's JSON ({error}): {frame}"))?;
        Ok(match fields {
            Fields { error: Some(text), retry_after_ms, .. } => Self::Error { text, retry_after_ms },
            Fields { ack: Some(id), timestamp: Some(timestamp), .. } => Self::Ack { id, timestamp },
            Fields { name: Some(name), message: Some(message), timestamp: Some(timestamp), id, .. } => {
                Self::Said(Said { name, message, timestamp, id })
            }
            Fields { joined: Some(_), .. } => Self::Joined,
            Fields { quit: Some(name), .. } => Self::Quit(name),
            Fields { ready: Some(true), .. } => Self::Ready,
            _ => return Err(format!("is no frame of the protocol: {frame}")),
        })
    }
}

/// What a server's error frame means for a run.
pub(super) fn describe_error(text: &str, retry_after_ms: Option<u64>) -> String {
    let lower = text.to_lowercase();
    let hint = if lower.contains("rate") && lower.contains("limit") {
        "; start the server with limits.interval_ms = 0 to measure it"
    } else {
        ""
    };
    let wait = retry_after_ms.map(|ms| format!(", retry after {ms} ms")).unwrap_or_default();
    // A server may send a stack trace; the first line says it.
    format!("the server refused: {:?}{wait}{hint}", text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_frame() {
        let Ok(Incoming::Said(said)) =
            Incoming::parse(r#"{"name":"m1","message":"a\"b","timestamp":17,"id":"x"}"#)
        else {
            panic!("no message");
        };
        assert_eq!((said.name.as_ref(), said.message.as_ref(), said.timestamp), ("m1", "a\"b", 17));
        assert_eq!(said.id.unwrap().as_ref(), "x");
        assert!(matches!(
            Incoming::parse(r#"{"ack":"x","timestamp":5}"#),
            Ok(Incoming::Ack { id, timestamp: 5 }) if id.as_ref() == "x"
        ));
        assert!(matches!(Incoming::parse(r#"{"joined":"m1"}"#), Ok(Incoming::Joined)));
        assert!(matches!(Incoming::parse(r#"{"quit":"m1"}"#), Ok(Incoming::Quit(_))));
        assert!(matches!(Incoming::parse(r#"{"ready":true}"#), Ok(Incoming::Ready)));
        assert!(matches!(
            Incoming::parse(r#"{"error":"no","id":"x","retry_after_ms":9}"#),
            Ok(Incoming::Error { retry_after_ms: Some(9), .. })
        ));
        // Fields this generator does not know are none of its business.
        assert!(matches!(Incoming::parse(r#"{"ready":true,"new":[1]}"#), Ok(Incoming::Ready)));
    }

    #[test]
    fn refuses_what_is_no_frame() {
        for bad in
            ["", "[]", "{}", r#"{"ready":false}"#, r#"{"name":"a","message":"b"}"#, r#"{"timestamp":"5"}"#]
        {
            assert!(Incoming::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn borrows_what_is_not_escaped() {
        let page: HistoryPage<'_> =
            serde_json::from_str(r#"{"messages":[{"name":"a","message":"b","timestamp":1}],"more":true}"#)
                .unwrap();
        assert!(page.more && matches!(page.messages[0].message.0, Cow::Borrowed("b")));
    }

    #[test]
    fn a_refusal_for_speed_names_the_setting() {
        assert!(
            describe_error("Your IP is being rate-limited, please try again later.", None)
                .contains("limits.interval_ms")
        );
        assert!(!describe_error("Message too long.", None).contains("limits"));
        assert!(describe_error("busy", Some(40)).contains("retry after 40 ms"));
        assert!(!describe_error("boom\n at x.js", None).contains("x.js"));
    }
}
