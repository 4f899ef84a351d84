//! What other layers use.

use super::courier::Courier;
use super::credit::Charge;
use super::dialer::dial_for_ever;
use super::keeper::{Event, Keeper, start_server};
use super::peer::{Link, Peer, PeerView};
use super::wire::{FRAME_BYTES_MAX, Hello, Kind};
use crate::metrics::Metrics;
use bytes::Bytes;
use ractor::{Actor, ActorRef};
use ractor_cluster::{NodeServerMessage, NodeSessionMessage};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::task::JoinHandle;

/// How long anything waits for an actor to stop.
const STOP_MAX: Duration = Duration::from_secs(1);

/// Once in how long something is logged that others can provoke at will.
const SELDOM: Duration = Duration::from_secs(10);

/// Takes a frame: from which peer, and its bytes. Called in the order in which the peer sent them, on the courier's
/// thread: it must not block.
pub type Handler = Arc<dyn Fn(&str, Bytes) + Send + Sync>;

/// What the links of a node need to know.
pub struct LinksConfig {
    /// The node's name.
    pub name: String,
    /// Where peers dial this node. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// The peers' names, and where each is dialled.
    pub peers: Vec<(String, String)>,
    /// The shared secret.
    pub cookie: String,
    /// What the node says of itself, to begin with.
    pub hello: Hello,
}

/// Why there can be no links.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address cannot be listened on.
    #[error("cannot listen for other nodes on {address}: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// An actor did not start.
    #[error("the links to other nodes did not start: {0}")]
    Start(String),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Why a frame was not sent. It is not queued either: whoever sends it repairs the gap once the peer is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer is not up.
    #[error("the peer is not linked")]
    Unlinked,
    /// Too much is on its way to the peer.
    #[error("too much is on its way to the peer")]
    Full,
    /// The frame is larger than [`FRAME_BYTES_MAX`].
    #[error("the frame is too large")]
    TooLarge,
}

/// The links of a node. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

/// What the links' tasks and actors share.
pub(super) struct Shared {
    pub(super) name: String,
    /// The node's name and process, as the library knows it.
    pub(super) process: String,
    pub(super) listen: SocketAddr,
    pub(super) cookie: String,
    pub(super) handler: Handler,
    pub(super) metrics: Arc<Metrics>,
    pub(super) seldom_unreadable: Seldom,
    pub(super) seldom_strange: Seldom,
    pub(super) seldom_turned_away: Seldom,
    pub(super) dials: AtomicU64,
    hello: RwLock<Arc<Hello>>,
    peers: RwLock<BTreeMap<String, Known>>,
    server: RwLock<Option<ActorRef<NodeServerMessage>>>,
    events: mpsc::UnboundedSender<Event>,
    changed: Arc<watch::Sender<u64>>,
    start: Instant,
    ending: Mutex<Option<Ending>>,
}

/// A peer and the task that dials it.
struct Known {
    peer: Arc<Peer>,
    dialer: AbortHandle,
}

/// What stops last.
struct Ending {
    courier: ActorRef<super::wire::CourierMsg>,
    keeper: JoinHandle<()>,
}

