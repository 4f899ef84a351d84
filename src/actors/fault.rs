//! Faults on demand, for tests: only there with the feature `fault-injection`, which no release build has.
//!
//! `PARLEY_FAULT_ROOM_PANIC=before|after` makes a room panic the first time it is given a message with the text
//! `panic!`: before it does anything with it, or after it has relayed and appended it.
//! `PARLEY_FAULT_KEPT_ENTRIES=N` is how many entries stay in a log for those who were away.

use crate::chat::room::Effect;
use crate::protocol::internal::ToRoom;
use crate::protocol::names::MessageId;
use std::collections::HashSet;
use std::sync::Mutex;

const TRIGGER: &str = "panic!";

static TRIGGERED: Mutex<Option<HashSet<MessageId>>> = Mutex::new(None);

pub(crate) fn kept_entries() -> Option<u64> {
    std::env::var("PARLEY_FAULT_KEPT_ENTRIES").ok()?.parse().ok()
}

pub(super) fn maybe_panic_before(command: &ToRoom) {
    if let ToRoom::Say { say, .. } = command {
        panic_if(wanted("before") && &*say.text == TRIGGER && is_first(&say.id));
    }
}

pub(super) fn is_to_panic_after(effects: &[Effect]) -> bool {
    wanted("after")
        && effects.iter().any(|effect| match effect {
            Effect::Append(messages) => {
                messages.iter().any(|message| &*message.text == TRIGGER && is_first(&message.id))
            }
            Effect::Tell(..) | Effect::Read(..) => false,
        })
}

#[expect(clippy::panic, reason = "this is what it is for")]
pub(super) fn panic_if(condition: bool) {
    if condition {
        panic!("a fault was injected");
    }
}

fn wanted(when: &str) -> bool {
    std::env::var("PARLEY_FAULT_ROOM_PANIC").is_ok_and(|value| value == when)
}

fn is_first(id: &MessageId) -> bool {
    let mut triggered = TRIGGERED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    triggered.get_or_insert_default().insert(id.clone())
}
