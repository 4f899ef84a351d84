//! The one voice of a room: who is there, what was said, in which order.
//!
//! Invariants:
//! - Timestamps strictly increase within a room for ever: a stamp is above every earlier one, also of earlier
//!   instances, whose messages the room is opened with.
//! - Once something it appended was refused, it acknowledges and says nothing more.
//! - A message that somebody may have heard of an earlier instance keeps its stamp, or nobody handed it over; then
//!   all that is stamped later is above it.
//! - A message id is stamped once. Its repetitions are acknowledged with the first one's timestamp.
//! - An ack goes out only once the message is durable, in the order of the timestamps.
//! - Every gateway that is synced hears every event since, in one order; batches are numbered without holes.
//! - The ring of recent messages holds every message above `floor`, and at least all that are not durable yet.

use crate::planted::{Bug, is_planted};
use crate::protocol::internal::{
    Ack, Attach, Attached, Backlog, Epoch, Event, Member, Posted, Purpose, Refusal, Say, Scope, ToGateway,
    ToRoom,
};
use crate::protocol::message::Message;
use crate::protocol::names::{GatewayId, MessageId, SessionKey, SessionNumber};
use crate::protocol::{BACKLOG_DEFAULT, BACKLOG_MAX, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Messages that may wait for the disk; beyond it the room refuses more.
pub const PENDING_MAX: usize = 4096;

/// Durable messages that are kept in memory: enough for whoever comes in, and for what is said while they do.
const RING_DURABLE_MAX: usize = 2 * BACKLOG_DEFAULT;

/// What the store answers to a [`HistoryRead`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Oldest first.
    pub messages: Vec<Posted>,
    /// Whether the range holds more than was asked for.
    pub more: bool,
}

/// A part of the durable history: after `after`, up to and including `upto`, at most [`BACKLOG_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRead {
    /// Exclusive lower end.
    pub after: Timestamp,
    /// Inclusive upper end.
    pub upto: Timestamp,
    /// Which end matters when there are too many: the newest or the oldest.
    pub newest: bool,
}

/// What an instance of a room takes over from one under another leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inherited {
    /// Who is there. Their gateways will attach, or be detached.
    pub members: Vec<Member>,
    /// What somebody heard and the history may lack, oldest first.
    pub messages: Vec<Message>,
}

/// What the room wants done. To be performed in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make these durable and then call [`Room::durable`].
    Append(Vec<Message>),
    /// Tell a gateway.
    Tell(GatewayId, ToGateway),
    /// Read this and then call [`Room::history_read`] with the ticket.
    Read(Ticket, HistoryRead),
}

/// Names a read that is under way.
pub type Ticket = u64;

/// A room that is open.
#[derive(Debug)]
pub struct Room {
    epoch: Epoch,
    last: Timestamp,
    durable: Timestamp,
    recent: VecDeque<Posted>,
    /// Every message above this timestamp is in `recent`.
    floor: Timestamp,
    pending: VecDeque<Pending>,
    pending_ids: HashMap<MessageId, Timestamp>,
    roster: BTreeMap<u64, Member>,
    places: HashMap<SessionKey, u64>,
    next_place: u64,
    /// Batches sent so far to each synced gateway.
    synced: BTreeMap<GatewayId, u64>,
    /// Attaches that wait for a read.
    parked: BTreeMap<Ticket, Attach>,
    next_ticket: Ticket,
    round: Vec<Event>,
    round_appends: Vec<Message>,
    /// The store has failed: nothing is taken any more.
    failed: bool,
    /// Something it appended may not have been kept: it is deaf and mute.
    broken: bool,
}

#[derive(Debug)]
struct Pending {
    timestamp: Timestamp,
    id: MessageId,
    waiting: Vec<SessionKey>,
}

