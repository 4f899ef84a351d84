//! A gateway: the rooms' one address for their sessions on this node, and those sessions' way out.

use super::SCOPE;
use super::context::{self, Context};
use super::neighbours::Leader;
use super::remote;
use super::shard_host::HostMsg;
use crate::chat::audience::{Audience, Effect, HandOver};
use crate::protocol::Timestamp;
use crate::protocol::internal::{ToGateway, ToRoom};
use crate::protocol::names::{GatewayId, LimiterKey, MessageId, RoomName, SessionNumber, ShardId};
use crate::protocol::wire::{FromHost, HAND_OVER_PART_BYTES, Share, ToHost};
use bytes::Bytes;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Bytes that may wait for a session's socket, beside what it was shown on entering. Whoever has more waiting reads
/// too slowly and is closed with 1013: it comes back with `since` and has lost nothing.
pub const SESSION_QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// How soon a room is attached to again whose host could not be told something.
const OVERLOAD_RETRY: Duration = Duration::from_secs(1);

/// How soon a leader is looked for again whose node had not said yet who it is, and how often.
const FIND_LEADER_EVERY: Duration = Duration::from_millis(50);
const FIND_LEADER_TRIES: u32 = 20;

/// Members or messages of one room that are handed over together.
const HAND_OVER_CHUNK: usize = 64;

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
    /// The host of a shard speaks, here or on another node.
    Host(FromHost),
    /// Something was held for a room for a while.
    Expire {
        /// The room.
        room: RoomName,
        /// Since which outage.
        outage: u64,
    },
    /// A room's host could not be told something a while ago.
    Retry(RoomName),
    /// Somebody showed itself as the leader of a shard whose node had not said yet who it is. To be looked for so many
    /// times more.
    FindLeader(ShardId, u32),
    /// An attempt to attach was made a while ago.
    Timer {
        /// The room.
        room: RoomName,
        /// The attempt.
        attempt: u64,
    },
}

impl ractor::Message for GatewayMsg {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        match self {
            Self::Host(message) => Ok(remote::pack(&message)),
            // Sessions and timers speak to the gateway of their own node alone.
            Self::Arrive { .. }
            | Self::Enter { .. }
            | Self::Say { .. }
            | Self::Leave(_)
            | Self::Timer { .. }
            | Self::Retry(_)
            | Self::FindLeader(..)
            | Self::Expire { .. } => Err(BoxedDowncastErr),
        }
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => remote::unpack(&args).map(Self::Host),
            SerializedMessage::Call { .. } | SerializedMessage::CallReply(..) => Err(BoxedDowncastErr),
        }
    }
}

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
    leaders: HashMap<ShardId, Leader>,
}

