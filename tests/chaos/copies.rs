//! Every node's own copy, read from its disk once it has stopped: what a running node answers is its leader's.

use std::collections::BTreeMap;

use parley::protocol::Timestamp;
use parley::protocol::names::RoomName;
use parley::storage::store::{Range, Store};

use crate::arena::Arena;
use crate::checker::Kind;
use crate::cluster::{WHOLE, name};
use crate::run::digest_of;
use crate::support::Said;

/// Messages read at a time.
const PAGE: usize = 1_000;

/// Stops all nodes, and compares each one's copy of these rooms with what the cluster told of them.
pub(crate) async fn compare(arena: &mut Arena, digests: &BTreeMap<String, u64>) {
    let mut keepers = BTreeMap::new();
    if !arena.cluster.becomes_equal(WHOLE).await {
        return arena.find(Kind::NotWhole, "copies stay behind although nobody talks".to_owned());
    }
    for room in digests.keys() {
        keepers.insert(room, arena.copies(room).await.unwrap_or_default());
    }
    for node in arena.cluster.live() {
        let code = arena.cluster.stops(node).await;
        if code != Some(0) {
            arena.find(Kind::Died, format!("{} ended with {code:?} when told to stop", name(node)));
        }
    }
    for node in arena.cluster.all() {
        let store = match Store::open(arena.cluster.node(node).data(), arena.cluster.shards()) {
            Ok(store) => store,
            Err(error) => {
                arena.find(Kind::Died, format!("the folder of {} does not open: {error}", name(node)));
                continue;
            }
        };
        for (room, digest) in digests.iter().filter(|(room, _)| keepers[room].contains(&node)) {
            let found = read(&store, room).map(|history| (history.len(), digest_of(&history)));
            match found {
                Ok((_, found)) if found == *digest => {}
                Ok((count, _)) => {
                    let words =
                        format!("{} keeps another history of \"{room}\", of {count} messages", name(node));
                    arena.find(Kind::Diverged, words);
                }
                Err(error) => {
                    arena.find(
                        Kind::Diverged,
                        format!("{} cannot read its copy of \"{room}\": {error}", name(node)),
                    );
                }
            }
        }
    }
    println!("the copies of {} rooms were read from every node's disk", digests.len());
}

fn read(store: &Store, room: &str) -> Result<Vec<Said>, String> {
    let room = RoomName::parse(room).map_err(|error| format!("{error:?}"))?;
    let mut history: Vec<Said> = Vec::new();
    loop {
        let after = history.last().map_or(0, |said| said.timestamp);
        let range = Range { after, before: Timestamp::MAX, newest: false, limit: PAGE };
        let found = store.read(&room, range).map_err(|error| error.to_string())?;
        history.extend(found.messages.iter().map(|message| Said {
            name: message.name.to_string(),
            text: message.text.to_string(),
            timestamp: message.timestamp,
            id: message.id.client().map(str::to_owned),
        }));
        if !found.more {
            return Ok(history);
        }
    }
}
