//! What is known of a peer, and the link to it.

use super::credit::{Charge, Credit};
use super::wire::{CourierMsg, Header, Hello, Kind};
use crate::metrics::Metrics;
use bytes::Bytes;
use ractor::{ActorId, ActorRef};
use ractor_cluster::NodeSessionMessage;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How old a hello may be that arrived before its link was known to be ready.
const EARLY_HELLO_MAX: Duration = Duration::from_secs(1);

/// How a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// Linked, and its hello was accepted.
    Up,
    /// It fell silent, and its link was ended. It may be back at any moment.
    Suspect,
    /// There is no link.
    Down,
    /// It answers, but is of another kind or of another cluster.
    Refused,
}

impl PeerState {
    /// The state in one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Refused => "refused",
        }
    }
}

/// A peer as other layers see it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: PeerState,
    /// What it said of itself last, also when it is no longer there.
    pub hello: Option<Hello>,
    /// How long it took to answer the last beat, in ms. `None` unless it is up.
    pub rtt_ms: Option<f64>,
}

/// A configured peer.
pub(super) struct Peer {
    pub(super) name: String,
    /// Where it is dialled.
    pub(super) addr: String,
    /// Told when a link has ended.
    pub(super) unlinked: Notify,
    rtt_us: AtomicU64,
    standing: Mutex<Standing>,
    changed: Arc<watch::Sender<u64>>,
    metrics: Arc<Metrics>,
}

/// How a peer stands. Invariant: `Up` only with a link on which a hello was accepted.
struct Standing {
    state: PeerState,
    link: Option<Arc<Link>>,
    /// Whether the peer's hello was heard on this link.
    acquainted: bool,
    hello: Option<Hello>,
    /// A hello without a link, and when it came.
    early: Option<(Hello, Duration)>,
    /// Why the peer is or was refused; kept until it is up, so that it is said once.
    refusal: Option<String>,
    /// Whether it was up since the dialer asked last.
    was_up: bool,
}

/// A session that is ready.
pub(super) struct Link {
    /// The session.
    pub(super) session: ActorRef<NodeSessionMessage>,
    /// The peer's name and process, as the library knows it.
    pub(super) process: String,
    courier: ActorRef<CourierMsg>,
    credit: Credit,
    heard_us: AtomicU64,
}

impl Link {
    pub(super) fn new(
        number: u64,
        session: ActorRef<NodeSessionMessage>,
        process: String,
        courier: ActorRef<CourierMsg>,
        now: Duration,
    ) -> Self {
        let heard_us = AtomicU64::new(now.as_micros() as u64);
        Self { session, process, courier, credit: Credit::of_link(number), heard_us }
    }

    pub(super) fn id(&self) -> ActorId {
        self.session.get_id()
    }

    /// Notes that the peer is alive.
    pub(super) fn heard(&self, now: Duration) {
        self.heard_us.store(now.as_micros() as u64, Ordering::Relaxed);
    }

    pub(super) fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_micros(self.heard_us.load(Ordering::Relaxed)))
    }

    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.credit.charge(bytes)
    }

    /// Sends a letter; false when the session has ended.
    pub(super) fn post(&self, header: Header, payload: Bytes) -> bool {
        self.courier.cast(CourierMsg::Letter(header, payload)).is_ok()
    }

    /// Sends a beat; false when the session has ended.
    pub(super) fn beat(&self, us: &Hello, acquainted: bool, now: Duration) -> bool {
        let seq = self.credit.beat(now);
        self.post(us.header(Kind::Beat { seq, acquainted }), Bytes::new())
    }
}

impl Hello {
    /// The header of a message from the node that says this.
    pub(super) fn header(&self, kind: Kind) -> Header {
        Header { from: self.name.clone(), incarnation: self.incarnation, kind }
    }
}

/// What became of a session that is ready.
pub(super) enum Linked {
    /// It is the peer's link now; it has taken the place of this one.
    Taken(Option<Arc<Link>>),
    /// There is a link with another process of that name.
    Occupied,
}

