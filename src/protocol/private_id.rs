//! Names of private rooms: unguessable, and recognised without storing any of them.
//!
//! 16 random bytes and a 16-byte tag, HMAC-SHA-256 over them under a secret that the cluster makes once. Whoever
//! does not hold the secret can neither find such a name nor make one.

use super::names::RoomName;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Random bytes in an id, and bytes of the tag behind them.
const HALF_LEN: usize = 16;

/// The key under which private ids are made and checked.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A secret from stored or freshly drawn bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Makes the id of a new private room from 16 random bytes.
    #[must_use]
    pub fn issue(&self, random: [u8; HALF_LEN]) -> RoomName {
        let tag = self.tag(&random).finalize().into_bytes();
        let hex = hex::encode([&random[..], &tag[..HALF_LEN]].concat());
        // 64 hexadecimal digits always parse.
        RoomName::parse(&hex).unwrap_or_else(|_| unreachable!("a private id is 64 hexadecimal digits"))
    }

    /// Whether `name` is an id that was issued under this secret. Takes the same time for every wrong tag.
    #[must_use]
    pub fn verify(&self, name: &RoomName) -> bool {
        let mut bytes = [0; 2 * HALF_LEN];
        if hex::decode_to_slice(name.as_str(), &mut bytes).is_err() {
            return false;
        }
        let (random, tag) = bytes.split_at(HALF_LEN);
        self.tag(random).verify_truncated_left(tag).is_ok()
    }

    fn tag(&self, random: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
        mac.update(random);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_id_is_recognised_and_no_other() {
        let secret = Secret::new([7; 32]);
        let id = secret.issue([9; 16]);
        assert!(id.is_private());
        assert!(secret.verify(&id));
        assert!(!Secret::new([8; 32]).verify(&id));
        assert!(!secret.verify(&RoomName::parse("lobby").unwrap()));
        for place in 0..64 {
            let mut forged = id.as_str().to_owned().into_bytes();
            forged[place] = if forged[place] == b'0' { b'1' } else { b'0' };
            let forged = RoomName::parse(std::str::from_utf8(&forged).unwrap()).unwrap();
            assert!(!secret.verify(&forged), "digit {place} is not covered");
        }
    }

    #[test]
    fn different_randomness_gives_different_ids() {
        let secret = Secret::new([7; 32]);
        assert_ne!(secret.issue([1; 16]), secret.issue([2; 16]));
    }
}