impl Links {
    /// Listens, and begins to dial.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(
        config: LinksConfig,
        handler: Handler,
        metrics: Arc<Metrics>,
    ) -> Result<Self, LinkError> {
        let listen = with_port(config.listen)?;
        let (events, incoming) = mpsc::unbounded_channel();
        let random = getrandom::u64().map_err(LinkError::Random)?;
        let shared = Arc::new(Shared {
            process: format!("{random:016x}"),
            name: config.name,
            listen,
            cookie: config.cookie,
            handler,
            metrics,
            seldom_unreadable: Seldom::default(),
            seldom_strange: Seldom::default(),
            seldom_turned_away: Seldom::default(),
            dials: AtomicU64::new(0),
            hello: RwLock::new(Arc::new(config.hello)),
            peers: RwLock::new(BTreeMap::new()),
            server: RwLock::new(None),
            events,
            changed: Arc::new(watch::Sender::new(0)),
            start: Instant::now(),
            ending: Mutex::new(None),
        });
        // The courier is in its group before any session can be: then a session that is ready knows it.
        let courier = Actor::spawn(None, Courier, Arc::clone(&shared)).await;
        let (courier, _) = courier.map_err(|error| LinkError::Start(error.to_string()))?;
        let server = match start_server(&shared).await {
            Ok(server) => server,
            Err(error) => {
                courier.stop(None);
                return Err(error);
            }
        };
        let keeper = tokio::spawn(Keeper::new(Arc::clone(&shared), server, incoming).run());
        *shared.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ending { courier, keeper });
        let links = Self { shared };
        for (name, addr) in config.peers {
            links.add_peer(name, addr);
        }
        Ok(links)
    }

    /// Where peers dial this node.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Makes a node a peer: it is dialled from now on, and may dial. One that is known under another address is
    /// forgotten first; under the same address nothing changes.
    pub fn add_peer(&self, name: String, addr: String) {
        if name == self.shared.name {
            return;
        }
        if self.shared.peer(&name).is_some_and(|peer| peer.addr == addr) {
            return;
        }
        self.remove_peer(&name);
        let changed = Arc::clone(&self.shared.changed);
        let peer = Arc::new(Peer::new(name.clone(), addr, changed, Arc::clone(&self.shared.metrics)));
        let dialer = tokio::spawn(dial_for_ever(Arc::clone(&self.shared), Arc::clone(&peer))).abort_handle();
        self.shared.peers_mut().insert(name, Known { peer, dialer });
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Ends the link to a peer, and has none with it from now on.
    pub fn remove_peer(&self, name: &str) {
        let known = self.shared.peers_mut().remove(name);
        if let Some(known) = known {
            known.end(&self.shared);
            self.shared.changed.send_modify(|count| *count += 1);
        }
    }

    /// Sends a frame to a peer. Frames to one peer arrive in the order in which they were sent, or are lost with
    /// the link.
    ///
    /// # Errors
    /// When the peer is not up, too much is on its way to it, or the frame is too large.
    pub fn send(&self, peer: &str, frame: Bytes) -> Result<(), SendError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        let peer = self.shared.peer(peer).ok_or(SendError::Unlinked)?;
        let link = peer.up().ok_or(SendError::Unlinked)?;
        let charge = link.charge(frame.len());
        if charge == Charge::Full {
            return Err(SendError::Full);
        }
        let us = self.shared.hello();
        if !link.post(us.header(Kind::Frame), frame) {
            return Err(SendError::Unlinked);
        }
        if charge == Charge::BeatDue {
            link.beat(&us, true, self.shared.now());
        }
        Ok(())
    }

    /// Counts a cast of so many bytes that the caller is about to make to a remote actor of a peer. When this is
    /// false, the peer is not up or too much is on its way to it: the cast must not be made.
    #[must_use]
    pub fn charge(&self, peer: &str, bytes: usize) -> bool {
        let Some(link) = self.shared.peer(peer).and_then(|peer| peer.up()) else { return false };
        match link.charge(bytes) {
            Charge::Full => false,
            Charge::Taken => true,
            Charge::BeatDue => {
                link.beat(&self.shared.hello(), true, self.shared.now());
                true
            }
        }
    }

    /// All peers, by name.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.shared.all_peers().iter().map(|peer| peer.view()).collect()
    }

    /// Whether a peer is linked and its hello was accepted.
    #[must_use]
    pub fn is_up(&self, peer: &str) -> bool {
        self.shared.peer(peer).is_some_and(|peer| peer.up().is_some())
    }

    /// Counts the changes of what [`Links::peers`] says, round trips aside.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// What the node says of itself.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello::clone(&self.shared.hello())
    }

    /// Says something else of this node from now on, to those linked at once. Peers are judged anew by it.
    pub fn set_hello(&self, hello: Hello) {
        {
            let mut ours = self.shared.hello.write().unwrap_or_else(PoisonError::into_inner);
            if **ours == hello {
                return;
            }
            *ours = Arc::new(hello);
        }
        for peer in self.shared.all_peers() {
            if let Some((link, acquainted)) = peer.link() {
                self.shared.greet(&link);
                if let Some(theirs) = peer.view().hello.filter(|_| acquainted) {
                    self.shared.judge(&peer, theirs);
                }
            }
        }
    }

    /// Ends all links and listens no more. What was sent last may not arrive.
    pub async fn stop(&self) {
        let known = std::mem::take(&mut *self.shared.peers_mut());
        for known in known.into_values() {
            known.end(&self.shared);
        }
        let ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Ending { courier, keeper }) = ending else { return };
        self.shared.tell(Event::Stop);
        let _ = tokio::time::timeout(STOP_MAX * 2, keeper).await;
        let _ = courier.stop_and_wait(None, Some(STOP_MAX)).await;
    }
}

