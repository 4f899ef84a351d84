//! What every actor of a node is given.

use super::SCOPE;
use super::gateway::GatewayMsg;
use super::neighbours::Neighbours;
use super::shard_host::HostMsg;
use crate::chat::limiter::Limits;
use crate::consensus::node::{Consensus, ShardStatus};
use crate::metrics::Metrics;
use crate::protocol::Timestamp;
use crate::protocol::internal::Epoch;
use crate::protocol::names::{GatewayId, RoomName, ShardId};
use crate::protocol::private_id::Secret;
use crate::protocol::view::{ClusterView, ShardView};
use crate::storage::store::Store;
use ractor::{ActorCell, ActorId, ActorRef, pg};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// History reads that may block threads at the same time.
const READS_AT_ONCE: usize = 8;

/// What every actor of a node shares.
pub struct Context {
    /// The node's name.
    pub node: String,
    /// The base URL at which browsers reach it, if it has one that means something to them.
    pub url: Option<String>,
    /// How many gateways it runs.
    pub gateways: usize,
    /// `cluster.shards`.
    pub shards: u16,
    /// What limiters allow.
    pub limits: Limits,
    /// Where history is read.
    pub store: Store,
    /// Where it is agreed upon.
    pub consensus: Arc<Consensus>,
    /// The other nodes.
    pub neighbours: Arc<Neighbours>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
    reads: Arc<Semaphore>,
    epochs: AtomicU64,
}

/// What a context is made of; the fields are those of [`Context`].
#[expect(missing_docs, reason = "documented where they are kept")]
pub struct Parts {
    pub node: String,
    pub url: Option<String>,
    pub gateways: usize,
    pub limits: Limits,
    pub store: Store,
    pub consensus: Arc<Consensus>,
    pub neighbours: Arc<Neighbours>,
    pub metrics: Arc<Metrics>,
}

impl Context {
    /// A context of these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { node, url, gateways, limits, store, consensus, neighbours, metrics } = parts;
        Self {
            node,
            url,
            gateways,
            shards: store.shards(),
            limits,
            store,
            consensus,
            neighbours,
            metrics,
            clock: Clock::start(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            epochs: AtomicU64::new(0),
        }
    }

    /// The cluster as this node sees it.
    #[must_use]
    pub fn cluster_view(&self) -> ClusterView {
        let shards: Vec<ShardView> =
            self.neighbours.shards(&self.consensus).into_iter().map(shard_view).collect();
        let mut led: HashMap<String, u32> = HashMap::new();
        for leader in shards.iter().filter_map(|shard| shard.leader.clone()) {
            *led.entry(leader).or_default() += 1;
        }
        let nodes = self.neighbours.view(&self.node, self.url.clone(), &led);
        ClusterView { node: self.node.clone(), nodes, shards }
    }

    /// Why this node cannot serve every room now; `None` when it can.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let leaderless = self.neighbours.shards_without_leader();
        match leaderless.as_slice() {
            [] => None,
            _ if self.consensus.charter().borrow().is_none() => {
                Some("the cluster's nodes have not all met yet".to_owned())
            }
            [first, ..] => Some(format!(
                "{} of {} shards have no leader that this node can reach, shard {} among them",
                leaderless.len(),
                self.shards,
                first.0
            )),
        }
    }

    /// All gateways of the cluster.
    #[must_use]
    pub fn gateways(&self) -> Vec<(GatewayId, ActorRef<GatewayMsg>)> {
        let groups = pg::which_scoped_groups(&SCOPE.to_owned());
        let ids = groups.iter().filter_map(|group| GatewayId::of_group(group));
        ids.filter(|id| id.node() == self.node || self.neighbours.is_linked(id.node()))
            .filter_map(|id| gateway(&id).map(|actor| (id, actor)))
            .collect()
    }

    /// The gateway of this node that carries `room`.
    #[must_use]
    pub fn gateway_of(&self, room: &RoomName) -> GatewayId {
        GatewayId::new(&self.node, room.gateway_index(self.gateways))
    }

    /// The next instance of a room, under a leader of this term: above every earlier one.
    pub(super) fn next_epoch(&self, term: u64) -> Epoch {
        Epoch { term, instance: self.epochs.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// The key of private rooms' names; none before the cluster is founded.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        self.consensus.charter().borrow().as_ref().map(|charter| Secret::new(charter.secret))
    }

    /// Runs `read` where it may block, a bounded number at a time, and hands on what it returns.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Option<T> {
        // Neither fails before the runtime itself goes down.
        let permit = Arc::clone(&self.reads).acquire_owned().await.ok()?;
        let context = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&context.store)
        });
        read.await.ok()
    }
}

/// The gateway with this id, wherever it is.
#[must_use]
pub fn gateway(id: &GatewayId) -> Option<ActorRef<GatewayMsg>> {
    member_of(&id.group()).map(Into::into)
}

/// The host of a shard on the node called `node`.
#[must_use]
pub fn host_at(shard: ShardId, node: &str) -> Option<ActorRef<HostMsg>> {
    member_of(&shard.host_group(node)).map(Into::into)
}

fn shard_view(status: ShardStatus) -> ShardView {
    let ShardStatus { shard, leader, replicas, term, commit, lag } = status;
    ShardView { id: shard.0, leader, replicas, term, commit, lag }
}

/// The one member of a group. A node whose link broke and is back has two for a moment: the later link's is right.
fn member_of(group: &str) -> Option<ActorCell> {
    let members = pg::get_scoped_members(&SCOPE.to_owned(), &group.to_owned());
    members.into_iter().max_by_key(|member| match member.get_id() {
        ActorId::Local(_) => u64::MAX,
        ActorId::Remote { node_id, .. } => node_id,
    })
}

/// Wall clock for timestamps, monotonic clock for waiting.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Milliseconds since the Unix epoch. May step back.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as Timestamp
    }

    /// Milliseconds since the node started. Never steps back.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
