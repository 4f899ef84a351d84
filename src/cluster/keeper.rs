//! The keeper: watches every session of the library, and every peer's pulse.

use super::links::{LinkError, Shared};
use super::peer::{Link, Linked, Peer};
use super::{BEAT_EVERY, SUSPECT_AFTER};
use crate::protocol::names::{SCOPE, node_group};
use ractor::{Actor, ActorId, ActorRef, SpawnErr, pg};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{NodeEventSubscription, NodeServer, NodeServerMessage, NodeSessionMessage};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How long a session may take to become ready.
const READY_MAX: Duration = Duration::from_secs(2);

/// How long a peer may take to say hello once its session is ready.
const HELLO_MAX: Duration = Duration::from_secs(2);

/// By how much our own tick may be late before we take it that it was we who were away, and not everybody else.
const LATE_MAX: Duration = Duration::from_secs(1);

/// Connections from outside that may be on their way to becoming ready at the same time.
const ARRIVING_MAX: usize = 64;

/// Names of strangers that are remembered, so that each is complained of once.
const STRANGERS_MAX: usize = 64;

/// Largest message taken from a session. Whatever fits the credit arrives, with what is written around it.
const MESSAGE_BYTES_MAX: u64 = super::CREDIT_BYTES_MAX + 1024 * 1024;

/// How long to wait before the library's server is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// What the keeper is told.
pub(super) enum Event {
    /// A dialer hands a connection with this label to the library.
    Dialled { label: String, done: oneshot::Sender<DialEnd> },
    /// A session has begun.
    Opened(NodeServerSessionInformation),
    /// Its peer knows the cookie.
    Authenticated(ActorId),
    /// Both sides have told each other of their actors.
    Ready(NodeServerSessionInformation),
    /// A session has ended.
    Ended(NodeServerSessionInformation),
    /// All links are to end.
    Stop,
}

/// What became of a dialled connection.
pub(super) enum DialEnd {
    Ready,
    TurnedAway,
    Ended,
    Silent,
}

/// The library's server, and its end.
pub(super) type Server = (ActorRef<NodeServerMessage>, JoinHandle<()>);

/// A session that is not ready yet.
struct Arriving {
    session: ActorRef<NodeSessionMessage>,
    since: Duration,
    authenticated: bool,
    late: bool,
    dialled: Option<oneshot::Sender<DialEnd>>,
}

/// The task.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    server: Server,
    events: mpsc::UnboundedReceiver<Event>,
    dialled: HashMap<String, (oneshot::Sender<DialEnd>, Duration)>,
    arriving: HashMap<ActorId, Arriving>,
    /// Sessions that are ready, whether or not they are a peer's link, and since when.
    ready: HashMap<ActorId, (ActorRef<NodeSessionMessage>, Duration)>,
    strangers: BTreeSet<String>,
    last_tick: Duration,
    links: u64,
}

/// Passes what the library tells on to the keeper.
struct Watch(mpsc::UnboundedSender<Event>);

impl NodeEventSubscription for Watch {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send(Event::Opened(session));
    }

    fn node_session_authenticated(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send(Event::Authenticated(session.actor.get_id()));
    }

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send(Event::Ready(session));
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        let _ = self.0.send(Event::Ended(session));
    }
}

/// Starts the library's server: it listens from now on.
pub(super) async fn start_server(shared: &Shared) -> Result<Server, LinkError> {
    let server = NodeServer::new(
        shared.listen.port(),
        shared.cookie.clone(),
        shared.name.clone(),
        shared.process.clone(),
        None,
        Some(NodeConnectionMode::Isolated),
    )
    .with_listen_addr(shared.listen.ip())
    .with_max_inbound_frame_size(MESSAGE_BYTES_MAX);
    let server = Actor::spawn(None, server, ()).await.map_err(|error| match bind_error(error) {
        Ok(error) => LinkError::Bind { address: shared.listen, error },
        Err(other) => LinkError::Start(other.to_string()),
    })?;
    let watch = Box::new(Watch(shared.events()));
    let subscribe = NodeServerMessage::SubscribeToEvents { id: "links".to_owned(), subscription: watch };
    server.0.cast(subscribe).map_err(|error| LinkError::Start(error.to_string()))?;
    shared.set_server(Some(server.0.clone()));
    Ok(server)
}

