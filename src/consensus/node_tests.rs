//! Several nodes' groups in one process, over links that are only calls: founding, catching up, replacing.

use super::group::{Lead, ProposeError};
use super::node::{Consensus, Directory, Peer, Settings};
use super::transport::Links;
use super::types::Incarnation;
use crate::metrics::Metrics;
use crate::protocol::Timestamp;
use crate::protocol::message::Message;
use crate::protocol::names::{MessageId, RoomName, ShardId};
use crate::storage::store::{Range, Store};
use crate::storage::writer::{Durability, Writer};
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

const SHARDS: u16 = 2;
const KEPT: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(30);

/// Everyone, and who is cut off.
#[derive(Default)]
struct Hub {
    nodes: Mutex<HashMap<String, (Incarnation, Weak<Consensus>)>>,
    cut_off: Mutex<HashSet<String>>,
}

impl Hub {
    fn reaches(&self, from: &str, to: &str) -> Option<(Incarnation, Arc<Consensus>)> {
        let cut_off = self.cut_off.lock().unwrap();
        if cut_off.contains(from) || cut_off.contains(to) {
            return None;
        }
        let nodes = self.nodes.lock().unwrap();
        let (incarnation, consensus) = nodes.get(to)?;
        Some((*incarnation, consensus.upgrade()?))
    }
}

struct Port {
    hub: Arc<Hub>,
    name: String,
}

impl Links for Port {
    fn send(&self, peer: &str, frame: Bytes) -> bool {
        let Some((_, consensus)) = self.hub.reaches(&self.name, peer) else { return false };
        consensus.receive(&self.name, &frame);
        true
    }

    fn incarnation_of(&self, peer: &str) -> Option<Incarnation> {
        self.hub.reaches(&self.name, peer).map(|(incarnation, _)| incarnation)
    }
}

struct Node {
    name: String,
    consensus: Arc<Consensus>,
    store: Store,
    _folder: tempfile::TempDir,
}

async fn start(hub: &Arc<Hub>, name: &str, all: &[&str]) -> Node {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), SHARDS).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let on_failure = Box::new(|reason| panic!("{reason}"));
    let (writer, _thread) =
        Writer::start(store.clone(), Durability::Sync, Arc::clone(&metrics), on_failure).unwrap();
    let peers: Vec<String> =
        all.iter().filter(|peer| **peer != name).map(|peer| (*peer).to_owned()).collect();
    let settings = Settings {
        name: name.to_owned(),
        peers: peers.clone(),
        shards: SHARDS,
        replicas: 3,
        kept_entries: KEPT,
    };
    let links = Arc::new(Port { hub: Arc::clone(hub), name: name.to_owned() });
    let directory: Directory = {
        let (hub, name) = (Arc::clone(hub), name.to_owned());
        Arc::new(move || {
            let linked = peers.iter().filter_map(|peer| Some((peer, hub.reaches(&name, peer)?)));
            linked
                .map(|(peer, (incarnation, consensus))| Peer {
                    name: peer.clone(),
                    incarnation,
                    has_past: consensus.has_past(),
                    leaving: false,
                    sees_all: true,
                })
                .collect()
        })
    };
    let consensus = Consensus::start(settings, &store, writer, links, directory, metrics).await.unwrap();
    let known = (store.incarnation(), Arc::downgrade(&consensus));
    hub.nodes.lock().unwrap().insert(name.to_owned(), known);
    Node { name: name.to_owned(), consensus, store, _folder: folder }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn room() -> RoomName {
    RoomName::parse("lobby").unwrap()
}

fn shard() -> ShardId {
    room().shard(SHARDS)
}

