//! Which rows a message is made of.

use super::keys;
use super::record;
use super::writer::{Change, Space};
use crate::protocol::message::Message;
use crate::protocol::names::{RoomName, ShardId};

/// Adds the rows of `messages` of one room: each message, and what finds it by its id. Both or none are ever written.
pub fn of_messages(shard: ShardId, room: &RoomName, messages: &[Message], changes: &mut Vec<Change>) {
    changes.reserve(2 * messages.len());
    for message in messages {
        let key = keys::message(shard, room, message.timestamp);
        changes.push(Change::Put(Space::Messages, key, record::encode(message)));
        let id = keys::id(shard, room, &message.id);
        changes.push(Change::Put(Space::Ids, id, message.timestamp.to_be_bytes().to_vec()));
    }
}