impl Peer {
    pub(super) fn new(
        name: String,
        addr: String,
        changed: Arc<watch::Sender<u64>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let standing = Standing {
            state: PeerState::Down,
            link: None,
            acquainted: false,
            hello: None,
            early: None,
            refusal: None,
            was_up: false,
        };
        Self {
            name,
            addr,
            unlinked: Notify::new(),
            rtt_us: AtomicU64::new(0),
            standing: Mutex::new(standing),
            changed,
            metrics,
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Every step below leaves the standing whole.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, standing: &mut Standing, state: PeerState) {
        if standing.state == state {
            return;
        }
        match (standing.state, state) {
            (PeerState::Up, _) => self.metrics.links.dec(),
            (_, PeerState::Up) => self.metrics.links.inc(),
            _ => {}
        }
        standing.state = state;
        self.changed.send_modify(|count| *count += 1);
    }

    /// How the peer stands, for other layers.
    pub(super) fn view(&self) -> PeerView {
        let standing = self.standing();
        let up = standing.state == PeerState::Up;
        let rtt_us = self.rtt_us.load(Ordering::Relaxed);
        PeerView {
            name: self.name.clone(),
            state: standing.state,
            hello: standing.hello.clone(),
            rtt_ms: (up && rtt_us > 0).then_some(rtt_us as f64 / 1000.0),
        }
    }

    pub(super) fn state(&self) -> PeerState {
        self.standing().state
    }

    /// Whether it was up since this was asked last.
    pub(super) fn take_was_up(&self) -> bool {
        std::mem::take(&mut self.standing().was_up)
    }

    /// The link, whatever is known of who is at its other end, and whether its hello was heard.
    pub(super) fn link(&self) -> Option<(Arc<Link>, bool)> {
        let standing = self.standing();
        standing.link.clone().map(|link| (link, standing.acquainted))
    }

    /// The link, if the peer is up.
    pub(super) fn up(&self) -> Option<Arc<Link>> {
        let standing = self.standing();
        if standing.state == PeerState::Up { standing.link.clone() } else { None }
    }

    /// The link, if the peer is up and is the one with this incarnation.
    pub(super) fn up_as(&self, incarnation: u64) -> Option<Arc<Link>> {
        let standing = self.standing();
        let same = standing.hello.as_ref().is_some_and(|hello| hello.incarnation == incarnation);
        if standing.state == PeerState::Up && same { standing.link.clone() } else { None }
    }

    /// A session with it is ready. A hello that was faster than this news is returned, to be judged.
    pub(super) fn linked(&self, link: &Arc<Link>, now: Duration) -> (Linked, Option<Hello>) {
        let mut standing = self.standing();
        let same = standing.link.as_ref().map(|old| old.process == link.process);
        if same == Some(false) {
            return (Linked::Occupied, None);
        }
        let old = standing.link.replace(Arc::clone(link));
        if old.is_none() {
            standing.acquainted = false;
        }
        let early = standing.early.take();
        let early =
            early.filter(|(_, at)| now.saturating_sub(*at) <= EARLY_HELLO_MAX).map(|(hello, _)| hello);
        (Linked::Taken(old), early)
    }

    /// Its hello was accepted. True when it is up from now on.
    pub(super) fn accept(&self, hello: Hello, now: Duration) -> bool {
        let mut standing = self.standing();
        if standing.link.is_none() {
            standing.early = Some((hello, now));
            return false;
        }
        let news = standing.hello.as_ref() != Some(&hello);
        standing.hello = Some(hello);
        standing.acquainted = true;
        standing.refusal = None;
        standing.was_up = true;
        let rises = standing.state != PeerState::Up;
        if rises {
            self.set(&mut standing, PeerState::Up);
        } else if news {
            self.changed.send_modify(|count| *count += 1);
        }
        rises
    }

    /// It cannot be worked with. The link to end, and whether this is to be said: once until it is up again.
    pub(super) fn refuse(&self, why: &str) -> (Option<Arc<Link>>, bool) {
        let mut standing = self.standing();
        let news = standing.refusal.as_deref() != Some(why);
        standing.refusal = Some(why.to_owned());
        let link = standing.link.take();
        standing.acquainted = false;
        self.set(&mut standing, PeerState::Refused);
        drop(standing);
        self.unlinked.notify_one();
        (link, news)
    }

    /// The link is to end because the peer is silent. False when another link has taken its place.
    pub(super) fn suspect(&self, link: &Link) -> bool {
        self.unlink(link.id(), PeerState::Suspect)
    }

    /// A session has ended. False when it was not the peer's link.
    pub(super) fn lost(&self, session: ActorId) -> bool {
        self.unlink(session, PeerState::Down)
    }

    fn unlink(&self, session: ActorId, state: PeerState) -> bool {
        let mut standing = self.standing();
        if standing.link.as_ref().is_none_or(|link| link.id() != session) {
            return false;
        }
        standing.link = None;
        standing.acquainted = false;
        self.set(&mut standing, state);
        drop(standing);
        self.unlinked.notify_one();
        true
    }

    /// It does not even take connections.
    pub(super) fn unreachable(&self) {
        let mut standing = self.standing();
        if standing.link.is_none() {
            self.set(&mut standing, PeerState::Down);
        }
    }

    /// It answered a beat.
    pub(super) fn beaten(&self, link: &Link, seq: u64, now: Duration) {
        if let Some(rtt) = link.credit.beaten(seq, now) {
            self.rtt_us.store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
            self.metrics.heartbeat_seconds.observe(rtt.as_secs_f64());
        }
    }
}