/// The node that leads the room's shard, among those that are not cut off.
async fn leader<'a>(hub: &Hub, nodes: &'a [Node]) -> (&'a Node, Lead) {
    let mut found = None;
    until("somebody leads", || {
        let cut_off = hub.cut_off.lock().unwrap().clone();
        found = nodes.iter().filter(|node| !cut_off.contains(&node.name)).find_map(|node| {
            let group = node.consensus.shard(shard())?;
            let lead = (*group.lead().borrow())?;
            group.holds_lease(lead).then_some((node, lead))
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn keep(node: &Node, lead: Lead, timestamp: Timestamp) -> Result<(), ProposeError> {
    let id = MessageId::Made(u128::from(timestamp));
    let message = Message { timestamp, name: "alice".into(), text: format!("text {timestamp}").into(), id };
    let (done, outcome) = oneshot::channel();
    let done = Box::new(move |result| done.send(result).unwrap());
    node.consensus.shard(shard()).unwrap().propose(lead, room(), vec![message], done);
    outcome.await.unwrap()
}

fn kept(node: &Node) -> Vec<Timestamp> {
    let all = Range { after: 0, before: Timestamp::MAX, newest: false, limit: 10_000 };
    node.store.read(&room(), all).unwrap().messages.iter().map(|message| message.timestamp).collect()
}

async fn three(hub: &Arc<Hub>) -> Vec<Node> {
    let names = ["n1", "n2", "n3"];
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(start(hub, name, &names).await);
    }
    until("the cluster is founded", || nodes.iter().all(|node| node.consensus.charter().borrow().is_some()))
        .await;
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn three_that_meet_are_a_cluster_and_keep_the_same() {
    let hub = Arc::new(Hub::default());
    let nodes = three(&hub).await;
    let charter = nodes[0].consensus.charter().borrow().clone();
    assert!(nodes.iter().all(|node| *node.consensus.charter().borrow() == charter), "one charter");
    let (node, lead) = leader(&hub, &nodes).await;
    for timestamp in 1..=10 {
        keep(node, lead, timestamp).await.unwrap();
    }
    assert_eq!(kept(node), (1..=10).collect::<Vec<_>>(), "what is acknowledged can be read at once");
    until("all have it", || nodes.iter().all(|node| kept(node).len() == 10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_keeps_nothing_and_another_goes_on() {
    let hub = Arc::new(Hub::default());
    let nodes = three(&hub).await;
    let (old, lead) = leader(&hub, &nodes).await;
    keep(old, lead, 1).await.unwrap();
    hub.cut_off.lock().unwrap().insert(old.name.clone());
    let lost = tokio::spawn({
        let (consensus, store) = (Arc::clone(&old.consensus), old.store.clone());
        let node = Node { name: old.name.clone(), consensus, store, _folder: tempfile::tempdir().unwrap() };
        async move { keep(&node, lead, 2).await }
    });
    let (new, newer) = leader(&hub, &nodes).await;
    assert!(newer.term > lead.term);
    assert!(
        !old.consensus.shard(shard()).unwrap().holds_lease(lead),
        "its lease is over before another leads"
    );
    keep(new, newer, 3).await.unwrap();
    hub.cut_off.lock().unwrap().clear();
    assert_eq!(lost.await.unwrap(), Err(ProposeError::NotLeader), "it learns that it was replaced");
    assert_eq!(keep(old, lead, 4).await, Err(ProposeError::NotLeader), "an earlier turn is over for ever");
    until("all have what was agreed upon", || nodes.iter().all(|node| kept(node) == [1, 3])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_was_away_for_long_is_sent_a_copy() {
    let hub = Arc::new(Hub::default());
    let nodes = three(&hub).await;
    let (node, _) = leader(&hub, &nodes).await;
    let away = nodes.iter().find(|other| other.name != node.name).unwrap();
    hub.cut_off.lock().unwrap().insert(away.name.clone());
    let (node, lead) = leader(&hub, &nodes).await;
    // One entry each, far more than a log keeps.
    let count = 5 * KEPT;
    for timestamp in 1..=count {
        keep(node, lead, timestamp).await.unwrap();
    }
    let purged = || {
        let metrics = node.consensus.shard(shard()).unwrap().raft().metrics();
        let purged = metrics.borrow_watched().purged;
        purged.map_or(0, |id| id.index)
    };
    until("the log has let go of what was said first", || purged() > KEPT).await;
    hub.cut_off.lock().unwrap().clear();
    until("the one who was away has all of it", || kept(away).len() as u64 == count).await;
    let (node, lead) = leader(&hub, &nodes).await;
    keep(node, lead, count + 1).await.unwrap();
    until("and goes on hearing", || kept(away).len() as u64 == count + 1).await;
    assert_eq!(away.store.find(&room(), &MessageId::Made(7)).unwrap(), Some(7), "ids came along");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_lost_everything_is_taught_and_votes_again() {
    let hub = Arc::new(Hub::default());
    let mut nodes = three(&hub).await;
    let (node, lead) = leader(&hub, &nodes).await;
    for timestamp in 1..=3 * KEPT {
        keep(node, lead, timestamp).await.unwrap();
    }
    let index = nodes.iter().position(|other| other.name != node.name).unwrap();
    let lost = nodes.remove(index);
    hub.nodes.lock().unwrap().remove(&lost.name);
    lost.consensus.stop().await;
    let name = lost.name.clone();
    drop(lost);

    let back = start(&hub, &name, &["n1", "n2", "n3"]).await;
    let incarnation = back.store.incarnation();
    nodes.push(back);
    let votes = |node: &Node| {
        let groups = node.consensus.groups.values();
        groups.into_iter().all(|group| {
            let metrics = group.raft().metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            membership.voter_ids().any(|id| id == incarnation)
                && membership.voter_ids().count() == 3
                && membership.learner_ids().next().is_none()
        })
    };
    until("it votes in every group, in its old place", || nodes.iter().all(votes)).await;
    until("it has everything", || kept(nodes.last().unwrap()).len() as u64 == 3 * KEPT).await;
    let member = nodes[0].consensus.charter().borrow().as_ref().unwrap().members[&name];
    assert_eq!(member, incarnation, "the charter knows it");

    // Now it counts: without another one there is still a majority.
    let gone = nodes[0].name.clone();
    hub.cut_off.lock().unwrap().insert(gone);
    let (node, lead) = leader(&hub, &nodes).await;
    keep(node, lead, 1_000).await.unwrap();
}
