//! What one socket may do: give a name, then say things.
//!
//! Invariants: nothing happens before the name; no text longer than 256 UTF-16 units and no name longer than 32
//! passes; a session alone never exceeds its address's rate, even while the limiter's answers are under way.

use super::limiter::{Limiter, Limits};
use crate::protocol::frames::{ClientFrame, ServerFrame};
use crate::protocol::{ID_UNITS_MAX, NAME_UNITS_MAX, TEXT_UNITS_MAX, utf16_units};
use bytes::Bytes;
use std::sync::Arc;

/// One socket's state.
#[derive(Debug)]
pub struct Session {
    named: bool,
    limits: Limits,
    /// The session's own account: it bounds the session while answers of the address's limiter are under way.
    own: Limiter,
    /// Until when nothing may be said, in ms of the session's clock.
    quiet_until_ms: u64,
}

/// What a frame amounts to.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// The session has a name and wants in.
    Join(Arc<str>),
    /// Something to say, and the limiter is to be told.
    Say {
        /// The client's id, if it gave one.
        id: Option<Arc<str>>,
        /// What.
        text: Arc<str>,
    },
    /// Refused; the encoded error frame. The session goes on.
    Refuse(Bytes),
    /// Refused because too much was said; the encoded error frame. The session goes on.
    RefuseForNow(Bytes),
    /// Refused for good: the encoded error frame, then a close with 1009 and this reason.
    CloseTooBig(Bytes, &'static str),
}

impl Session {
    /// A session that has said nothing yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { named: false, limits, own: Limiter::default(), quiet_until_ms: 0 }
    }

    /// Whether the name was given.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Takes a text frame that arrived at `now_ms` of a monotonic clock.
    pub fn text(&mut self, text: &str, now_ms: u64) -> Action {
        let frame = match ClientFrame::parse(text) {
            Ok(frame) => frame,
            Err(sentence) => return refuse(&sentence, None),
        };
        if self.named { self.say(&frame, now_ms) } else { self.join(&frame) }
    }

    fn join(&mut self, frame: &ClientFrame<'_>) -> Action {
        let name = match frame.name.as_deref() {
            None | Some("") => "anonymous",
            Some(name) => name,
        };
        if utf16_units(name) > NAME_UNITS_MAX {
            let sentence = "Name too long.";
            return Action::CloseTooBig(error_frame(sentence, None, None), sentence);
        }
        self.named = true;
        Action::Join(name.into())
    }

    fn say(&mut self, frame: &ClientFrame<'_>, now_ms: u64) -> Action {
        let id = frame.id.as_deref();
        if id.is_some_and(|id| id.is_empty() || utf16_units(id) > ID_UNITS_MAX) {
            return refuse("The id must have 1 to 64 characters.", None);
        }
        let Some(text) = frame.message.as_deref() else {
            return refuse("Message missing: expected {\"message\":\"…\"}.", id);
        };
        if utf16_units(text) > TEXT_UNITS_MAX {
            return refuse("Message too long.", id);
        }
        if self.limits.enabled() {
            if now_ms < self.quiet_until_ms {
                let wait_ms = self.quiet_until_ms - now_ms;
                let sentence = "Your IP is being rate-limited, please try again later.";
                return Action::RefuseForNow(error_frame(sentence, id, Some(wait_ms)));
            }
            let cooldown_ms = self.own.act(self.limits, 1, now_ms);
            self.cooldown(cooldown_ms, now_ms);
        }
        Action::Say { id: id.map(Arc::from), text: text.into() }
    }

    /// The address's limiter answered at `now_ms`: nothing may be said for `cooldown_ms`.
    pub fn cooldown(&mut self, cooldown_ms: u64, now_ms: u64) {
        self.quiet_until_ms = self.quiet_until_ms.max(now_ms + cooldown_ms);
    }
}

/// An encoded error frame.
#[must_use]
pub fn error_frame(error: &str, id: Option<&str>, retry_after_ms: Option<u64>) -> Bytes {
    ServerFrame::Error { error, id, retry_after_ms }.encode()
}

