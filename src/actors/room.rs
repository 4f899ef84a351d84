//! The actor of one room: opens it from its history, feeds the rules, performs their effects.

use super::context::{self, Context};
use super::gateway::GatewayMsg;
use super::shard_host::HostMsg;
use crate::chat::room::{Effect, HistoryRead, Inherited, Page, Room, Ticket};
use crate::consensus::group::{Group, Lead, ProposeError};
use crate::planted::{Bug, is_planted};
use crate::protocol::internal::{Attach, Epoch, Purpose, Refusal, ToGateway, ToRoom};
use crate::protocol::message::Message;
use crate::protocol::names::{GatewayId, MessageId, RoomName};
use crate::protocol::wire::FromHost;
use crate::protocol::{BACKLOG_MAX, Timestamp};
use crate::storage::store::{Found, Range, ReadError};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A room without sessions keeps its actor for this long.
const IDLE_STOP: Duration = Duration::from_secs(60);

/// How soon a gateway is told that it has missed something.
const OWED_RETRY: Duration = Duration::from_millis(250);

/// How soon a room without a lease looks again.
const LEASE_RETRY: Duration = Duration::from_millis(10);

pub(super) struct RoomActor;

pub(super) enum RoomMsg {
    /// From a gateway, by way of the host.
    Gateway(ToRoom),
    /// The newest part of the history, to open with.
    Opened(Result<Found, ReadError>),
    /// An older part, for an attach.
    Read(Ticket, Result<Found, ReadError>),
    /// An append is done.
    Appended(Timestamp, Result<(), ProposeError>),
    /// Perhaps those that missed something can be told.
    PayOwed,
    /// Perhaps the lease holds again.
    Unmute,
    /// Everything that was in the mailbox when the round began has been handled.
    EndOfRound,
    /// Perhaps nobody has been here for a while.
    Idle,
}

impl ractor::Message for RoomMsg {}

pub(super) struct Arguments {
    pub(super) room: RoomName,
    pub(super) host: ActorRef<HostMsg>,
    pub(super) context: Arc<Context>,
    /// The turn at leading in which the room is open.
    pub(super) lead: Lead,
    pub(super) epoch: Epoch,
    /// When the turn began, by whichever clock was ahead.
    pub(super) began_at: Timestamp,
    /// What it takes over from an earlier instance.
    pub(super) inherited: Inherited,
}

pub(super) struct State {
    arguments: Arguments,
    room: Phase,
    gateways: HashMap<GatewayId, ActorRef<GatewayMsg>>,
    /// Those that have missed something and do not know it.
    owed: HashSet<GatewayId>,
    effects: Vec<Effect>,
    /// Gateways' messages handled so far.
    handled: u64,
    /// Whether the mailbox holds the end of this round.
    round_end_sent: bool,
    /// What came while the lease did not hold: the room must not speak then, nor decide on what it could not say. Its
    /// senders' credits bound it, and the host closes the room when that goes on.
    muted: VecDeque<RoomMsg>,
    idle_since: Option<Instant>,
    idle_timer_armed: bool,
}

enum Phase {
    /// Reading its history; what comes meanwhile waits here. Its senders' credits bound it.
    Opening(Vec<ToRoom>),
    Open(Box<Room>),
}