/// A room as seen from here.
struct Hall {
    shard: ShardId,
    audience: Audience,
    live: Vec<(SessionNumber, Outbox)>,
    /// Whether [`GatewayMsg::Retry`] is on its way.
    retry_armed: bool,
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
                let now_ms = state.context.clock.uptime_ms();
                state.drive_of(&myself, session, |audience, effects| {
                    audience.say(session, id, text, now_ms, effects);
                });
            }
            GatewayMsg::Leave(session) => state.leave(&myself, session),
            GatewayMsg::Host(FromHost::Room { room, message }) => state.room(&myself, &room, message),
            GatewayMsg::Host(FromHost::Cooldown { session, cooldown_ms }) => {
                if let Some(seat) = state.sessions.get(&session) {
                    seat.outbox.push(ToSession::Cooldown(cooldown_ms));
                }
            }
            GatewayMsg::Host(FromHost::HandOver { shard, term, node }) => {
                state.hand_over(&myself, shard, term, &node);
            }
            GatewayMsg::Host(FromHost::NotLeader { shard, node, leader }) => {
                state.not_leader(&myself, shard, &node, leader.as_deref());
            }
            GatewayMsg::Expire { room, outage } => {
                let now_ms = state.context.clock.uptime_ms();
                state.drive(&myself, &room, |audience, effects| audience.expire(outage, now_ms, effects));
            }
            GatewayMsg::Retry(room) => {
                if let Some(hall) = state.halls.get_mut(&room) {
                    hall.retry_armed = false;
                }
                state.drive(&myself, &room, Audience::lost);
            }
            GatewayMsg::FindLeader(shard, tries) => state.find_leader(&myself, shard, tries),
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
                GroupChangeMessage::Join(_, group, actors) => {
                    if let (Some(shard), Some(host)) = (ShardId::of_leader_group(&group), actors.last()) {
                        match state.context.neighbours.leader(shard, host.clone()) {
                            Some(leader) => state.leader_joined(&myself, shard, leader),
                            None => state.find_leader_later(&myself, shard, FIND_LEADER_TRIES),
                        }
                    }
                }
                GroupChangeMessage::Leave(_, group, actors) => {
                    if let Some(shard) = ShardId::of_leader_group(&group) {
                        state.leader_left(&myself, shard, &actors);
                    }
                }
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
            retry_armed: false,
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
        if let Some(Leader { host, .. }) = self.leader(key.shard(self.context.shards)) {
            // Without a leader nobody counts; the session's own account still bounds it.
            let _ = host.cast(HostMsg::Gateway(ToHost::Count {
                key,
                gateway: self.id.clone(),
                session,
                actions,
            }));
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
        if let ToGateway::Acks { acks, .. } = &message {
            self.context.metrics.acks.inc_by(acks.len() as u64);
        }
        if !self.halls.contains_key(room) {
            // What told it that nobody is here may have been lost with a link.
            let shard = room.shard(self.context.shards);
            return self.tell_host(myself, shard, room, ToRoom::Detach(self.id.clone()));
        }
        self.drive(myself, room, |audience, effects| audience.room(message, effects));
    }

    /// A host shows itself as the leader of a shard. The latest one is right: it has asked everyone to believe nobody
    /// before it.
    fn leader_joined(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId, leader: Leader) {
        self.leaders.insert(shard, leader);
        self.lost(myself, shard);
    }

    fn find_leader(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId, tries: u32) {
        if self.leaders.contains_key(&shard) {
            return; // Another has shown itself.
        }
        match self.context.neighbours.leader_of(shard) {
            Some(leader) => self.leader_joined(myself, shard, leader),
            None if tries > 0 => self.find_leader_later(myself, shard, tries - 1),
            None => {} // Whoever needs it looks again.
        }
    }

    fn find_leader_later(&self, myself: &ActorRef<GatewayMsg>, shard: ShardId, tries: u32) {
        drop(myself.send_after(FIND_LEADER_EVERY, move || GatewayMsg::FindLeader(shard, tries)));
    }

    /// The leader of a shard is gone: its rooms are to be found elsewhere.
    fn leader_left(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId, gone: &[ActorCell]) {
        let is_gone = |leader: &Leader| gone.iter().any(|actor| actor.get_id() == leader.host.get_id());
        if self.leaders.get(&shard).is_some_and(is_gone) {
            self.leaders.remove(&shard);
            self.lost(myself, shard);
        }
    }

    /// The host that was taken for a shard's leader says that it is not.
    fn not_leader(
        &mut self,
        myself: &ActorRef<GatewayMsg>,
        shard: ShardId,
        asked: &str,
        leader: Option<&str>,
    ) {
        let refused = context::host_at(shard, asked);
        let taken = self.leaders.get(&shard).map(|leader| leader.host.get_id());
        if taken != refused.map(|host| host.get_id()) {
            return; // Another has been found meanwhile.
        }
        self.leaders.remove(&shard);
        let hinted = leader.filter(|name| *name != asked).and_then(|name| context::host_at(shard, name));
        let hinted = hinted.and_then(|host| self.context.neighbours.leader(shard, host.get_cell()));
        if let Some(leader) = hinted {
            self.leader_joined(myself, shard, leader);
        }
    }

    fn lost(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId) {
        for room in self.rooms_of(shard) {
            self.drive(myself, &room, Audience::lost);
        }
    }

    fn rooms_of(&self, shard: ShardId) -> Vec<RoomName> {
        self.halls.iter().filter(|(_, hall)| hall.shard == shard).map(|(room, _)| room.clone()).collect()
    }

    /// A node was elected to lead a shard: nobody of an earlier term is believed any more, and it is told what was
    /// relayed here and may be known to nobody else.
    fn hand_over(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId, term: u64, node: &str) {
        let mut parts = vec![Vec::new()];
        let mut bytes = 0;
        for room in self.rooms_of(shard) {
            let mut handed_over = None;
            self.drive(myself, &room, |audience, effects| {
                handed_over = Some(audience.hand_over(term, effects));
            });
            let Some(HandOver { members, messages, believed }) = handed_over else { continue };
            let members = members.chunks(HAND_OVER_CHUNK).map(|chunk| (chunk.to_vec(), Vec::new()));
            let messages = messages.chunks(HAND_OVER_CHUNK).map(|chunk| (Vec::new(), chunk.to_vec()));
            for (members, messages) in members.chain(messages) {
                let share = Share { room: room.clone(), members, messages, believed };
                bytes += share.size();
                if bytes > HAND_OVER_PART_BYTES {
                    parts.push(Vec::new());
                    bytes = share.size();
                }
                if let Some(part) = parts.last_mut() {
                    part.push(share);
                }
            }
        }
        // Without its host here, the new leader waits for us no longer than it has to.
        let Some(host) = context::host_at(shard, node) else { return };
        let last = parts.len() - 1;
        for (index, rooms) in parts.into_iter().enumerate() {
            let gateway = self.id.clone();
            let part = ToHost::HandedOver { gateway, term, rooms, complete: index == last };
            let _ = host.cast(HostMsg::Gateway(part));
        }
    }

    fn leader(&mut self, shard: ShardId) -> Option<Leader> {
        if let Some(known) = self.leaders.get(&shard) {
            return Some(known.clone());
        }
        let found = self.context.neighbours.leader_of(shard)?;
        self.leaders.insert(shard, found.clone());
        Some(found)
    }

    /// Tells the leader of a shard something for one of its rooms, if it may be sent that much now. If not, it is told
    /// all that matters with the next attach.
    fn tell_host(&mut self, myself: &ActorRef<GatewayMsg>, shard: ShardId, room: &RoomName, message: ToRoom) {
        let Some(Leader { host, node }) = self.leader(shard) else { return };
        let message = ToHost::Room { room: room.clone(), message };
        if node.is_none_or(|node| self.context.neighbours.charge(&node, message.size())) {
            // A host that failed is replaced; the audience then attaches again.
            let _ = host.cast(HostMsg::Gateway(message));
        } else if let Some(hall) = self.halls.get_mut(room)
            && !std::mem::replace(&mut hall.retry_armed, true)
        {
            let room = room.clone();
            drop(myself.send_after(OVERLOAD_RETRY, || GatewayMsg::Retry(room)));
        }
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
                    self.tell_host(myself, shard, room, message);
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
                Effect::Expire(outage, after_ms) => {
                    let room = room.clone();
                    let after = Duration::from_millis(after_ms);
                    drop(myself.send_after(after, move || GatewayMsg::Expire { room, outage }));
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