fn refuse(sentence: &str, id: Option<&str>) -> Action {
    Action::Refuse(error_frame(sentence, id, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFF: Limits = Limits { interval_ms: 0, grace_ms: 0 };
    const LIMITS: Limits = Limits { interval_ms: 5000, grace_ms: 20_000 };

    fn named(limits: Limits) -> Session {
        let mut session = Session::new(limits);
        assert_eq!(session.text(r#"{"name":"alice"}"#, 0), Action::Join("alice".into()));
        session
    }

    fn refusal(action: Action) -> serde_json::Value {
        let (Action::Refuse(wire) | Action::RefuseForNow(wire) | Action::CloseTooBig(wire, _)) = action
        else {
            panic!("expected a refusal, got {action:?}")
        };
        let start = wire.iter().position(|byte| *byte == b'{').unwrap();
        serde_json::from_slice(&wire[start..]).unwrap()
    }

    #[test]
    fn the_first_frame_is_the_name() {
        for (frame, name) in [
            (r#"{"name":"bob"}"#, "bob"),
            (r#"{"name":""}"#, "anonymous"),
            (r#"{"name":null}"#, "anonymous"),
            (r#"{"message":"hi"}"#, "anonymous"),
        ] {
            assert_eq!(Session::new(OFF).text(frame, 0), Action::Join(name.into()), "{frame}");
        }
    }

    #[test]
    fn lengths_are_counted_in_utf16_units() {
        let name = |text: &str| Session::new(OFF).text(&format!(r#"{{"name":"{text}"}}"#), 0);
        assert!(matches!(name(&"😀".repeat(16)), Action::Join(_)));
        assert_eq!(refusal(name(&"😀".repeat(17)))["error"], "Name too long.");
        let say = |text: &str| named(OFF).text(&format!(r#"{{"message":"{text}","id":"1"}}"#), 0);
        assert!(matches!(say(&"😀".repeat(128)), Action::Say { .. }));
        let refused = refusal(say(&"😀".repeat(129)));
        assert_eq!((&refused["error"], &refused["id"]), (&"Message too long.".into(), &"1".into()));
    }

    #[test]
    fn a_broken_frame_is_refused_and_the_session_goes_on() {
        let mut session = named(OFF);
        for frame in ["nonsense", "[]", r#"{"message":5}"#, r#"{"id":"x"}"#, r#"{"message":"x","id":""}"#] {
            assert!(refusal(session.text(frame, 0))["error"].is_string(), "{frame}");
        }
        assert_eq!(session.text(r#"{"message":"hi"}"#, 0), Action::Say { id: None, text: "hi".into() });
    }

    #[test]
    fn a_question_under_way_refuses_nothing_and_an_answer_does() {
        let mut session = named(LIMITS);
        assert!(matches!(session.text(r#"{"message":"1"}"#, 0), Action::Say { .. }));
        assert!(matches!(session.text(r#"{"message":"2"}"#, 0), Action::Say { .. }));
        session.cooldown(3_000, 0);
        let refused = refusal(session.text(r#"{"message":"3","id":"x"}"#, 1_000));
        assert_eq!((&refused["retry_after_ms"], &refused["id"]), (&2_000.into(), &"x".into()));
        assert!(matches!(session.text(r#"{"message":"3"}"#, 3_000), Action::Say { .. }));
    }

    proptest! {
        /// However a client behaves, and whether or not answers arrive, it says no more than its rate.
        #[test]
        fn a_session_alone_keeps_to_the_rate(waits in prop::collection::vec(0_u64..3_000, 1..300)) {
            let mut session = named(LIMITS);
            let mut said = Vec::new();
            let mut now = 0;
            for wait in waits {
                now += wait;
                if let Action::Say { .. } = session.text(r#"{"message":"x"}"#, now) {
                    said.push(now);
                }
            }
            for (first, start) in said.iter().enumerate() {
                for (count, end) in said[first..].iter().enumerate() {
                    let allowed = (end - start + LIMITS.grace_ms) / LIMITS.interval_ms + 1;
                    prop_assert!(count as u64 <= allowed);
                }
            }
        }

        /// No text of any kind makes a session panic, and nothing too long passes.
        #[test]
        fn any_text_is_answered(frames in prop::collection::vec(".{0,600}|\\{\"(name|message|id)\":\"\\PC{0,300}\"\\}", 0..20)) {
            let mut session = Session::new(OFF);
            for frame in frames {
                match session.text(&frame, 0) {
                    Action::Join(name) => prop_assert!(utf16_units(&name) <= NAME_UNITS_MAX),
                    Action::Say { text, .. } => prop_assert!(utf16_units(&text) <= TEXT_UNITS_MAX),
                    Action::Refuse(_) | Action::RefuseForNow(_) | Action::CloseTooBig(..) => {}
                }
            }
        }
    }
}