impl Actor for RoomActor {
    type Msg = RoomMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<RoomMsg>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        arguments.context.metrics.rooms.inc();
        Ok(State {
            arguments,
            room: Phase::Opening(Vec::new()),
            gateways: HashMap::new(),
            owed: HashSet::new(),
            effects: Vec::new(),
            handled: 0,
            round_end_sent: false,
            muted: VecDeque::new(),
            idle_since: None,
            idle_timer_armed: false,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<RoomMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Arguments { room, host, context, lead, .. } = &state.arguments;
        tokio::spawn(open(myself, host.clone(), room.clone(), *lead, Arc::clone(context)));
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<RoomMsg>,
        message: RoomMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if matches!(message, RoomMsg::Unmute) {
            state.unmute(&myself)?;
        } else if state.is_mute() {
            state.mute(&myself, message);
        } else {
            state.take(&myself, message)?;
        }
        Ok(())
    }
}

/// Waits until everything an earlier instance appended can be read, and reads the newest of it.
async fn open(
    myself: ActorRef<RoomMsg>,
    host: ActorRef<HostMsg>,
    room: RoomName,
    lead: Lead,
    context: Arc<Context>,
) {
    let (done, written) = oneshot::channel();
    let done = Box::new(move |outcome| {
        let _ = done.send(outcome);
    });
    if let Some(group) = context.consensus.shard(room.shard(context.shards)) {
        group.propose(lead, room.clone(), Vec::new(), done);
        // A store that fails to write can still be read, and refuses what is said later on. But while the lead is being
        // given away, something may be on its way into the history that nobody can be asked to wait for.
        if let Ok(Err(ProposeError::NotLeader)) = written.await {
            let _ = host.cast(HostMsg::AppendRefused(lead));
            return;
        }
    }
    if let Some(found) = context.read(move |store| store.read_newest(&room)).await {
        let _ = myself.cast(RoomMsg::Opened(found));
    }
}

impl State {
    fn group(&self) -> Option<&Group> {
        let Arguments { context, room, .. } = &self.arguments;
        context.consensus.shard(room.shard(context.shards))
    }

    /// Whether the room must be silent, because another may have been opened under its name on another node.
    fn is_mute(&self) -> bool {
        !self.muted.is_empty() || !self.group().is_some_and(|group| group.holds_lease(self.arguments.lead))
    }

    fn mute(&mut self, myself: &ActorRef<RoomMsg>, message: RoomMsg) {
        if self.muted.is_empty() {
            drop(myself.send_after(LEASE_RETRY, || RoomMsg::Unmute));
        }
        self.muted.push_back(message);
    }

    fn unmute(&mut self, myself: &ActorRef<RoomMsg>) -> Result<(), ActorProcessingErr> {
        while let Some(message) = self.muted.pop_front() {
            if !self.group().is_some_and(|group| group.holds_lease(self.arguments.lead)) {
                self.muted.push_front(message);
                drop(myself.send_after(LEASE_RETRY, || RoomMsg::Unmute));
                return Ok(());
            }
            self.take(myself, message)?;
        }
        Ok(())
    }

    fn take(&mut self, myself: &ActorRef<RoomMsg>, message: RoomMsg) -> Result<(), ActorProcessingErr> {
        match message {
            RoomMsg::Gateway(command) => {
                self.handled += 1;
                self.command(command)?;
            }
            RoomMsg::Opened(found) => self.opened(&found?)?,
            RoomMsg::Read(ticket, found) => self.history_read(ticket, &found?)?,
            RoomMsg::Appended(upto, outcome) => self.appended(upto, outcome),
            RoomMsg::EndOfRound => self.end_round(),
            RoomMsg::Idle => self.idle_timer_armed = false,
            RoomMsg::PayOwed => self.pay_owed(myself),
            RoomMsg::Unmute => {}
        }
        self.perform(myself);
        self.watch_idleness(myself);
        Ok(())
    }

    fn command(&mut self, command: ToRoom) -> Result<(), ActorProcessingErr> {
        match &command {
            ToRoom::Detach(gateway)
            | ToRoom::Attach(Attach { gateway, purpose: Purpose::Sync { .. }, .. }) => {
                // Another actor may answer to this name now, and what it has missed it asks for.
                self.gateways.remove(gateway);
                self.owed.remove(gateway);
            }
            ToRoom::Attach(_) | ToRoom::Say { .. } | ToRoom::Leave(_) => {}
        }
        let full = self.group().is_none_or(Group::is_full);
        let room = match &mut self.room {
            Phase::Opening(waiting) => {
                waiting.push(command);
                return Ok(());
            }
            Phase::Open(room) => room,
        };
        let Arguments { context, room: name, .. } = &self.arguments;
        let command = match command {
            ToRoom::Say { say, .. } if full => {
                let gateway = say.from.session.gateway;
                let number = say.from.session.number;
                let epoch = self.arguments.epoch;
                let refused = ToGateway::Refused { epoch, number, id: say.id, refusal: Refusal::Overloaded };
                self.effects.push(Effect::Tell(gateway, refused));
                return Ok(());
            }
            other => other,
        };
        #[cfg(feature = "fault-injection")]
        super::fault::maybe_panic_before(&command);
        let mut lookup = Lookup::new(context, name);
        room.command(command, context.clock.now(), &mut |id| lookup.find(id), &mut self.effects);
        lookup.finish()?;
        Ok(())
    }

