//! What every actor of a node is given.

use super::SCOPE;
use super::gateway::GatewayMsg;
use super::shard_host::HostMsg;
use crate::chat::limiter::Limits;
use crate::metrics::Metrics;
use crate::protocol::Timestamp;
use crate::protocol::internal::Epoch;
use crate::protocol::names::{GatewayId, RoomName, ShardId};
use crate::protocol::view::{ClusterView, NodeState, NodeView, ShardView};
use crate::storage::store::Store;
use crate::storage::writer::Writer;
use ractor::{ActorRef, pg};
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
    /// Where it is written.
    pub writer: Writer,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The time.
    pub clock: Clock,
    reads: Arc<Semaphore>,
    epochs: AtomicU64,
}

impl Context {
    /// A context for the node called `node`.
    #[must_use]
    pub fn new(
        node: String,
        gateways: usize,
        shards: u16,
        limits: Limits,
        store: Store,
        writer: Writer,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            node,
            url: None,
            gateways,
            shards,
            limits,
            store,
            writer,
            metrics,
            clock: Clock::start(),
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            epochs: AtomicU64::new(0),
        }
    }

    /// Tells where browsers reach the node.
    #[must_use]
    pub fn reachable_at(mut self, url: Option<String>) -> Self {
        self.url = url;
        self
    }

    /// The cluster as this node sees it: itself, the one copy of every shard.
    #[must_use]
    pub fn cluster_view(&self) -> ClusterView {
        let shards: Vec<ShardView> = (0..self.shards)
            .map(|id| ShardView {
                id,
                leader: leader_of(ShardId(id)).map(|_| self.node.clone()),
                replicas: vec![self.node.clone()],
                // There was never anybody to elect another.
                term: 1,
                commit: 0,
                lag: Some(0),
            })
            .collect();
        let shards_led = shards.iter().filter(|shard| shard.leader.is_some()).count();
        let this = NodeView {
            name: self.node.clone(),
            url: self.url.clone(),
            state: NodeState::Up,
            ready: shards_led == shards.len(),
            shards_led: shards_led as u32,
            rooms: self.metrics.rooms.get().max(0) as u64,
            sessions: self.metrics.sessions.get().max(0) as u64,
        };
        ClusterView { node: self.node.clone(), nodes: vec![this], shards }
    }

    /// The gateway of this node that carries `room`.
    #[must_use]
    pub fn gateway_of(&self, room: &RoomName) -> GatewayId {
        GatewayId::new(&self.node, room.gateway_index(self.gateways))
    }

    /// The next instance of a room: above every earlier one.
    pub(super) fn next_epoch(&self) -> Epoch {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
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

/// The actor that leads `shard`, wherever it is.
#[must_use]
pub fn leader_of(shard: ShardId) -> Option<ActorRef<HostMsg>> {
    member_of(&shard.leader_group()).map(Into::into)
}

/// The gateway with this id, wherever it is.
#[must_use]
pub fn gateway(id: &GatewayId) -> Option<ActorRef<GatewayMsg>> {
    member_of(&id.group()).map(Into::into)
}

fn member_of(group: &str) -> Option<ractor::ActorCell> {
    pg::get_scoped_members(&SCOPE.to_owned(), &group.to_owned()).into_iter().next()
}

/// Wall clock for timestamps, monotonic clock for waiting.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    offset_ms: i64,
}

impl Clock {
    fn start() -> Self {
        #[cfg(feature = "fault-injection")]
        let offset_ms = super::fault::clock_offset_ms();
        #[cfg(not(feature = "fault-injection"))]
        let offset_ms = 0;
        Self { start: Instant::now(), offset_ms }
    }

    /// Milliseconds since the Unix epoch. May step back.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since_epoch.as_millis() as Timestamp).saturating_add_signed(self.offset_ms)
    }

    /// Milliseconds since the node started. Never steps back.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