/// The error of the listener inside the error of the server that started it.
fn bind_error(error: SpawnErr) -> Result<io::Error, SpawnErr> {
    let SpawnErr::StartupFailed(inner) = error else { return Err(error) };
    match inner.downcast::<io::Error>() {
        Ok(error) => Ok(*error),
        Err(inner) => match inner.downcast::<SpawnErr>() {
            Ok(inner) => bind_error(*inner),
            Err(inner) => Err(SpawnErr::StartupFailed(inner)),
        },
    }
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, server: Server, events: mpsc::UnboundedReceiver<Event>) -> Self {
        let last_tick = shared.now();
        Self {
            shared,
            server,
            events,
            dialled: HashMap::new(),
            arriving: HashMap::new(),
            ready: HashMap::new(),
            strangers: BTreeSet::new(),
            last_tick,
            links: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Ticks first: no flood of sessions may keep peers from being watched.
                biased;
                _ = ticks.tick() => self.tick(),
                event = self.events.recv() => match event {
                    None | Some(Event::Stop) => return self.stop().await,
                    Some(event) => self.event(event),
                },
                _ = &mut self.server.1 => self.restart().await,
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Dialled { label, done } => {
                self.dialled.insert(label, (done, self.shared.now()));
            }
            Event::Opened(session) => self.opened(&session),
            Event::Authenticated(session) => {
                if let Some(arriving) = self.arriving.get_mut(&session) {
                    arriving.authenticated = true;
                }
            }
            Event::Ready(session) => self.ready(&session),
            Event::Ended(session) => self.ended(&session),
            Event::Stop => {}
        }
    }

    fn opened(&mut self, session: &NodeServerSessionInformation) {
        let dialled = self.dialled.remove(&session.peer_addr).map(|(done, _)| done);
        let from_outside = self.arriving.values().filter(|arriving| arriving.dialled.is_none()).count();
        let too_many = dialled.is_none() && from_outside >= ARRIVING_MAX;
        if too_many {
            self.shared.cut(&session.actor, "too many connections at once");
        }
        let arriving = Arriving {
            session: session.actor.clone(),
            since: self.shared.now(),
            authenticated: false,
            late: too_many,
            dialled,
        };
        self.arriving.insert(session.actor.get_id(), arriving);
    }

    fn ready(&mut self, session: &NodeServerSessionInformation) {
        let now = self.shared.now();
        let id = session.actor.get_id();
        if let Some(done) = self.arriving.remove(&id).and_then(|arriving| arriving.dialled) {
            let _ = done.send(DialEnd::Ready);
        }
        self.ready.insert(id, (session.actor.clone(), now));
        let process = session.peer_name.as_ref().map(|name| name.name.clone()).unwrap_or_default();
        let name = process.rsplit_once('@').map_or(process.as_str(), |(name, _)| name);
        let Some(peer) = self.shared.peer(name) else {
            let why = if name == self.shared.name {
                format!("another node calls itself {name}, which is this node's own name")
            } else {
                format!("{name:?} is not among this node's peers")
            };
            self.turn_away(session, &process, &why);
            return;
        };
        let courier = pg::get_scoped_members(&SCOPE.to_owned(), &node_group(name))
            .into_iter()
            .find(|member| is_of(member.get_id(), session.node_id));
        let Some(courier) = courier else {
            self.turn_away(session, &process, &format!("{name} has no courier"));
            return;
        };
        self.links += 1;
        let link =
            Arc::new(Link::new(self.links, session.actor.clone(), process.clone(), courier.into(), now));
        let (linked, early) = peer.linked(&link, now);
        match linked {
            Linked::Occupied => {
                let why = format!("another process that calls itself {name} is linked already");
                self.turn_away(session, &process, &why);
                return;
            }
            Linked::Taken(Some(old)) => self.shared.cut(&old.session, "replaced"),
            Linked::Taken(None) => {}
        }
        self.shared.greet(&link);
        if let Some(hello) = early {
            self.shared.judge(&peer, hello);
        }
        self.beat(&peer, now);
    }

    /// Ends a session that is of no use, and says why, once for each process that comes.
    fn turn_away(&mut self, session: &NodeServerSessionInformation, process: &str, why: &str) {
        self.shared.cut(&session.actor, "refused");
        if self.strangers.len() >= STRANGERS_MAX {
            self.strangers.clear();
        }
        if self.strangers.insert(process.to_owned()) {
            tracing::warn!(addr = session.peer_addr, "a link is refused: {why}");
        }
    }

    fn ended(&mut self, session: &NodeServerSessionInformation) {
        let id = session.actor.get_id();
        let process = session.peer_name.as_ref().map_or("", |name| name.name.as_str());
        let name = process.rsplit_once('@').map_or(process, |(name, _)| name);
        let peer = self.shared.peer(name);
        self.ready.remove(&id);
        if let Some(peer) = &peer
            && peer.lost(id)
        {
            tracing::info!(peer = peer.name, "the link has ended");
        }
        let Some(arriving) = self.arriving.remove(&id) else { return };
        let end = match arriving {
            Arriving { late: true, .. } => DialEnd::Silent,
            Arriving { authenticated: false, .. } => DialEnd::TurnedAway,
            Arriving { .. } => DialEnd::Ended,
        };
        if let Some(done) = arriving.dialled {
            let _ = done.send(end);
            return;
        }
        // When two nodes dial each other at once, one of the connections ends like this too.
        let linked = peer.is_some_and(|peer| peer.link().is_some());
        if matches!(end, DialEnd::TurnedAway)
            && !linked
            && self.shared.seldom_turned_away.due(self.shared.now())
        {
            tracing::warn!(
                addr = session.peer_addr,
                claims = name,
                "a connection ended before it was authenticated: another cookie, or no node at all"
            );
        }
    }

    /// Looks after every link and every session on its way.
    fn tick(&mut self) {
        let now = self.shared.now();
        let since_last = now.saturating_sub(std::mem::replace(&mut self.last_tick, now));
        let away = since_last > BEAT_EVERY + LATE_MAX;
        if away {
            tracing::warn!(
                away_ms = since_last.as_millis() as u64,
                "this node stood still; its peers are given new time"
            );
        }
        for peer in self.shared.all_peers() {
            let Some((link, acquainted)) = peer.link() else { continue };
            if away {
                link.heard(now);
            }
            let silent = link.silent_for(now);
            if silent > SUSPECT_AFTER {
                if peer.suspect(&link) {
                    self.shared.cut(&link.session, "silent");
                    tracing::warn!(
                        peer = peer.name,
                        silent_ms = silent.as_millis() as u64,
                        "the peer is silent: its link is ended"
                    );
                }
                continue;
            }
            let ready = self.ready.get_mut(&link.id());
            if let Some((_, since)) = ready.filter(|_| !acquainted) {
                if away {
                    *since = now;
                }
                if now.saturating_sub(*since) > HELLO_MAX && peer.lost(link.id()) {
                    self.shared.cut(&link.session, "no hello");
                    tracing::warn!(
                        peer = peer.name,
                        "the peer is linked but says no hello: its link is ended"
                    );
                    continue;
                }
            }
            self.beat(&peer, now);
        }
        for arriving in self.arriving.values_mut() {
            if away {
                arriving.since = now;
            }
            if !arriving.late && now.saturating_sub(arriving.since) > READY_MAX {
                arriving.late = true;
                self.shared.cut(&arriving.session, "not ready in time");
            }
        }
        // Dropped, they tell their dialers.
        self.dialled.retain(|_, (_, since)| away || now.saturating_sub(*since) <= READY_MAX);
    }

    fn beat(&self, peer: &Peer, now: Duration) {
        // One whose session has just ended is heard of by its end.
        if let Some((link, acquainted)) = peer.link() {
            link.beat(&self.shared.hello(), acquainted, now);
        }
    }

    /// The library's server has failed, and all sessions with it.
    async fn restart(&mut self) {
        tracing::error!("the server of the links has failed and is started again");
        self.shared.set_server(None);
        self.shared.metrics.actor_failures.inc();
        self.dialled.clear();
        self.arriving.clear();
        self.ready.clear();
        for peer in self.shared.all_peers() {
            if let Some((link, _)) = peer.link() {
                peer.lost(link.id());
            }
        }
        loop {
            tokio::time::sleep(RESTART_AFTER).await;
            match start_server(&self.shared).await {
                Ok(server) => {
                    self.server = server;
                    return;
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    async fn stop(self) {
        self.shared.set_server(None);
        let arriving = self.arriving.values().map(|arriving| &arriving.session);
        let ready = self.ready.values().map(|(session, _)| session);
        for session in arriving.chain(ready) {
            self.shared.cut(session, "stopped");
        }
        let sessions = self.arriving.into_values().map(|arriving| arriving.session);
        let sessions = sessions.chain(self.ready.into_values().map(|(session, _)| session));
        for session in sessions {
            let _ = session.wait(Some(READY_MAX)).await;
        }
        let _ = self.server.0.stop_and_wait(None, Some(READY_MAX)).await;
    }
}

/// Whether an actor lives on the node with which the library has the session `node_id`.
fn is_of(actor: ActorId, node_id: u64) -> bool {
    matches!(actor, ActorId::Remote { node_id: its, .. } if its == node_id)
}
