//! All groups of this node, and what they answer to other nodes.

use super::group::{self, Group, HEARTBEAT_MS};
use super::log::{self, LogStore, write};
use super::machine::{self, StateMachine};
use super::tending;
use super::transport::{Answer, Links, Network, Request, Responder, Transport};
use super::types::{Charter, GroupId, Incarnation};
use crate::metrics::Metrics;
use crate::protocol::names::ShardId;
use crate::storage::store::{Row, Store};
use crate::storage::writer::{Change, Flush, Space, Writer};
use futures_util::future::join_all;
use openraft::alias::SnapshotOf;
use openraft::async_runtime::watch::WatchReceiver;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// How long groups are given to find another leader when the node stops.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How many entries stay in a log for those who were away: some minutes of a busy shard.
pub const KEPT_ENTRIES: u64 = 20_000;

/// What a node is to its cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// The other initial members' names.
    pub peers: Vec<String>,
    /// `cluster.shards`
    pub shards: u16,
    /// `cluster.replicas`
    pub replicas: u16,
    /// How many entries stay in a log for those who were away; [`KEPT_ENTRIES`] but in tests.
    pub kept_entries: u64,
}

/// A linked node, as agreement needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub incarnation: Incarnation,
    /// Whether it has ever been part of a cluster.
    pub has_past: bool,
    /// Whether it is about to stop, so that it must not be given anything to lead.
    pub leaving: bool,
    /// Whether it is linked to all others that this node is linked to. Who leads a shard has to reach everyone.
    pub sees_all: bool,
}

/// Says which nodes are linked now.
pub type Directory = Arc<dyn Fn() -> Vec<Peer> + Send + Sync>;

/// How one shard stands, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Which.
    pub shard: ShardId,
    /// Who leads it.
    pub leader: Option<String>,
    /// Who keeps it.
    pub replicas: Vec<String>,
    /// The term.
    pub term: u64,
    /// The index of the newest entry known to be agreed upon.
    pub commit: u64,
    /// How many entries the slowest replica lacks; only its leader knows.
    pub lag: Option<u64>,
}

/// What a data folder says of its past, before any group is started.
#[derive(Debug, Clone)]
pub struct Past {
    /// Whether it has ever been part of a cluster.
    pub any: bool,
    /// The cluster, if it was founded.
    pub charter: Option<Charter>,
}

impl Past {
    /// Reads it from the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(store: &Store) -> io::Result<Self> {
        let charter = machine::charter_in(store)?;
        let blank = log::is_blank_in(GroupId::META, store)?;
        Ok(Self { any: charter.is_some() || !blank, charter })
    }
}

/// The groups of this node.
pub struct Consensus {
    pub(super) settings: Settings,
    pub(super) incarnation: Incarnation,
    pub(super) secret_to_propose: [u8; 32],
    pub(super) groups: BTreeMap<GroupId, Group>,
    writer: Writer,
    transport: Arc<Transport>,
    charter: Arc<watch::Sender<Option<Charter>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Consensus {
    /// Starts all groups as the store holds them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(
        settings: Settings,
        store: &Store,
        writer: Writer,
        links: Arc<dyn Links>,
        directory: Directory,
        metrics: Arc<Metrics>,
    ) -> io::Result<Arc<Self>> {
        let transport = Transport::new(links);
        let charter = Arc::new(watch::channel(None).0);
        let alone = settings.peers.is_empty();
        let config = group::config(settings.kept_entries, alone).map_err(io::Error::other)?;
        let incarnation = store.incarnation();
        let mut groups = BTreeMap::new();
        for id in (0..settings.shards).map(GroupId).chain([GroupId::META]) {
            let network = Network { group: id, transport: Arc::clone(&transport), store: store.clone() };
            let log = LogStore::open(id, store.clone(), writer.clone())?;
            let machine = StateMachine::open(id, store, writer.clone(), Arc::clone(&charter))?;
            let (config, metrics) = (Arc::clone(&config), Arc::clone(&metrics));
            let group = Group::start(id, incarnation, config, network, log, machine, metrics).await;
            groups.insert(id, group.map_err(io::Error::other)?);
        }
        let consensus = Arc::new(Self {
            settings,
            incarnation,
            secret_to_propose: *store.secret_to_propose(),
            groups,
            writer,
            transport,
            charter,
            tasks: Mutex::new(Vec::new()),
        });
        let mut tasks = vec![tokio::spawn(tending::tend(Arc::downgrade(&consensus), directory))];
        if !alone {
            tasks.push(tokio::spawn(beat(Arc::downgrade(&consensus))));
        }
        *consensus.tasks.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(consensus)
    }