impl Room {
    /// Opens a room with the newest messages of its history, oldest first, at least [`BACKLOG_DEFAULT`] of them
    /// unless `recent` is all there is (`more` says whether there are older ones).
    #[must_use]
    pub fn open(epoch: Epoch, recent: Vec<Posted>, more: bool) -> Self {
        let last = recent.last().map_or(0, |newest| newest.timestamp);
        let floor = if more { recent.first().map_or(0, |oldest| oldest.timestamp - 1) } else { 0 };
        Self {
            epoch,
            last,
            durable: last,
            recent: recent.into(),
            floor,
            pending: VecDeque::new(),
            pending_ids: HashMap::new(),
            roster: BTreeMap::new(),
            places: HashMap::new(),
            next_place: 0,
            synced: BTreeMap::new(),
            parked: BTreeMap::new(),
            next_ticket: 0,
            round: Vec::new(),
            round_appends: Vec::new(),
            failed: false,
            broken: false,
        }
    }

    /// An earlier instance may have shown messages that were not kept and that nobody is left to hand over. Whoever saw
    /// them comes back with their timestamps, so that new ones have to be above: above `clock`, what the clock of that
    /// instance's node says now at most; or, where that clock was behind the room's last timestamp, above as many as can
    /// have been waiting for the disk. To be called before anything else.
    pub fn pass_by(&mut self, clock: Timestamp) {
        self.last = if clock > self.last { clock } else { self.last + PENDING_MAX as Timestamp };
    }

    /// Takes over from an earlier instance: whoever was there still is, so that nobody sees them go and come, and what
    /// somebody heard is kept under the same ids and timestamps, so that it is what they heard. To be called before
    /// any command, and flushed.
    pub fn adopt(&mut self, inherited: Inherited, known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>) {
        inherited.members.into_iter().for_each(|member| self.enter(member));
        let mut unknown = inherited.messages;
        unknown.retain(|message| known(&message.id).is_none());
        // Everyone saw them in this order, so this is the history's order too, even where something later was kept
        // already. Only a place that another message has, or may have, is no place any more.
        let is_free = |timestamp| {
            let taken = self.recent.binary_search_by_key(&timestamp, |posted| posted.timestamp).is_ok();
            timestamp > self.floor && !taken
        };
        let (in_place, displaced): (Vec<Message>, Vec<Message>) =
            unknown.into_iter().partition(|message| is_free(message.timestamp));
        if let Some(first) = in_place.first() {
            self.durable = self.durable.min(first.timestamp - 1);
        }
        for message in in_place {
            if !self.pending_ids.contains_key(&message.id) {
                self.keep(message, Vec::new());
            }
        }
        for message in displaced {
            if !self.pending_ids.contains_key(&message.id) {
                self.keep(Message { timestamp: self.last + 1, ..message }, Vec::new());
            }
        }
    }

    /// What was appended may not have been kept, though this instance goes on: from now on it does not. What it has
    /// said must be handed over to another.
    pub fn append_refused(&mut self) {
        self.broken = true;
    }

