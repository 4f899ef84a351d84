//! What things are called: rooms, shards, nodes' gateways, sessions, messages, limited addresses.

use super::{NAME_UNITS_MAX, utf16_units};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Characters of a private room's name: 32 bytes in hexadecimal.
pub const PRIVATE_NAME_LEN: usize = 64;

/// The scope of all our process groups.
pub const SCOPE: &str = "parley";

/// The process group that holds the courier of the node called `node`.
#[must_use]
pub fn node_group(node: &str) -> String {
    format!("node/{node}")
}

/// A room's name, already checked for length.
///
/// Invariant: at most 32 UTF-16 units and not empty, or exactly 64 lower-case hexadecimal digits (a private id).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RoomName(Arc<str>);

/// Why a text cannot name a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than 32 UTF-16 units and not a private id.
    #[error("Name too long")]
    TooLong,
    /// No characters at all.
    #[error("Name missing")]
    Empty,
}

impl RoomName {
    /// Reads a percent-decoded name. 64 hexadecimal digits are a private id, whatever their case.
    ///
    /// # Errors
    /// When the name is empty or too long.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name.len() == PRIVATE_NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(name.to_ascii_lowercase().into()));
        }
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if utf16_units(name) > NAME_UNITS_MAX {
            return Err(NameError::TooLong);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the 64-digit id of a private room.
    #[must_use]
    pub fn is_private(&self) -> bool {
        // A public name has at most 32 UTF-16 units, hence fewer than 64 ASCII characters.
        self.0.len() == PRIVATE_NAME_LEN && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// The shard that hosts this room.
    #[must_use]
    pub fn shard(&self, shards: u16) -> ShardId {
        ShardId::of("room/", &self.0, shards)
    }

    /// Which of a node's `gateways` carries this room. Always the same one, so order within a room is kept.
    #[must_use]
    pub fn gateway_index(&self, gateways: usize) -> usize {
        // The high half, so that rooms of one shard still spread over all gateways.
        ((xxh3_64(self.0.as_bytes()) >> 32) as usize) % gateways.max(1)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A private room's name is its key: it must not reach a log.
        if self.is_private() { f.write_str("(private room)") } else { write!(f, "{:?}", self.0) }
    }
}

/// One of the `cluster.shards` parts into which rooms and limiters are divided by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardId(pub u16);

impl ShardId {
    /// Hashes `kind` and `name` onto `shards` shards. Stored data depends on this: it must never change.
    fn of(kind: &str, name: &str, shards: u16) -> Self {
        let mut text = String::with_capacity(kind.len() + name.len());
        text.push_str(kind);
        text.push_str(name);
        Self((xxh3_64(text.as_bytes()) % u64::from(shards.max(1))) as u16)
    }

    /// The process group of the shard's leader, in the scope `parley`.
    #[must_use]
    pub fn leader_group(self) -> String {
        format!("shard/{}/leader", self.0)
    }

    /// The process group that holds the host of the shard on the node called `node` alone.
    #[must_use]
    pub fn host_group(self, node: &str) -> String {
        format!("shard/{}/at/{node}", self.0)
    }

    /// The shard whose leader's process group is `group`, if it is one.
    #[must_use]
    pub fn of_leader_group(group: &str) -> Option<Self> {
        group.strip_prefix("shard/")?.strip_suffix("/leader")?.parse().ok().map(Self)
    }

    /// The process group of all hosts of the shard.
    #[must_use]
    pub fn group(self) -> String {
        format!("shard/{}", self.0)
    }
}

/// A gateway: `NODE/K`, the K-th gateway of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatewayId(Arc<str>);

impl GatewayId {
    /// The gateway with number `index` of the node called `node`.
    #[must_use]
    pub fn new(node: &str, index: usize) -> Self {
        Self(format!("{node}/{index}").into())
    }

    /// The name of the node it is on.
    #[must_use]
    pub fn node(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(node, _)| node)
    }

    /// The process group that holds this gateway alone.
    #[must_use]
    pub fn group(&self) -> String {
        format!("gateway/{}", self.0)
    }

    /// The gateway whose process group is `group`, if it is one of a gateway.
    #[must_use]
    pub fn of_group(group: &str) -> Option<Self> {
        group.strip_prefix("gateway/").map(|id| Self(id.into()))
    }
}

/// A session's number, unique on its gateway for as long as the process lives.
pub type SessionNumber = u64;

/// A session, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionKey {
    /// The gateway that holds the session.
    pub gateway: GatewayId,
    /// The session's number there.
    pub number: SessionNumber,
}

/// What makes a message the same message when it is sent again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MessageId {
    /// Chosen by the client; echoed and acknowledged.
    Client(Arc<str>),
    /// Made by the node for a client that chose none, so that a retry between actors is recognised too.
    Made(u128),
}

impl MessageId {
    /// The id as the client knows it, if the client gave one.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        match self {
            Self::Client(id) => Some(id),
            Self::Made(_) => None,
        }
    }
}

/// What a limiter limits: an IPv4 address or the /64 of an IPv6 address.
///
/// A /64 because that is what one household or one rented machine is given: its owner can use any address in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LimiterKey(Arc<str>);

impl LimiterKey {
    /// The limiter's key for a client at `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_string().into()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Self(format!("{a:x}:{b:x}:{c:x}:{d:x}::/64").into())
            }
        }
    }

    /// The shard that hosts this limiter.
    #[must_use]
    pub fn shard(&self, shards: u16) -> ShardId {
        ShardId::of("limiter/", &self.0, shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_name_has_up_to_32_utf16_units() {
        assert!(RoomName::parse(&"x".repeat(32)).is_ok());
        assert_eq!(RoomName::parse(&"x".repeat(33)), Err(NameError::TooLong));
        assert!(RoomName::parse(&"😀".repeat(16)).is_ok());
        assert_eq!(RoomName::parse(&"😀".repeat(17)), Err(NameError::TooLong));
        assert_eq!(RoomName::parse(""), Err(NameError::Empty));
    }

    #[test]
    fn sixty_four_hex_digits_are_a_private_id_in_any_case() {
        let name = RoomName::parse(&"AB".repeat(32)).unwrap();
        assert!(name.is_private());
        assert_eq!(name.as_str(), "ab".repeat(32));
        assert_eq!(RoomName::parse(&"g".repeat(64)), Err(NameError::TooLong));
        assert!(!RoomName::parse(&"a".repeat(32)).unwrap().is_private());
    }

    #[test]
    fn a_private_name_does_not_show_in_debug_output() {
        let name = RoomName::parse(&"ab".repeat(32)).unwrap();
        assert!(!format!("{name:?}").contains("abab"));
    }

    #[test]
    fn the_shard_of_a_name_never_changes() {
        // Stored keys begin with the shard: these values are part of the format.
        assert_eq!(RoomName::parse("lobby").unwrap().shard(16), ShardId(LOBBY_SHARD));
        assert_eq!(RoomName::parse("lobby").unwrap().shard(1), ShardId(0));
    }

    /// Computed once from xxh3-64 of `room/lobby`, modulo 16.
    const LOBBY_SHARD: u16 = 11;

    #[test]
    fn limiter_keys_join_a_v6_network_and_unmap_v4() {
        let key = |text: &str| LimiterKey::of(text.parse().unwrap());
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:203.0.113.9"), key("203.0.113.9"));
        assert_ne!(key("203.0.113.8"), key("203.0.113.9"));
    }
}