    /// The group of a shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&Group> {
        self.groups.get(&GroupId::of(shard))
    }

    /// What makes the cluster this one, once it is agreed upon.
    #[must_use]
    pub fn charter(&self) -> watch::Receiver<Option<Charter>> {
        self.charter.subscribe()
    }

    /// Whether this node has ever been part of a cluster.
    #[must_use]
    pub fn has_past(&self) -> bool {
        self.charter.borrow().is_some()
            || self.groups.get(&GroupId::META).is_some_and(|meta| !meta.is_blank())
    }

    /// Takes a frame that the node called `peer` sent.
    pub fn receive(self: &Arc<Self>, peer: &str, frame: &[u8]) {
        self.transport.receive(self, peer, frame);
    }

    /// The link to `peer` is gone.
    pub fn unlinked(&self, peer: &str) {
        self.transport.unlinked(peer);
    }

    /// The node that leads a shard, as far as this one knows.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<String> {
        let metrics = self.shard(shard)?.raft().metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics.membership_config.membership().get_node(&leader).map(|member| member.name.clone())
    }

    /// How every shard stands.
    #[must_use]
    pub fn status(&self) -> Vec<ShardStatus> {
        let shards = self.groups.values().filter_map(|group| Some((group.id.shard()?, group)));
        shards
            .map(|(shard, group)| {
                let metrics = group.raft().metrics();
                let metrics = metrics.borrow_watched();
                let membership = metrics.membership_config.membership();
                let name = |id| membership.get_node(&id).map(|member| member.name.clone());
                let last = metrics.last_log_index.unwrap_or(0);
                let slowest = metrics.replication.as_ref().and_then(|replication| {
                    let others = membership.voter_ids().filter(|id| *id != self.incarnation);
                    let matched = others.map(|id| replication.get(&id).and_then(Option::as_ref));
                    matched.map(|matched| matched.map_or(0, |id| id.index)).min().or(Some(last))
                });
                let mut replicas: Vec<String> = membership.voter_ids().filter_map(name).collect();
                replicas.sort_unstable();
                ShardStatus {
                    shard,
                    leader: metrics.current_leader.and_then(name),
                    replicas,
                    term: metrics.current_term,
                    commit: metrics.cluster_committed.as_ref().map_or(0, |id| id.index),
                    lag: slowest.map(|slowest| last.saturating_sub(slowest)),
                }
            })
            .collect()
    }

    /// Gives every lead away to whoever of the linked `peers` is up to date, and waits until that has happened.
    pub async fn hand_over(&self, peers: &[Peer]) {
        let deadline = Instant::now() + HAND_OVER_TIMEOUT;
        let giving = self.groups.values().filter_map(|group| {
            Some(group.give_lead_to(tending::successor(group, self.incarnation, peers)?))
        });
        join_all(giving).await;
        let leads = |group: &Group| {
            group.raft().as_leader().is_ok() && tending::successor(group, self.incarnation, peers).is_some()
        };
        while self.groups.values().any(leads) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops all groups.
    pub async fn stop(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|task| task.abort());
        for group in self.groups.values() {
            group.stop().await;
        }
    }

    async fn keep_rows(&self, group: GroupId, rows: Vec<Row>) -> Option<Answer> {
        let shard = group.shard()?.0.to_be_bytes();
        // Rows of this shard's history and nothing else: not the log, not what a group has promised.
        let belongs =
            |(space, key, _): &Row| matches!(space, Space::Messages | Space::Ids) && key.starts_with(&shard);
        if !rows.iter().all(belongs) {
            return None;
        }
        let changes = rows.into_iter().map(|(space, key, value)| Change::Put(space, key, value)).collect();
        write(&self.writer, changes, Flush::Lazy).await.ok()?;
        Some(Answer::Rows)
    }
}

/// Beats for all groups that this node leads, in the same moment: what they have to say to a peer then leaves as one
/// frame, and so do the answers.
async fn beat(consensus: Weak<Consensus>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(consensus) = consensus.upgrade() else { return };
        for group in consensus.groups.values() {
            // Nobody waits here: a group's queue takes 65,536 commands, and rooms refuse more long before.
            group.beat().await;
        }
    }
}

impl Responder for Consensus {
    async fn respond(&self, id: GroupId, request: Request) -> Option<Answer> {
        let raft = self.groups.get(&id)?.raft();
        match request {
            Request::Append(request) => raft.append_entries(request).await.ok().map(Answer::Append),
            Request::Vote(request) => raft.vote(request).await.ok().map(Answer::Vote),
            Request::PreVote(request) => raft.pre_vote(request).await.ok().map(Answer::Vote),
            Request::TransferLeader(request) => {
                raft.handle_transfer_leader(request).await.ok().map(Answer::TransferLeader)
            }
            Request::Rows(rows) => self.keep_rows(id, rows).await,
            Request::Install(vote, meta, snapshot) => {
                let snapshot = SnapshotOf::<super::types::Types, _> { meta, snapshot };
                raft.install_full_snapshot(vote, snapshot).await.ok().map(Answer::Install)
            }
        }
    }
}
