//! The other nodes: who is linked, what they say of themselves, and how much may be sent to them.

use super::SCOPE;
use super::context::{Clock, host_at};
use super::shard_host::HostMsg;
use crate::cluster::{Hello, LinkError, Links, LinksConfig, PeerState, PeerView};
use crate::consensus::node::{Consensus, Past, Peer, ShardStatus};
use crate::consensus::transport;
use crate::consensus::types::Incarnation;
use crate::metrics::Metrics;
use crate::protocol::Timestamp;
use crate::protocol::names::ShardId;
use crate::protocol::view::{NodeState, NodeView};
use crate::protocol::wire;
use crate::storage::store::Store;
use bytes::{BufMut, Bytes, BytesMut};
use ractor::{ActorCell, ActorRef, pg};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing::info;

/// The version of what nodes say to each other. Nodes of another version are not linked.
const VERSION: u16 = 1;

/// The first byte of a frame: what the rest is.
const FRAME_CONSENSUS: u8 = 0;
const FRAME_REPORT: u8 = 1;

/// How often nodes tell each other how they fare.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What a node tells the others of itself, for whoever asks any of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    leaving: bool,
    ready: bool,
    rooms: u64,
    sessions: u64,
    /// Whom it is linked to.
    linked: Vec<String>,
    /// What its clock says.
    clock: Timestamp,
    /// The shards that it leads: who does not keep them knows of them from here only.
    led: Vec<ShardStatus>,
}

/// What is known of the other nodes.
pub struct Neighbours {
    links: Option<Links>,
    shards: u16,
    metrics: Arc<Metrics>,
    consensus: OnceLock<Weak<Consensus>>,
    /// The linked ones: a copy that is cheap to ask.
    incarnations: RwLock<HashMap<String, Incarnation>>,
    reports: RwLock<HashMap<String, Report>>,
    /// Who led each shard the last that was heard of it: the term, and by how many ms its clock is ahead of ours.
    /// Remembered when it is gone.
    clocks: RwLock<HashMap<ShardId, (u64, i64)>>,
    clock: Clock,
    leaving: AtomicBool,
}

/// What it takes to find the others and to be found by them.
pub struct Neighbourhood {
    /// This node's name.
    pub name: String,
    /// The base URL at which browsers reach it.
    pub url: Option<String>,
    /// Where the others dial it.
    pub listen: SocketAddr,
    /// The others' names, and where each is dialled.
    pub peers: Vec<(String, String)>,
    /// The shared secret.
    pub cookie: String,
}

/// The host that leads a shard.
#[derive(Clone)]
pub struct Leader {
    /// The host.
    pub host: ActorRef<HostMsg>,
    /// The node it is on, if that is another.
    pub node: Option<String>,
}

/// Told the base URLs of all nodes whenever they change.
pub type OnUrls = Box<dyn Fn(Vec<String>) + Send>;

