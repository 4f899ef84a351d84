//! A gateway: the rooms' one address for their sessions on this node, and those sessions' way out.

use super::SCOPE;
use super::context::{self, Context};
use super::shard_host::HostMsg;
use crate::chat::audience::{Audience, Effect};
use crate::protocol::Timestamp;
use crate::protocol::internal::ToGateway;
use crate::protocol::names::{GatewayId, LimiterKey, MessageId, RoomName, SessionNumber, ShardId};
use bytes::Bytes;
use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Bytes that may wait for a session's socket, beside what it was shown on entering. Whoever has more waiting reads
/// too slowly and is closed with 1013: it comes back with `since` and has lost nothing.
pub const SESSION_QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// What a queued item costs beside its bytes.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// The actor.
pub struct Gateway;

/// What a gateway is told.
pub enum GatewayMsg {
    /// A session has connected.
    Arrive {
        /// The session.
        session: SessionNumber,
        /// The room it is for.
        room: RoomName,
        /// What it saw last, if it was here before.
        since: Option<Timestamp>,
        /// The way to its socket.
        outbox: Outbox,
    },
    /// A session has a name and wants in.
    Enter {
        /// The session.
        session: SessionNumber,
        /// What it calls itself.
        name: Arc<str>,
        /// Its address, unless nothing is limited: what others said from there counts for it too.
        limiter: Option<LimiterKey>,
    },
    /// A session says something.
    Say {
        /// The session.
        session: SessionNumber,
        /// The message's identity.
        id: MessageId,
        /// The text.
        text: Arc<str>,
        /// The address to count it for, unless nothing is limited.
        limiter: Option<LimiterKey>,
    },
    /// A session is gone.
    Leave(SessionNumber),
    /// A room speaks.
    Room {
        /// The room.
        room: RoomName,
        /// What it says.
        message: ToGateway,
    },
    /// A limiter wants a session to be quiet.
    Cooldown {
        /// The session.
        session: SessionNumber,
        /// For how long, in ms.
        cooldown_ms: u64,
    },
    /// An attempt to attach was made a while ago.
    Timer {
        /// The room.
        room: RoomName,
        /// The attempt.
        attempt: u64,
    },
}

impl ractor::Message for GatewayMsg {}

/// What a session's socket is given.
#[derive(Debug)]
pub enum ToSession {
    /// Bytes to write. `settled` of the session's messages are no longer in flight.
    Write {
        /// Whole WebSocket frames; may be empty.
        wire: Bytes,
        /// How many messages were acknowledged or refused.
        settled: u32,
    },
    /// Say nothing for so many ms.
    Cooldown(u64),
}

/// The gateway's end of a session's queue.
#[derive(Clone)]
pub struct Outbox {
    queue: mpsc::UnboundedSender<Queued>,
    level: Arc<Level>,
}

/// The session's end of its queue.
pub struct Inbox {
    queue: mpsc::UnboundedReceiver<Queued>,
    level: Arc<Level>,
}

/// An item and how much of the queue's bound it takes up.
struct Queued {
    item: ToSession,
    cost: usize,
}

#[derive(Default)]
struct Level {
    queued_bytes: AtomicUsize,
    overflowed: AtomicBool,
    overflow: Notify,
}

/// A session's queue, empty.
#[must_use]
pub fn session_queue() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let level = Arc::new(Level::default());
    (Outbox { queue: sender, level: Arc::clone(&level) }, Inbox { queue: receiver, level })
}

impl Outbox {
    /// Queues what the room says to everyone; false when too much waits already.
    #[must_use]
    pub fn relay(&self, wire: Bytes) -> bool {
        let cost = wire.len() + ITEM_OVERHEAD_BYTES;
        let waiting = self.level.queued_bytes.load(Ordering::Relaxed);
        if waiting + cost > SESSION_QUEUE_BYTES_MAX {
            self.level.overflowed.store(true, Ordering::Release);
            self.level.overflow.notify_one();
            return false;
        }
        self.level.queued_bytes.fetch_add(cost, Ordering::Relaxed);
        self.queue(ToSession::Write { wire, settled: 0 }, cost);
        true
    }

    /// Queues what is for this session alone: the backlog once, and at most one answer for each message in flight.
    /// That is bounded already, and must not be held against the session: a long backlog is not slow reading.
    fn push(&self, item: ToSession) {
        self.queue(item, 0);
    }

