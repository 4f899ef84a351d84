//! How rows are ordered: by shard, then room, then timestamp or id. All numbers are big-endian, so that the order of
//! the bytes is the order of the values.
//!
//! ```text
//! messages   shard:u16  name_len:u8  name  timestamp:u64   →  record
//! ids        shard:u16  name_len:u8  name  kind:u8  id     →  timestamp:u64
//! log        group:u16  index:u64                          →  entry
//! raft       group:u16  kind:u8                            →  what the kind says
//! ```
//!
//! The shard comes first so that a shard's rows lie together: that is what moves between nodes. The length before the
//! name keeps one room's rows apart from those of a room whose name begins with its name.

use crate::protocol::Timestamp;
use crate::protocol::names::{MessageId, RoomName, ShardId};

/// Bytes of a timestamp at the end of a message's key.
const TIMESTAMP_LEN: usize = size_of::<Timestamp>();

/// What all rows of a room begin with.
#[must_use]
pub fn room(shard: ShardId, name: &RoomName) -> Vec<u8> {
    let name = name.as_str().as_bytes();
    // Room for what is added behind the prefix, so that no key is allocated twice.
    let mut key = Vec::with_capacity(2 + 1 + name.len() + 1 + 64);
    key.extend_from_slice(&shard.0.to_be_bytes());
    // A name has at most 32 UTF-16 units of at most 3 bytes, or 64 digits.
    key.push(name.len() as u8);
    key.extend_from_slice(name);
    key
}

/// The key of the message at `timestamp`.
#[must_use]
pub fn message(shard: ShardId, name: &RoomName, timestamp: Timestamp) -> Vec<u8> {
    let mut key = room(shard, name);
    key.extend_from_slice(&timestamp.to_be_bytes());
    key
}

/// The timestamp in a message's key.
#[must_use]
pub fn timestamp_of(key: &[u8]) -> Option<Timestamp> {
    key.last_chunk::<TIMESTAMP_LEN>().map(|bytes| Timestamp::from_be_bytes(*bytes))
}

/// The key of the row that finds a message by its id.
#[must_use]
pub fn id(shard: ShardId, name: &RoomName, id: &MessageId) -> Vec<u8> {
    let mut key = room(shard, name);
    match id {
        MessageId::Client(id) => {
            key.push(0);
            key.extend_from_slice(id.as_bytes());
        }
        MessageId::Made(id) => {
            key.push(1);
            key.extend_from_slice(&id.to_be_bytes());
        }
    }
    key
}

/// The key of entry `index` in the log of a consensus group.
#[must_use]
pub fn log(group: u16, index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + 8);
    key.extend_from_slice(&group.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The index in a log entry's key.
#[must_use]
pub fn log_index_of(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// The key of what a consensus group remembers under `kind`.
#[must_use]
pub fn raft(group: u16, kind: u8) -> Vec<u8> {
    let [high, low] = group.to_be_bytes();
    vec![high, low, kind]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARD: ShardId = ShardId(3);

    proptest! {
        #[test]
        fn keys_sort_by_room_and_then_timestamp(
            (a, b) in ("[a-c]{1,4}", "[a-c]{1,4}"),
            (early, late) in (any::<u64>(), any::<u64>()),
        ) {
            let (a, b) = (RoomName::parse(&a).unwrap(), RoomName::parse(&b).unwrap());
            prop_assert_eq!(message(SHARD, &a, early).cmp(&message(SHARD, &a, late)), early.cmp(&late));
            prop_assert_eq!(timestamp_of(&message(SHARD, &a, early)), Some(early));
            if a != b {
                prop_assert!(!message(SHARD, &a, early).starts_with(&room(SHARD, &b)));
            }
        }

        #[test]
        fn a_made_id_is_never_taken_for_a_clients(made in any::<u128>(), client in ".{1,64}") {
            let room = RoomName::parse("lobby").unwrap();
            let client = MessageId::Client(client.into());
            prop_assert_ne!(id(SHARD, &room, &client), id(SHARD, &room, &MessageId::Made(made)));
        }
    }
}
