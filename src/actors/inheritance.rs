//! What a new leader is handed by the gateways: everything that somebody may have seen and the history may lack, and who
//! is there. Pure.
//!
//! A gateway that was cut off while somebody else led may still keep what the leader before that said to it alone. Others
//! have seen later messages since, so that there is no place any more for these: they have vanished, as they may when a
//! node is cut off, and are said again by whoever had no ack for them.

use crate::chat::room::Inherited;
use crate::protocol::Timestamp;
use crate::protocol::internal::{Member, Posted};
use crate::protocol::names::{GatewayId, RoomName};
use crate::protocol::wire::Share;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tracing::warn;

/// What has been handed over so far.
pub(super) struct Inheritance {
    missing: BTreeSet<GatewayId>,
    rooms: HashMap<RoomName, Shares>,
    /// The latest term whose leader any gateway had believed.
    believed: u64,
}

#[derive(Default)]
struct Shares {
    members: Vec<Member>,
    /// By timestamp, each with the latest term whose leader the gateway had believed that handed it over.
    messages: BTreeMap<Timestamp, (u64, Posted)>,
}

impl Inheritance {
    /// Nothing yet, and these are to hand over.
    pub(super) fn expected_from(gateways: BTreeSet<GatewayId>) -> Self {
        Self { missing: gateways, rooms: HashMap::new(), believed: 0 }
    }

    /// One gateway's answer, or a part of it.
    pub(super) fn take(&mut self, from: &GatewayId, shares: Vec<Share>, complete: bool) {
        for Share { room, members, messages, believed } in shares {
            self.believed = self.believed.max(believed);
            let known = self.rooms.entry(room).or_default();
            known.members.extend(members);
            // Gateways of one room heard the same messages of one leader, some of them more than others.
            for posted in messages {
                let place =
                    known.messages.entry(posted.timestamp).or_insert_with(|| (believed, posted.clone()));
                if place.0 < believed {
                    *place = (believed, posted);
                }
            }
        }
        if complete {
            self.missing.remove(from);
        }
    }

    /// A gateway is gone, and its sessions with it.
    pub(super) fn lose(&mut self, gateway: &GatewayId) {
        self.missing.remove(gateway);
        for shares in self.rooms.values_mut() {
            shares.members.retain(|member| member.session.gateway != *gateway);
        }
    }

    /// Waits no more; returns for whom.
    pub(super) fn give_up(&mut self) -> BTreeSet<GatewayId> {
        std::mem::take(&mut self.missing)
    }

    /// Whether everyone has answered.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// What each room inherits.
    pub(super) fn rooms(&mut self) -> Vec<(RoomName, Inherited)> {
        let rooms = std::mem::take(&mut self.rooms).into_iter();
        rooms
            .map(|(room, Shares { members, messages })| {
                let latest = messages.into_values().filter(|(believed, _)| *believed == self.believed);
                let read = latest.filter_map(|(_, posted)| {
                    let message = posted.to_message();
                    if message.is_none() {
                        warn!(?room, "a message that was handed over makes no sense and is left out");
                    }
                    message
                });
                let messages = read.collect();
                (room, Inherited { members, messages })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::Message;
    use crate::protocol::names::MessageId;

    fn share(believed: u64, messages: &[(Timestamp, &str)]) -> Vec<Share> {
        let messages = messages.iter().map(|(timestamp, text)| {
            let id = MessageId::Client((*text).into());
            Message { timestamp: *timestamp, name: "alice".into(), text: (*text).into(), id }.post()
        });
        let room = RoomName::parse("lobby").unwrap();
        vec![Share { room, members: Vec::new(), messages: messages.collect(), believed }]
    }

    fn inherited(shares: Vec<(&str, Vec<Share>)>) -> Vec<String> {
        let ids: Vec<GatewayId> = shares.iter().map(|(node, _)| GatewayId::new(node, 0)).collect();
        let mut inheritance = Inheritance::expected_from(ids.iter().cloned().collect());
        for (id, (_, shares)) in ids.iter().zip(shares) {
            assert!(!inheritance.is_complete());
            inheritance.take(id, shares, true);
        }
        assert!(inheritance.is_complete());
        let rooms = inheritance.rooms();
        rooms[0].1.messages.iter().map(|message| message.text.to_string()).collect()
    }

    #[test]
    fn what_gateways_heard_of_one_leader_is_put_together() {
        let shares = vec![("n1", share(4, &[(1, "a"), (2, "b")])), ("n2", share(4, &[(2, "b"), (3, "c")]))];
        assert_eq!(inherited(shares), ["a", "b", "c"]);
    }

    #[test]
    fn what_was_heard_before_others_had_another_leader_has_vanished() {
        let (cut_off, others) = (share(4, &[(1, "a"), (2, "stale")]), share(5, &[(2, "b"), (3, "c")]));
        for shares in
            [vec![("n1", cut_off.clone()), ("n2", others.clone())], vec![("n2", others), ("n1", cut_off)]]
        {
            assert_eq!(inherited(shares), ["b", "c"]);
        }
    }
}