    fn queue(&self, item: ToSession, cost: usize) {
        // A session that has just ended takes nothing; its leaving is on its way.
        let _ = self.queue.send(Queued { item, cost });
    }
}

impl Inbox {
    /// The next item; `None` once the gateway has let go of the session.
    pub async fn next(&mut self) -> Option<ToSession> {
        let queued = self.queue.recv().await?;
        Some(self.taken(queued))
    }

    /// The next item, if one is there.
    pub fn try_next(&mut self) -> Option<ToSession> {
        let queued = self.queue.try_recv().ok()?;
        Some(self.taken(queued))
    }

    fn taken(&self, Queued { item, cost }: Queued) -> ToSession {
        self.level.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
        item
    }

    /// Whether the session was let go because too much waited.
    #[must_use]
    pub fn has_overflowed(&self) -> bool {
        self.level.overflowed.load(Ordering::Acquire)
    }

    /// Waits for that.
    pub async fn overflow(&self) {
        while !self.has_overflowed() {
            self.level.overflow.notified().await;
        }
    }
}

/// What a gateway is started with.
pub type Arguments = (GatewayId, Arc<Context>);

/// What a gateway keeps.
pub struct State {
    id: GatewayId,
    context: Arc<Context>,
    halls: HashMap<RoomName, Hall>,
    sessions: HashMap<SessionNumber, Seat>,
    leaders: HashMap<ShardId, ActorRef<HostMsg>>,
}

/// A room as seen from here.
struct Hall {
    shard: ShardId,
    audience: Audience,
    live: Vec<(SessionNumber, Outbox)>,
}

struct Seat {
    room: RoomName,
    outbox: Outbox,
}

impl Actor for Gateway {
    type Msg = GatewayMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<GatewayMsg>,
        (id, context): Arguments,
    ) -> Result<State, ActorProcessingErr> {
        pg::monitor_scope(SCOPE.into(), myself.get_cell());
        pg::join_scoped(SCOPE.into(), id.group(), vec![myself.get_cell()]);
        let (halls, sessions, leaders) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(State { id, context, halls, sessions, leaders })
    }

    async fn handle(
        &self,
        myself: ActorRef<GatewayMsg>,
        message: GatewayMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            GatewayMsg::Arrive { session, room, since, outbox } => {
                state.arrive(&myself, session, &room, since, outbox);
            }
            GatewayMsg::Enter { session, name, limiter } => {
                state.drive_of(&myself, session, |audience, effects| audience.enter(session, name, effects));
                state.count(limiter, session, 0);
            }
            GatewayMsg::Say { session, id, text, limiter } => {
                state.count(limiter, session, 1);
                state
                    .drive_of(&myself, session, |audience, effects| audience.say(session, id, text, effects));
            }
            GatewayMsg::Leave(session) => state.leave(&myself, session),
            GatewayMsg::Room { room, message } => state.room(&myself, &room, message),
            GatewayMsg::Cooldown { session, cooldown_ms } => {
                if let Some(seat) = state.sessions.get(&session) {
                    seat.outbox.push(ToSession::Cooldown(cooldown_ms));
                }
            }
            GatewayMsg::Timer { room, attempt } => {
                state.drive(&myself, &room, |audience, effects| audience.timer(attempt, effects));
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<GatewayMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        // A gateway has no children: all it hears of is who leads the shards.
        if let SupervisionEvent::ProcessGroupChanged(change) = event {
            match change {
                GroupChangeMessage::Join(..) => {}
                GroupChangeMessage::Leave(_, group, _) => state.leader_left(&myself, &group),
            }
        }
        Ok(())
    }
}

impl State {
    fn arrive(
        &mut self,
        myself: &ActorRef<GatewayMsg>,
        session: SessionNumber,
        room: &RoomName,
        since: Option<Timestamp>,
        outbox: Outbox,
    ) {
        let shards = self.context.shards;
        self.halls.entry(room.clone()).or_insert_with(|| Hall {
            shard: room.shard(shards),
            audience: Audience::new(self.id.clone()),
            live: Vec::new(),
        });
        self.sessions.insert(session, Seat { room: room.clone(), outbox });
        self.drive(myself, room, |audience, effects| audience.arrive(session, since, effects));
    }