    fn opened(&mut self, found: &Found) -> Result<(), ActorProcessingErr> {
        let page = page(found);
        let mut room = Room::open(self.arguments.epoch, page.messages, page.more);
        room.pass_by(self.arguments.began_at.max(self.arguments.context.clock.now()));
        let inherited = std::mem::take(&mut self.arguments.inherited);
        let mut lookup = Lookup::new(&self.arguments.context, &self.arguments.room);
        room.adopt(inherited, &mut |id| lookup.find(id));
        lookup.finish()?;
        room.flush(&mut self.effects);
        if let Phase::Opening(waiting) = std::mem::replace(&mut self.room, Phase::Open(Box::new(room))) {
            for command in waiting {
                self.command(command)?;
            }
        }
        Ok(())
    }

    fn history_read(&mut self, ticket: Ticket, found: &Found) -> Result<(), ActorProcessingErr> {
        if let Phase::Open(room) = &mut self.room {
            let Arguments { context, room: name, .. } = &self.arguments;
            let mut lookup = Lookup::new(context, name);
            let now = context.clock.now();
            room.history_read(ticket, page(found), now, &mut |id| lookup.find(id), &mut self.effects);
            lookup.finish()?;
        }
        Ok(())
    }

    fn appended(&mut self, upto: Timestamp, outcome: Result<(), ProposeError>) {
        if let Phase::Open(room) = &mut self.room {
            match outcome {
                Ok(()) => room.durable(upto, &mut self.effects),
                Err(ProposeError::Failed) => room.storage_failed(&mut self.effects),
                Err(ProposeError::NotLeader) => {
                    // Whether it was kept is for the next instance to find out: under another leader, or under this one,
                    // if it only meant to give the lead away.
                    room.append_refused();
                    let Arguments { host, lead, .. } = &self.arguments;
                    let _ = host.cast(HostMsg::AppendRefused(*lead));
                }
            }
        }
    }

    fn end_round(&mut self) {
        self.round_end_sent = false;
        if let Phase::Open(room) = &mut self.room {
            room.flush(&mut self.effects);
        }
    }

