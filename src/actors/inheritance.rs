//! What a new leader is handed by the gateways: everything that somebody may have seen and the history may lack, and who
//! is there. Pure.

use crate::chat::room::Inherited;
use crate::protocol::internal::{Member, Posted};
use crate::protocol::names::{GatewayId, RoomName};
use crate::protocol::wire::Share;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tracing::warn;

/// What has been handed over so far.
pub(super) struct Inheritance {
    missing: BTreeSet<GatewayId>,
    rooms: HashMap<RoomName, Shares>,
}

#[derive(Default)]
struct Shares {
    members: Vec<Member>,
    messages: BTreeMap<u64, Posted>,
}

impl Inheritance {
    /// Nothing yet, and these are to hand over.
    pub(super) fn expected_from(gateways: BTreeSet<GatewayId>) -> Self {
        Self { missing: gateways, rooms: HashMap::new() }
    }

    /// One gateway's answer, or a part of it.
    pub(super) fn take(&mut self, from: &GatewayId, shares: Vec<Share>, complete: bool) {
        for Share { room, members, messages } in shares {
            let known = self.rooms.entry(room).or_default();
            known.members.extend(members);
            // Gateways of one room heard the same messages, some of them more than others.
            known.messages.extend(messages.into_iter().map(|posted| (posted.timestamp, posted)));
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
                let read = messages.into_values().filter_map(|posted| {
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