impl Known {
    fn end(&self, shared: &Shared) {
        self.dialer.abort();
        if let Some((link, _)) = self.peer.link() {
            self.peer.lost(link.id());
            shared.cut(&link.session, "no longer a peer");
        }
    }
}

impl Shared {
    /// The time since the links began. Also runs while the process is stopped.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn hello(&self) -> Arc<Hello> {
        Arc::clone(&self.hello.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn peer(&self, name: &str) -> Option<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(name).map(|known| Arc::clone(&known.peer))
    }

    pub(super) fn all_peers(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().map(|known| Arc::clone(&known.peer)).collect()
    }

    fn peers_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Known>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn server(&self) -> Option<ActorRef<NodeServerMessage>> {
        self.server.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_server(&self, server: Option<ActorRef<NodeServerMessage>>) {
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Tells the keeper. When it is gone the links have stopped, and nothing matters any more.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    pub(super) fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    /// Says who we are.
    pub(super) fn greet(&self, link: &Link) {
        let us = self.hello();
        match postcard::to_stdvec(&*us) {
            Ok(hello) => {
                link.post(us.header(Kind::Hello), hello.into());
            }
            Err(error) => tracing::error!("this node's hello could not be written: {error}"),
        }
    }

    /// Ends a session.
    ///
    /// Its connection first: a session that stops kills its children, and one whose socket takes nothing more would
    /// leave that socket behind, with all that waits for it. Stopped by itself, the connection lets go of both.
    pub(super) fn cut(&self, session: &ActorRef<NodeSessionMessage>, why: &'static str) {
        let session = session.clone();
        tokio::spawn(async move {
            let connection = session.get_children().into_iter().find(|child| child.get_id().is_local());
            if let Some(connection) = connection {
                let _ = connection.stop_and_wait(Some(why.to_owned()), Some(STOP_MAX)).await;
            }
            session.stop(Some(why.to_owned()));
        });
    }
}

/// Says when something may be logged again.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    again_at_ms: AtomicU64,
}

impl Seldom {
    pub(super) fn due(&self, now: Duration) -> bool {
        let now_ms = now.as_millis() as u64;
        let again_at_ms = self.again_at_ms.load(Ordering::Relaxed);
        let next = now_ms + SELDOM.as_millis() as u64;
        now_ms >= again_at_ms
            && self
                .again_at_ms
                .compare_exchange(again_at_ms, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// The address with a port in it: the library does not say which one it was given.
fn with_port(listen: SocketAddr) -> Result<SocketAddr, LinkError> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    let free = std::net::TcpListener::bind(listen).and_then(|listener| listener.local_addr());
    free.map_err(|error| LinkError::Bind { address: listen, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_provoke_is_logged_seldom() {
        let seldom = Seldom::default();
        assert!(seldom.due(Duration::from_secs(1)));
        assert!(!seldom.due(Duration::from_secs(2)));
        assert!(seldom.due(Duration::from_secs(11)));
    }
}