    /// Whether nobody is attached and nothing is under way: the room may be closed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.synced.is_empty() && self.parked.is_empty() && self.pending.is_empty() && !self.has_open_round()
    }

    /// Whether something happened that waits for [`Room::flush`].
    #[must_use]
    pub fn has_open_round(&self) -> bool {
        !self.round.is_empty() || !self.round_appends.is_empty()
    }

    /// Takes a gateway's message. `known` looks up the timestamp under which an id is already in the history.
    pub fn command(
        &mut self,
        command: ToRoom,
        now: Timestamp,
        known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>,
        effects: &mut Vec<Effect>,
    ) {
        if self.broken {
            return;
        }
        match command {
            ToRoom::Attach(attach) => self.attach(attach, now, known, effects),
            ToRoom::Say { epoch, say } => {
                // What was meant for another instance comes again, in order, with the gateway's next sync.
                if epoch != self.epoch {
                    return;
                }
                let gateway = &say.from.session.gateway;
                if self.synced.contains_key(gateway) {
                    self.say(say, now, known, effects);
                } else {
                    // Taken for gone, it does not know that it was.
                    effects.push(Effect::Tell(gateway.clone(), ToGateway::Lost));
                }
            }
            ToRoom::Leave(session) => self.leave(&session),
            ToRoom::Detach(gateway) => self.detach(&gateway),
        }
    }

    /// Ends a round: what happened since the last one becomes one append and one batch a gateway.
    ///
    /// The append comes first, so that nothing is relayed that nobody tries to keep.
    pub fn flush(&mut self, effects: &mut Vec<Effect>) {
        if self.broken {
            return;
        }
        if !self.round_appends.is_empty() {
            effects.push(Effect::Append(std::mem::take(&mut self.round_appends)));
        }
        if self.round.is_empty() {
            return;
        }
        let events: Arc<[Event]> = std::mem::take(&mut self.round).into();
        for (gateway, sent) in &mut self.synced {
            *sent += 1;
            let batch = ToGateway::Batch {
                epoch: self.epoch,
                number: *sent,
                durable: self.durable,
                events: Arc::clone(&events),
            };
            effects.push(Effect::Tell(gateway.clone(), batch));
        }
    }

    /// Everything up to `upto` is durable: acknowledge it.
    pub fn durable(&mut self, upto: Timestamp, effects: &mut Vec<Effect>) {
        if self.broken {
            return; // Something before it may be missing.
        }
        self.durable = self.durable.max(upto);
        let mut acks: BTreeMap<GatewayId, Vec<Ack>> = BTreeMap::new();
        while self.pending.front().is_some_and(|oldest| oldest.timestamp <= upto) {
            let Some(Pending { timestamp, id, waiting }) = self.pending.pop_front() else { break };
            self.pending_ids.remove(&id);
            for session in waiting {
                let ack = Ack { number: session.number, id: id.clone(), timestamp };
                acks.entry(session.gateway).or_default().push(ack);
            }
        }
        let (epoch, durable) = (self.epoch, self.durable);
        effects.extend(
            acks.into_iter()
                .map(|(gateway, acks)| Effect::Tell(gateway, ToGateway::Acks { epoch, acks, durable })),
        );
        self.trim();
    }

    /// The store has failed: whoever waits is told so, and nothing more is taken.
    pub fn storage_failed(&mut self, effects: &mut Vec<Effect>) {
        self.failed = true;
        self.pending_ids.clear();
        for Pending { id, waiting, .. } in std::mem::take(&mut self.pending) {
            for session in waiting {
                refuse(self.epoch, session, id.clone(), Refusal::StorageFailed, effects);
            }
        }
    }

    /// The answer to an [`Effect::Read`].
    pub fn history_read(
        &mut self,
        ticket: Ticket,
        page: Page,
        now: Timestamp,
        known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>,
        effects: &mut Vec<Effect>,
    ) {
        if self.broken {
            return;
        }
        // Nothing is parked under the ticket any more when the session or the gateway left meanwhile.
        if let Some(attach) = self.parked.remove(&ticket) {
            self.complete(attach, page, now, known, effects);
        }
        self.trim();
    }

    fn attach(
        &mut self,
        attach: Attach,
        now: Timestamp,
        known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>,
        effects: &mut Vec<Effect>,
    ) {
        if matches!(attach.purpose, Purpose::Sync { .. }) {
            // A sync replaces all that its gateway asked for before.
            self.parked.retain(|_, parked| parked.gateway != attach.gateway);
        }
        let read = match attach.backlog {
            Backlog::Around(at) => self.lacks_backlog_before(at).then_some(HistoryRead {
                after: 0,
                upto: self.floor,
                newest: true,
            }),
            Backlog::Since(after) => Some(HistoryRead { after, upto: self.floor, newest: true }),
            Backlog::From(after) => Some(HistoryRead { after, upto: self.floor, newest: false }),
            Backlog::Unsettled => None,
        };
        match read.filter(|read| read.after < read.upto) {
            None => self.complete(attach, Page::default(), now, known, effects),
            Some(read) => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                self.parked.insert(ticket, attach);
                effects.push(Effect::Read(ticket, read));
            }
        }
    }

    /// Answers an attach with what was `read` below the ring and what the ring holds.
    fn complete(
        &mut self,
        attach: Attach,
        read: Page,
        now: Timestamp,
        known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>,
        effects: &mut Vec<Effect>,
    ) {
        let Attach { gateway, attempt, purpose, backlog } = attach;
        // What happened so far belongs before this attach, for those who were there.
        self.flush(effects);
        let (messages, gap) = match backlog {
            Backlog::From(_) if read.more => {
                let page =
                    Attached { epoch: self.epoch, attempt, scope: Scope::Page, messages: read.messages };
                effects.push(Effect::Tell(gateway, ToGateway::Attached(page)));
                return;
            }
            Backlog::Around(at) => (around(self.joined_with_ring(read.messages, 0), at), false),
            Backlog::From(after) => (self.joined_with_ring(read.messages, after), false),
            Backlog::Unsettled => (self.joined_with_ring(read.messages, self.durable), false),
            Backlog::Since(after) => {
                let (messages, cut) = newest(self.joined_with_ring(read.messages, after), BACKLOG_MAX);
                (messages, cut || read.more)
            }
        };
        match purpose {
            Purpose::Sync { live, unacked, seen } => {
                self.last = self.last.max(seen);
                self.replace_sessions(&gateway, live);
                self.synced.insert(gateway.clone(), 0);
                let roster = self.roster.iter().map(|(place, member)| (*place, member.clone())).collect();
                let scope = Scope::Synced { roster, last: self.last, durable: self.durable };
                let answer = Attached { epoch: self.epoch, attempt, scope, messages };
                effects.push(Effect::Tell(gateway, ToGateway::Attached(answer)));
                for say in unacked {
                    self.say(say, now, known, effects);
                }
            }
            Purpose::Enter { epoch, member } => {
                if epoch != self.epoch || !self.synced.contains_key(&gateway) {
                    return; // The gateway enters its sessions anew after its next sync.
                }
                let scope = Scope::Entered { number: member.session.number, gap };
                let answer = Attached { epoch: self.epoch, attempt, scope, messages };
                effects.push(Effect::Tell(gateway, ToGateway::Attached(answer)));
                self.enter(member);
            }
        }
    }

    /// Whether the ring alone does not reach far enough back for somebody who connected at `at`.
    fn lacks_backlog_before(&self, at: Timestamp) -> bool {
        let before = self.recent.partition_point(|posted| posted.timestamp <= at);
        self.floor > 0 && before < BACKLOG_DEFAULT
    }

    /// `read`, which ends at the floor, and what the ring holds after it.
    fn joined_with_ring(&self, mut read: Vec<Posted>, after: Timestamp) -> Vec<Posted> {
        let start = self.recent.partition_point(|posted| posted.timestamp <= after);
        read.extend(self.recent.range(start..).cloned());
        read
    }

    fn say(
        &mut self,
        say: Say,
        now: Timestamp,
        known: &mut dyn FnMut(&MessageId) -> Option<Timestamp>,
        effects: &mut Vec<Effect>,
    ) {
        let Say { from: Member { session, name }, id, text, again } = say;
        let dedupes = !is_planted(Bug::NoDedupe);
        if let Some(timestamp) = self.pending_ids.get(&id).filter(|_| dedupes) {
            if let Ok(place) = self.pending.binary_search_by_key(timestamp, |pending| pending.timestamp) {
                self.pending[place].waiting.push(session);
            }
            return;
        }
        // An id of our own making is new unless the message was sent before: no need to ask the store.
        let seen = if dedupes && (again || id.client().is_some()) { known(&id) } else { None };
        if let Some(timestamp) = seen {
            let ack = Ack { number: session.number, id, timestamp };
            effects.push(Effect::Tell(
                session.gateway,
                ToGateway::Acks { epoch: self.epoch, acks: vec![ack], durable: self.durable },
            ));
            return;
        }
        if self.failed {
            return refuse(self.epoch, session, id, Refusal::StorageFailed, effects);
        }
        if self.pending.len() >= PENDING_MAX {
            return refuse(self.epoch, session, id, Refusal::Overloaded, effects);
        }
        let timestamp = if is_planted(Bug::ClockOnly) { now } else { now.max(self.last + 1) };
        let posted = self.keep(Message { timestamp, name, text, id }, vec![session]);
        self.round.push(Event::Message(posted));
    }

    /// Takes a stamped message into the room's order, for `waiting` to be told once it is durable.
    fn keep(&mut self, message: Message, waiting: Vec<SessionKey>) -> Posted {
        let (timestamp, id) = (message.timestamp, message.id.clone());
        let posted = message.post();
        self.last = self.last.max(timestamp);
        let place = self.recent.partition_point(|earlier| earlier.timestamp < timestamp);
        self.recent.insert(place, posted.clone());
        self.round_appends.push(message);
        self.pending_ids.insert(id.clone(), timestamp);
        self.pending.push_back(Pending { timestamp, id, waiting });
        posted
    }

    /// Puts a session on the roster unless it is there already.
    fn enter(&mut self, member: Member) {
        if self.places.contains_key(&member.session) {
            return;
        }
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(member.session.clone(), place);
        self.roster.insert(place, member.clone());
        self.round.push(Event::Joined { place, member });
    }

    fn leave(&mut self, session: &SessionKey) {
        self.parked.retain(|_, attach| {
            !matches!(&attach.purpose, Purpose::Enter { member, .. } if member.session == *session)
        });
        if let Some(place) = self.places.remove(session) {
            self.roster.remove(&place);
            self.round.push(Event::Quit { place });
        }
    }

    fn detach(&mut self, gateway: &GatewayId) {
        self.parked.retain(|_, attach| attach.gateway != *gateway);
        self.replace_sessions(gateway, Vec::new());
        self.synced.remove(gateway);
    }

    /// Makes `live` the gateway's sessions; those who are neither there nor in `live` see no change.
    fn replace_sessions(&mut self, gateway: &GatewayId, live: Vec<Member>) {
        let keep: std::collections::HashSet<SessionNumber> =
            live.iter().map(|member| member.session.number).collect();
        let gone: Vec<SessionKey> = self
            .places
            .keys()
            .filter(|session| session.gateway == *gateway && !keep.contains(&session.number))
            .cloned()
            .collect();
        for session in gone {
            self.leave(&session);
        }
        for member in live {
            self.enter(member);
        }
    }

    /// Drops from the ring what hardly anybody needs there: durable messages beyond the newest.
    fn trim(&mut self) {
        // While a read is under way its upper end must stay where the ring begins.
        if !self.parked.is_empty() {
            return;
        }
        while self.recent.len() > RING_DURABLE_MAX
            && self.recent.front().is_some_and(|oldest| oldest.timestamp <= self.durable)
        {
            if let Some(oldest) = self.recent.pop_front() {
                self.floor = oldest.timestamp;
            }
        }
    }
}

/// Of `messages`, everything after `at` and as many before as a new session is shown.
fn around(messages: Vec<Posted>, at: Timestamp) -> Vec<Posted> {
    let before = messages.partition_point(|posted| posted.timestamp <= at);
    let wanted = messages.len() - before.saturating_sub(BACKLOG_DEFAULT);
    newest(messages, wanted.min(BACKLOG_MAX)).0
}

/// The last `max` of `messages`, and whether that left any out.
fn newest(mut messages: Vec<Posted>, max: usize) -> (Vec<Posted>, bool) {
    let cut = messages.len().saturating_sub(max);
    messages.drain(..cut);
    (messages, cut > 0)
}

fn refuse(epoch: Epoch, session: SessionKey, id: MessageId, refusal: Refusal, effects: &mut Vec<Effect>) {
    let SessionKey { gateway, number } = session;
    effects.push(Effect::Tell(gateway, ToGateway::Refused { epoch, number, id, refusal }));
}