impl Neighbours {
    /// Nobody.
    #[must_use]
    pub fn none(shards: u16, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self::new(None, shards, metrics))
    }

    /// Listens for the others, and begins to dial them. What they say counts from [`Neighbours::follow`] on.
    ///
    /// # Errors
    /// When `cluster.listen` cannot be listened on.
    pub async fn start(
        hood: Neighbourhood,
        store: &Store,
        past: &Past,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, LinkError> {
        let Neighbourhood { name, url, listen, peers, cookie } = hood;
        let shards = store.shards();
        let hello = Hello {
            version: VERSION,
            name: name.clone(),
            incarnation: store.incarnation(),
            cluster_id: past.charter.as_ref().map(|charter| charter.cluster_id),
            shards,
            has_past: past.any,
            url: url.unwrap_or_default(),
        };
        let links_config = LinksConfig { name, listen, peers, cookie, hello };
        let receiver: Arc<OnceLock<Weak<Self>>> = Arc::new(OnceLock::new());
        let handler = {
            let receiver = Arc::clone(&receiver);
            Arc::new(move |peer: &str, frame: Bytes| {
                if let Some(neighbours) = receiver.get().and_then(Weak::upgrade) {
                    neighbours.receive(peer, &frame);
                }
            })
        };
        let links = Links::start(links_config, handler, Arc::clone(&metrics)).await?;
        let neighbours = Arc::new(Self::new(Some(links), shards, metrics));
        let _ = receiver.set(Arc::downgrade(&neighbours));
        Ok(neighbours)
    }

    fn new(links: Option<Links>, shards: u16, metrics: Arc<Metrics>) -> Self {
        Self {
            links,
            shards,
            metrics,
            consensus: OnceLock::new(),
            incarnations: RwLock::new(HashMap::new()),
            reports: RwLock::new(HashMap::new()),
            clocks: RwLock::new(HashMap::new()),
            clock: Clock::start(),
            leaving: AtomicBool::new(false),
        }
    }

    /// Where the others dial this node.
    #[must_use]
    pub fn listen(&self) -> Option<SocketAddr> {
        self.links.as_ref().map(Links::listen)
    }

    /// Follows who comes and goes, until the task is aborted.
    pub fn follow(self: &Arc<Self>, consensus: &Arc<Consensus>, on_urls: OnUrls) -> Option<JoinHandle<()>> {
        let _ = self.consensus.set(Arc::downgrade(consensus));
        let links = self.links.clone()?;
        let (neighbours, consensus) = (Arc::clone(self), Arc::clone(consensus));
        Some(tokio::spawn(async move {
            let (mut links_changed, mut charter) = (links.changed(), consensus.charter());
            let mut every = tokio::time::interval(REPORT_EVERY);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                neighbours.note_links(&links.peers(), &consensus, &on_urls);
                tokio::select! {
                    changed = links_changed.changed() => if changed.is_err() { return },
                    changed = charter.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let cluster_id = charter.borrow_and_update().as_ref().map(|charter| charter.cluster_id);
                        let hello = links.hello();
                        if hello.cluster_id != cluster_id && cluster_id.is_some() {
                            info!("this node belongs to a cluster now");
                            links.set_hello(Hello { cluster_id, has_past: true, ..hello });
                        }
                    }
                    _ = every.tick() => neighbours.report(&links, &consensus),
                }
            }
        }))
    }

    fn note_links(&self, peers: &[PeerView], consensus: &Consensus, on_urls: &OnUrls) {
        let up = peers.iter().filter(|peer| peer.state == PeerState::Up);
        let linked: HashMap<String, Incarnation> =
            up.filter_map(|peer| Some((peer.name.clone(), peer.hello.as_ref()?.incarnation))).collect();
        let gone: Vec<String> = {
            let mut known = self.incarnations.write().unwrap_or_else(PoisonError::into_inner);
            let gone = known.keys().filter(|name| !linked.contains_key(*name)).cloned().collect();
            *known = linked;
            gone
        };
        for name in gone {
            self.reports.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
            consensus.unlinked(&name);
        }
        on_urls(
            peers
                .iter()
                .filter_map(|peer| peer.hello.as_ref())
                .map(|hello| hello.url.clone())
                .filter(|url| !url.is_empty())
                .collect(),
        );
    }

    fn receive(&self, peer: &str, frame: &[u8]) {
        match frame {
            [FRAME_CONSENSUS, body @ ..] => {
                if let Some(consensus) = self.consensus.get().and_then(Weak::upgrade) {
                    consensus.receive(peer, body);
                }
            }
            [FRAME_REPORT, body @ ..] => {
                if let Some(report) = wire::decode::<Report>(body) {
                    self.note_clocks(&report);
                    self.reports
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(peer.to_owned(), report);
                }
            }
            _ => {}
        }
    }

    fn report(&self, links: &Links, consensus: &Consensus) {
        let mut report = self.own_report();
        report.led = consensus.status().into_iter().filter(|shard| shard.lag.is_some()).collect();
        self.note_clocks(&report);
        let lag = report.led.iter().filter_map(|shard| shard.lag).max().unwrap_or(0);
        self.metrics.commit_lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        let frame = tagged(FRAME_REPORT, &wire::encode(&report));
        for peer in links.peers() {
            // Who is not there is told the next time.
            let _ = links.send(&peer.name, frame.clone());
        }
    }

    /// The host that leads `shard`: one of those that show themselves as its leader and belong here. It says so if it is
    /// wrong.
    #[must_use]
    pub fn leader_of(&self, shard: ShardId) -> Option<Leader> {
        let leaders = pg::get_scoped_members(&SCOPE.to_owned(), &shard.leader_group());
        leaders.into_iter().find_map(|leader| self.leader(shard, leader))
    }

    /// `host` as the leader of `shard`, if it is a host of it on this node or a linked one.
    #[must_use]
    pub fn leader(&self, shard: ShardId, host: ActorCell) -> Option<Leader> {
        if host.get_id().is_local() {
            return Some(Leader { host: host.into(), node: None });
        }
        let is_it =
            |node: &&String| host_at(shard, node).is_some_and(|known| known.get_id() == host.get_id());
        let linked = self.incarnations.read().unwrap_or_else(PoisonError::into_inner);
        let node = linked.keys().find(is_it)?.clone();
        Some(Leader { host: host.into(), node: Some(node) })
    }

    /// The shards that nobody leads, as far as this node sees.
    #[must_use]
    pub fn shards_without_leader(&self) -> Vec<ShardId> {
        (0..self.shards).map(ShardId).filter(|shard| self.leader_of(*shard).is_none()).collect()
    }

    fn own_report(&self) -> Report {
        Report {
            leaving: self.leaving.load(Ordering::Relaxed),
            ready: self.shards_without_leader().is_empty(),
            rooms: self.metrics.rooms.get().max(0) as u64,
            sessions: self.metrics.sessions.get().max(0) as u64,
            linked: {
                let linked = self.incarnations.read().unwrap_or_else(PoisonError::into_inner);
                linked.keys().cloned().collect()
            },
            clock: self.clock.now(),
            led: Vec::new(),
        }
    }

    fn note_clocks(&self, report: &Report) {
        let ahead_ms = report.clock.cast_signed().saturating_sub(self.clock.now().cast_signed());
        let mut clocks = self.clocks.write().unwrap_or_else(PoisonError::into_inner);
        for led in report.led.iter().filter(|led| led.shard.0 < self.shards) {
            let known = clocks.entry(led.shard).or_default();
            if led.term >= known.0 {
                *known = (led.term, ahead_ms);
            }
        }
    }

    /// What the clock of whoever led `shard` before `term` says now, as far as it is ahead of this node's own.
    #[must_use]
    pub fn clock_of_earlier_leader(&self, shard: ShardId, term: u64) -> Timestamp {
        let clocks = self.clocks.read().unwrap_or_else(PoisonError::into_inner);
        let earlier = clocks.get(&shard).filter(|(known, _)| *known < term);
        let ahead_ms = earlier.map_or(0, |(_, ahead_ms)| (*ahead_ms).max(0));
        self.clock.now().saturating_add_signed(ahead_ms)
    }

    /// How every shard stands, by what this node knows itself and what those who lead have told.
    #[must_use]
    pub fn shards(&self, consensus: &Consensus) -> Vec<ShardStatus> {
        let mut shards = consensus.status();
        let reports = self.reports.read().unwrap_or_else(PoisonError::into_inner);
        for told in reports.values().flat_map(|report| &report.led) {
            if let Some(known) = shards.iter_mut().find(|known| known.shard == told.shard)
                && (told.term > known.term || (told.term == known.term && known.lag.is_none()))
            {
                known.clone_from(told);
            }
        }
        shards
    }

    /// The linked nodes.
    #[must_use]
    pub fn linked(&self) -> Vec<Peer> {
        let Some(links) = &self.links else { return Vec::new() };
        let up: Vec<PeerView> =
            links.peers().into_iter().filter(|peer| peer.state == PeerState::Up).collect();
        let names: Vec<String> = up.iter().map(|peer| peer.name.clone()).collect();
        let reports = self.reports.read().unwrap_or_else(PoisonError::into_inner);
        up.into_iter()
            .filter_map(|peer| {
                let hello = peer.hello?;
                let report = reports.get(&peer.name);
                let sees = |name: &String| {
                    *name == peer.name || report.is_some_and(|report| report.linked.contains(name))
                };
                Some(Peer {
                    incarnation: hello.incarnation,
                    has_past: hello.has_past,
                    leaving: report.is_some_and(|report| report.leaving),
                    sees_all: names.iter().all(sees),
                    name: peer.name,
                })
            })
            .collect()
    }

    /// Whether the node called `name` is linked and belongs here. The library shows the groups of a node before that node
    /// has said who it is; nothing in them is to be believed until then.
    #[must_use]
    pub fn is_linked(&self, name: &str) -> bool {
        self.incarnations.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Whether so many bytes may be sent to the node called `node` now; if so, they count.
    #[must_use]
    pub fn charge(&self, node: &str, bytes: usize) -> bool {
        self.links.as_ref().is_some_and(|links| links.charge(node, bytes))
    }

    /// All nodes as this one, called `name`, sees them, by name. `led` says how many shards each leads.
    #[must_use]
    pub fn view(&self, name: &str, url: Option<String>, led: &HashMap<String, u32>) -> Vec<NodeView> {
        let leads = |name: &str| led.get(name).copied().unwrap_or(0);
        let Report { ready, rooms, sessions, .. } = self.own_report();
        let state = NodeState::Up;
        let own =
            NodeView { name: name.to_owned(), url, state, ready, shards_led: leads(name), rooms, sessions };
        let mut nodes = vec![own];
        let reports = self.reports.read().unwrap_or_else(PoisonError::into_inner);
        for peer in self.links.as_ref().map(Links::peers).unwrap_or_default() {
            let state = match peer.state {
                PeerState::Up => NodeState::Up,
                PeerState::Suspect => NodeState::Suspect,
                PeerState::Down => NodeState::Down,
                PeerState::Refused => NodeState::Refused,
            };
            let up = state == NodeState::Up;
            let report = reports.get(&peer.name).filter(|_| up).cloned().unwrap_or_default();
            nodes.push(NodeView {
                shards_led: leads(&peer.name),
                url: peer.hello.map(|hello| hello.url).filter(|url| !url.is_empty()),
                name: peer.name,
                state,
                ready: report.ready,
                rooms: report.rooms,
                sessions: report.sessions,
            });
        }
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    /// Tells the others that this node is about to stop: nobody gives it anything to lead any more.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let (Some(links), Some(consensus)) = (&self.links, self.consensus.get().and_then(Weak::upgrade)) {
            self.report(links, &consensus);
        }
    }

    /// Ends all links.
    pub async fn stop(&self) {
        if let Some(links) = &self.links {
            links.stop().await;
        }
    }
}

impl transport::Links for Neighbours {
    fn send(&self, peer: &str, frame: Bytes) -> bool {
        self.links.as_ref().is_some_and(|links| links.send(peer, tagged(FRAME_CONSENSUS, &frame)).is_ok())
    }

    fn incarnation_of(&self, peer: &str) -> Option<Incarnation> {
        self.incarnations.read().unwrap_or_else(PoisonError::into_inner).get(peer).copied()
    }
}

fn tagged(kind: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + body.len());
    frame.put_u8(kind);
    frame.put_slice(body);
    frame.freeze()
}