    fn perform(&mut self, myself: &ActorRef<RoomMsg>) {
        #[cfg(feature = "fault-injection")]
        let panic_after = super::fault::is_to_panic_after(&self.effects);
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Append(messages) => self.append(myself, messages),
                Effect::Tell(gateway, message) => self.tell(myself, gateway, message),
                Effect::Read(ticket, read) => self.read(myself, ticket, read),
            }
        }
        #[cfg(feature = "fault-injection")]
        super::fault::panic_if(panic_after);
        // The mailbox is first in, first out: when this comes back, all that is in it now has joined the round.
        let round_is_open = matches!(&self.room, Phase::Open(room) if room.has_open_round());
        if round_is_open && !self.round_end_sent {
            self.round_end_sent = true;
            let _ = myself.cast(RoomMsg::EndOfRound);
        }
    }

    fn append(&self, myself: &ActorRef<RoomMsg>, messages: Vec<Message>) {
        let Some(upto) = messages.last().map(|newest| newest.timestamp) else { return };
        let Arguments { context, room, lead, .. } = &self.arguments;
        context.metrics.messages.inc_by(messages.len() as u64);
        let myself = myself.clone();
        if is_planted(Bug::AckBeforeCommit) {
            let _ = myself.cast(RoomMsg::Appended(upto, Ok(())));
        }
        let done = Box::new(move |outcome| {
            // A room that failed meanwhile finds the messages in its history when it opens again.
            let _ = myself.cast(RoomMsg::Appended(upto, outcome));
        });
        if let Some(group) = self.group() {
            group.propose(*lead, room.clone(), messages, done);
        }
    }

    /// Tells a gateway, if it may be sent that much now. If not, it has missed something, and is told so as soon as it
    /// can be: it then attaches again.
    fn tell(&mut self, myself: &ActorRef<RoomMsg>, id: GatewayId, message: ToGateway) {
        let remote = id.node() != self.arguments.context.node;
        if remote {
            let size = message.size();
            let metrics = &self.arguments.context.metrics;
            if self.owed.contains(&id) || !self.arguments.context.neighbours.charge(id.node(), size) {
                if self.owed.is_empty() {
                    drop(myself.send_after(OWED_RETRY, || RoomMsg::PayOwed));
                }
                self.owed.insert(id);
                return;
            }
            metrics.forwarded_batches.inc();
            metrics.forwarded_bytes.inc_by(size as u64);
        }
        self.send(id, message);
    }

    /// Tells gateways that have missed something that they have.
    fn pay_owed(&mut self, myself: &ActorRef<RoomMsg>) {
        for id in std::mem::take(&mut self.owed) {
            if self.arguments.context.neighbours.charge(id.node(), 0) {
                self.send(id, ToGateway::Lost);
            } else if self.gateways.contains_key(&id) {
                self.owed.insert(id);
            }
        }
        if !self.owed.is_empty() {
            drop(myself.send_after(OWED_RETRY, || RoomMsg::PayOwed));
        }
    }

    fn send(&mut self, id: GatewayId, message: ToGateway) {
        let message = GatewayMsg::Host(FromHost::Room { room: self.arguments.room.clone(), message });
        let gateway = match self.gateways.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match context::gateway(unknown.key()) {
                Some(gateway) => unknown.insert(gateway),
                None => return,
            },
        };
        // A gateway that has failed lost its sessions with it; its host detaches it from here.
        let _ = gateway.cast(message);
    }

    fn read(&self, myself: &ActorRef<RoomMsg>, ticket: Ticket, read: HistoryRead) {
        let Arguments { context, room, .. } = &self.arguments;
        let (myself, room, context) = (myself.clone(), room.clone(), Arc::clone(context));
        let HistoryRead { after, upto, newest } = read;
        let range = Range { after, before: upto.saturating_add(1), newest, limit: BACKLOG_MAX };
        tokio::spawn(async move {
            if let Some(found) = context.read(move |store| store.read(&room, range)).await {
                let _ = myself.cast(RoomMsg::Read(ticket, found));
            }
        });
    }

    fn watch_idleness(&mut self, myself: &ActorRef<RoomMsg>) {
        let idle = matches!(&self.room, Phase::Open(room) if room.is_idle());
        if !idle {
            self.idle_since = None;
            return;
        }
        let idle_for = self.idle_since.get_or_insert_with(Instant::now).elapsed();
        if idle_for >= IDLE_STOP {
            let Arguments { room, host, .. } = &self.arguments;
            let offer =
                HostMsg::RoomIdle { room: room.clone(), actor: myself.get_id(), handled: self.handled };
            let _ = host.cast(offer);
        } else if !self.idle_timer_armed {
            self.idle_timer_armed = true;
            drop(myself.send_after(IDLE_STOP - idle_for, || RoomMsg::Idle));
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.arguments.context.metrics.rooms.dec();
    }
}

/// Finds ids in the history; keeps the first error, since the rules know of none.
struct Lookup<'a> {
    context: &'a Context,
    room: &'a RoomName,
    error: Option<ReadError>,
}

impl<'a> Lookup<'a> {
    fn new(context: &'a Context, room: &'a RoomName) -> Self {
        Self { context, room, error: None }
    }

    fn find(&mut self, id: &MessageId) -> Option<Timestamp> {
        self.context.store.find(self.room, id).unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            None
        })
    }

    /// An id that could not be looked up might be a repetition: the room must not go on as if it were not. It fails
    /// before anything it decided is performed, and its successor is asked again.
    fn finish(self) -> Result<(), ReadError> {
        self.error.map_or(Ok(()), Err)
    }
}

fn page(found: &Found) -> Page {
    Page { messages: found.messages.iter().map(Message::post).collect(), more: found.more }
}