    /// Lets the audience of a session's room take one step.
    fn drive_of(
        &mut self,
        myself: &ActorRef<GatewayMsg>,
        session: SessionNumber,
        step: impl FnOnce(&mut Audience, &mut Vec<Effect>),
    ) {
        if let Some(room) = self.sessions.get(&session).map(|seat| seat.room.clone()) {
            self.drive(myself, &room, step);
        }
    }

    /// Tells the address's limiter, without waiting for its answer.
    fn count(&mut self, key: Option<LimiterKey>, session: SessionNumber, actions: u64) {
        let Some(key) = key else { return };
        if let Some(host) = self.leader(key.shard(self.context.shards)) {
            // Without a leader nobody counts; the session's own account still bounds it.
            let _ = host.cast(HostMsg::Count { key, gateway: self.id.clone(), session, actions });
        }
    }

    fn leave(&mut self, myself: &ActorRef<GatewayMsg>, session: SessionNumber) {
        let Some(seat) = self.sessions.remove(&session) else { return };
        if let Some(hall) = self.halls.get_mut(&seat.room) {
            hall.live.retain(|(number, _)| *number != session);
        }
        self.drive(myself, &seat.room, |audience, effects| audience.leave(session, effects));
    }

    fn room(&mut self, myself: &ActorRef<GatewayMsg>, room: &RoomName, message: ToGateway) {
        if let ToGateway::Acks(acks) = &message {
            self.context.metrics.acks.inc_by(acks.len() as u64);
        }
        self.drive(myself, room, |audience, effects| audience.room(message, effects));
    }

    /// The leader of a shard is gone: its rooms are to be found elsewhere.
    fn leader_left(&mut self, myself: &ActorRef<GatewayMsg>, group: &str) {
        let Some(shard) = self.leaders.keys().copied().find(|shard| shard.leader_group() == group) else {
            return;
        };
        self.leaders.remove(&shard);
        let rooms: Vec<RoomName> =
            self.halls.iter().filter(|(_, hall)| hall.shard == shard).map(|(room, _)| room.clone()).collect();
        for room in rooms {
            self.drive(myself, &room, Audience::lost);
        }
    }

    fn leader(&mut self, shard: ShardId) -> Option<ActorRef<HostMsg>> {
        if let Some(known) = self.leaders.get(&shard) {
            return Some(known.clone());
        }
        let found = context::leader_of(shard)?;
        self.leaders.insert(shard, found.clone());
        Some(found)
    }

    /// Lets the room's audience take one step, and performs what it wants done.
    fn drive(
        &mut self,
        myself: &ActorRef<GatewayMsg>,
        room: &RoomName,
        step: impl FnOnce(&mut Audience, &mut Vec<Effect>),
    ) {
        let Some(hall) = self.halls.get_mut(room) else { return };
        let shard = hall.shard;
        let mut effects = Vec::new();
        step(&mut hall.audience, &mut effects);
        let mut slow = Vec::new();
        for effect in effects {
            match effect {
                Effect::Room(message) => {
                    if let Some(host) = self.leader(shard) {
                        // A host that failed is replaced; the audience then attaches again.
                        let _ = host.cast(HostMsg::Room { room: room.clone(), message });
                    }
                }
                Effect::Everyone(wire, messages) => self.relay(room, &wire, messages, &mut slow),
                Effect::One(session, wire, settled) => {
                    if let Some(seat) = self.sessions.get(&session) {
                        seat.outbox.push(ToSession::Write { wire, settled });
                    }
                }
                Effect::GoLive(session) => {
                    if let (Some(hall), Some(seat)) = (self.halls.get_mut(room), self.sessions.get(&session))
                    {
                        hall.live.push((session, seat.outbox.clone()));
                    }
                }
                Effect::Timer(attempt, after_ms) => {
                    let room = room.clone();
                    let after = Duration::from_millis(after_ms);
                    drop(myself.send_after(after, move || GatewayMsg::Timer { room, attempt }));
                }
            }
        }
        for session in slow {
            self.leave(myself, session);
        }
        if self.halls.get(room).is_some_and(|hall| hall.audience.is_empty()) {
            self.halls.remove(room);
        }
    }

    fn relay(&self, room: &RoomName, wire: &Bytes, messages: usize, slow: &mut Vec<SessionNumber>) {
        let Some(hall) = self.halls.get(room) else { return };
        for (session, outbox) in &hall.live {
            if !outbox.relay(wire.clone()) {
                slow.push(*session);
            }
        }
        self.context.metrics.deliveries.inc_by((messages * hall.live.len()) as u64);
    }
}
