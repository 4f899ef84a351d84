//! A room's sessions on this node, as their gateway keeps them.
//!
//! Invariants:
//! - A session that is live has seen everything the room relayed since it went live, once and in order, whatever
//!   became of the room's instances meanwhile.
//! - What a session said is either acknowledged, or refused, or in `unacked`, in the order it was said, and is
//!   handed to every new instance of the room until one of the first two happens.
//! - Nothing is believed of an instance this audience is not synced with, nor of any under a leader before the latest
//!   that asked for a hand-over: what it handed over is all that its sessions have seen.

use super::shown::Shown;
use super::unacked::Unacked;
use crate::planted::{Bug, is_planted};
use crate::protocol::Timestamp;
use crate::protocol::frames::{ServerFrame, concat};
use crate::protocol::internal::{
    Ack, Attach, Attached, Backlog, Epoch, Event, Member, Posted, Purpose, Refusal, Say, Scope, ToGateway,
    ToRoom,
};
use crate::protocol::names::{GatewayId, MessageId, SessionKey, SessionNumber};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// An attach is repeated when no answer came in this time, in ms; the time doubles with each try.
const ATTACH_RETRY_MS: u64 = 1_000;

/// The longest wait between two attaches, in ms.
const ATTACH_RETRY_MS_MAX: u64 = 4_000;

/// How long a message is held for a room that cannot be reached before its sender is told so, in ms.
pub const HOLD_MS: u64 = 5_000;

/// Messages held for a room that cannot be reached; whoever says more is told at once.
pub const HELD_MAX: usize = 1024;

/// After this many instances in a row failed us, wait before troubling the next.
const LOSSES_AT_ONCE: u32 = 2;

/// What the audience wants done. To be performed in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell the room.
    Room(ToRoom),
    /// These bytes to every live session; they hold this many messages.
    Everyone(Bytes, usize),
    /// These bytes to one session, live or not. `settled` of its messages are no longer in flight.
    One(SessionNumber, Bytes, u32),
    /// From here on the session is among everyone.
    GoLive(SessionNumber),
    /// Call [`Audience::timer`] with this attempt after so many ms.
    Timer(u64, u64),
    /// Call [`Audience::expire`] with this outage after so many ms.
    Expire(u64, u64),
}

#[derive(Debug)]
struct Seat {
    name: Arc<str>,
    state: SeatState,
}

#[derive(Debug, PartialEq, Eq)]
enum SeatState {
    /// Has no name yet.
    Unnamed(Missed),
    /// Not let in yet.
    Waiting(Missed),
    /// Hears everything, but has not heard of its own arrival.
    Arriving,
    /// In.
    Live,
}

/// What a session is to be shown on entering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    /// Everything after what it saw last.
    Since(Timestamp),
    /// Some of what was said before it connected, and everything since. The mark is the room's newest message then, or
    /// when the room was first heard after that: nobody of this gateway was there before.
    Around(Option<Timestamp>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing asked of the room.
    Apart,
    /// A sync is under way.
    Syncing,
    /// Hears the instance `epoch`; `heard` batches so far.
    Synced { epoch: Epoch, heard: u64 },
}

/// What an audience hands over to a new leader.
#[derive(Debug)]
pub struct HandOver {
    /// Who is in.
    pub members: Vec<Member>,
    /// What they were shown and is not known to be durable, in order.
    pub messages: Vec<Posted>,
    /// The latest term whose leader had asked or was heard before.
    pub believed: u64,
}

/// The sessions of one room on one gateway.
#[derive(Debug)]
pub struct Audience {
    gateway: GatewayId,
    phase: Phase,
    /// The newest attempt to sync; answers to older ones are not for us any more.
    attempt: u64,
    retry_ms: u64,
    /// Instances lost since a batch was last heard.
    losses: u32,
    /// Earlier instances are not believed.
    fence: Epoch,
    /// Counts how often the room could not be reached any more.
    outage: u64,
    /// What the live sessions have seen.
    shown: Shown,
    /// The outage for which [`Audience::expire`] will be called.
    expiry_armed: Option<u64>,
    roster: BTreeMap<u64, Member>,
    places: HashMap<SessionKey, u64>,
    seats: BTreeMap<SessionNumber, Seat>,
    unacked: Unacked,
}

impl Audience {
    /// Nobody, on `gateway`.
    #[must_use]
    pub fn new(gateway: GatewayId) -> Self {
        Self {
            gateway,
            phase: Phase::Apart,
            attempt: 0,
            retry_ms: ATTACH_RETRY_MS,
            losses: 0,
            fence: Epoch::default(),
            outage: 0,
            shown: Shown::default(),
            expiry_armed: None,
            roster: BTreeMap::new(),
            places: HashMap::new(),
            seats: BTreeMap::new(),
            unacked: Unacked::default(),
        }
    }

    /// Whether nothing is left to do for anyone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty() && self.unacked.is_empty()
    }

    /// Whether the room is open to this audience, so that a message said now would be relayed at once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        matches!(self.phase, Phase::Synced { .. })
    }

    fn is_synced_with(&self, instance: Epoch) -> bool {
        matches!(self.phase, Phase::Synced { epoch, .. } if epoch == instance)
    }

    /// The room cannot be reached until the next sync is answered.
    fn leave_sync(&mut self, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Syncing {
            self.phase = Phase::Syncing;
            self.outage += 1;
        }
        if !self.unacked.is_empty() {
            self.arm_expiry(HOLD_MS, effects);
        }
    }

    /// A session has connected. If it was here before, `since` is what it saw last. The room is heard from now on,
    /// so that the session, once it has a name, is shown all that is said meanwhile.
    pub fn arrive(&mut self, number: SessionNumber, since: Option<Timestamp>, effects: &mut Vec<Effect>) {
        let heard = self.is_synced().then_some(self.shown.last());
        let missed = since.map_or(Missed::Around(heard), Missed::Since);
        self.seats.insert(number, Seat { name: "".into(), state: SeatState::Unnamed(missed) });
        if self.phase == Phase::Apart {
            self.sync(effects);
        }
    }

    /// A session has a name and wants in.
    pub fn enter(&mut self, number: SessionNumber, name: Arc<str>, effects: &mut Vec<Effect>) {
        let Some(seat) = self.seats.get_mut(&number) else { return };
        let SeatState::Unnamed(missed) = seat.state else { return };
        *seat = Seat { name, state: SeatState::Waiting(missed) };
        if let Phase::Synced { epoch, .. } = self.phase {
            self.let_in(number, epoch, effects);
        }
    }

    /// A session is gone. Its unacknowledged messages stay until they are settled.
    pub fn leave(&mut self, number: SessionNumber, effects: &mut Vec<Effect>) {
        if self.seats.remove(&number).is_some() && self.phase != Phase::Apart {
            effects.push(Effect::Room(ToRoom::Leave(self.session(number))));
        }
        if let Phase::Synced { epoch, .. } = self.phase {
            // It may have left before it was in: what it said is not held back for it any more.
            self.say_what_was_held(epoch, effects);
        }
        self.detach_if_empty(effects);
    }

    /// A session says something, `now_ms` after the node has started.
    pub fn say(
        &mut self,
        number: SessionNumber,
        id: MessageId,
        text: Arc<str>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.seats.contains_key(&number) {
            return;
        }
        if !self.is_synced() {
            if self.unacked.len() >= HELD_MAX {
                return self.settle_with_refusal(number, &id, Refusal::Unavailable, effects);
            }
            self.arm_expiry(HOLD_MS, effects);
        }
        let Some(seat) = self.seats.get(&number) else { return };
        let from = Member { session: self.session(number), name: Arc::clone(&seat.name) };
        let waiting = seat.is_waiting();
        self.unacked.push(Say { from, id, text, again: false }, now_ms);
        if let (Phase::Synced { epoch, .. }, false) = (self.phase, waiting) {
            effects.extend(self.unacked.deliver_newest().map(|say| Effect::Room(ToRoom::Say { epoch, say })));
        }
    }

    /// The room speaks.
    pub fn room(&mut self, message: ToGateway, effects: &mut Vec<Effect>) {
        match message {
            ToGateway::Attached(attached) => self.attached(attached, effects),
            ToGateway::Batch { epoch, number, durable, events } => {
                self.batch(epoch, number, durable, &events, effects);
            }
            ToGateway::Acks { epoch, acks, durable } => {
                // True whoever says it: what is durable once is durable for ever.
                acks.iter().for_each(|ack| self.ack(ack, effects));
                // But what was shown up to there may be another instance's words, of which this one knows nothing.
                if self.is_synced_with(epoch) {
                    self.shown.settle(durable);
                }
            }
            ToGateway::Refused { epoch, number, id, refusal } => {
                // Another instance may take it.
                if self.is_synced_with(epoch) {
                    self.refused(number, &id, refusal, effects);
                }
            }
            ToGateway::Lost => self.lost(effects),
            ToGateway::Failed => {
                self.unacked.count_failure();
                self.lost(effects);
            }
        }
        self.detach_if_empty(effects);
    }

    /// A node was elected under `term` and asks for what was shown here and is not known to be durable. From now on
    /// nobody before it is believed: what is returned is all there will be. The room is found again with the leader.
    ///
    pub fn hand_over(&mut self, term: u64, effects: &mut Vec<Effect>) -> HandOver {
        let believed = self.fence.term;
        self.fence = self.fence.max(Epoch { term, instance: 0 });
        if self.phase != Phase::Apart {
            self.leave_sync(effects);
            self.attempt += 1;
            self.losses = 0;
            self.retry_ms = ATTACH_RETRY_MS;
            self.arm_timer(effects);
        }
        HandOver { members: self.live_members(), messages: self.shown.relayed(), believed }
    }

    fn live_members(&self) -> Vec<Member> {
        let live = self.seats.iter().filter(|(_, seat)| !seat.is_waiting());
        live.map(|(number, seat)| Member { session: self.session(*number), name: Arc::clone(&seat.name) })
            .collect()
    }

    /// Refuses what was held too long for a room that cannot be reached since `outage`, `now_ms` after the node has
    /// started.
    pub fn expire(&mut self, outage: u64, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.expiry_armed != Some(outage) {
            return; // Another is on its way.
        }
        self.expiry_armed = None;
        if self.is_synced() || self.outage != outage {
            return;
        }
        for say in self.unacked.take_held_longer(HOLD_MS, now_ms) {
            self.settle_with_refusal(say.from.session.number, &say.id, Refusal::Unavailable, effects);
        }
        if let Some(oldest) = self.unacked.oldest() {
            let remaining = (oldest + HOLD_MS).saturating_sub(now_ms);
            self.arm_expiry(remaining, effects);
        }
        self.detach_if_empty(effects);
    }

    fn arm_expiry(&mut self, after_ms: u64, effects: &mut Vec<Effect>) {
        if self.expiry_armed.replace(self.outage) != Some(self.outage) {
            effects.push(Effect::Expire(self.outage, after_ms));
        }
    }

    /// The room's instance is gone: find the next.
    pub fn lost(&mut self, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Apart {
            return;
        }
        self.losses += 1;
        if self.losses <= LOSSES_AT_ONCE {
            self.sync(effects);
        } else {
            // The room fails again and again. Do not let it spin: the timer tries anew.
            self.leave_sync(effects);
            self.attempt += 1;
            self.arm_timer(effects);
        }
    }

    /// Time is up for an attempt to sync.
    pub fn timer(&mut self, attempt: u64, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Syncing && attempt == self.attempt {
            self.sync(effects);
        }
    }

    /// Asks the room for everything since `last`, registers who is live and hands over what is unacknowledged.
    fn sync(&mut self, effects: &mut Vec<Effect>) {
        self.leave_sync(effects);
        self.attempt += 1;
        self.give_up_the_undeliverable(effects);
        let live = self.live_members();
        // Everything is asked for that is not known to be durable, shown or not: some of what was shown may have vanished
        // with its room, and must not hide what was stamped below it since. Without live sessions nobody misses anything
        // older, and whoever waits brings a backlog of their own.
        let backlog = if live.is_empty() { Backlog::Unsettled } else { Backlog::From(self.shown.floor()) };
        let seats = &self.seats;
        let unacked = self.unacked.deliver(|say| !is_held_for(say, seats));
        let purpose = Purpose::Sync { live, unacked, seen: self.shown.last() };
        let attach = Attach { gateway: self.gateway.clone(), attempt: self.attempt, purpose, backlog };
        effects.push(Effect::Room(ToRoom::Attach(attach)));
        self.arm_timer(effects);
    }

    fn arm_timer(&mut self, effects: &mut Vec<Effect>) {
        effects.push(Effect::Timer(self.attempt, self.retry_ms));
        self.retry_ms = (self.retry_ms * 2).min(ATTACH_RETRY_MS_MAX);
    }

    fn give_up_the_undeliverable(&mut self, effects: &mut Vec<Effect>) {
        for say in self.unacked.take_undeliverable() {
            self.settle_with_refusal(say.from.session.number, &say.id, Refusal::Undeliverable, effects);
        }
    }

    /// Lets one waiting session in.
    fn let_in(&self, number: SessionNumber, epoch: Epoch, effects: &mut Vec<Effect>) {
        let Some(Seat { name, state: SeatState::Waiting(missed) }) = self.seats.get(&number) else { return };
        let backlog = match missed {
            Missed::Since(since) => Backlog::Since(*since),
            Missed::Around(mark) => Backlog::Around(mark.unwrap_or(self.shown.last())),
        };
        let member = Member { session: self.session(number), name: Arc::clone(name) };
        let purpose = Purpose::Enter { epoch, member };
        let attach = Attach { gateway: self.gateway.clone(), attempt: self.attempt, purpose, backlog };
        effects.push(Effect::Room(ToRoom::Attach(attach)));
    }

    fn attached(&mut self, attached: Attached, effects: &mut Vec<Effect>) {
        let Attached { epoch, attempt, scope, messages } = attached;
        if attempt != self.attempt || epoch < self.fence {
            return;
        }
        match (scope, self.phase) {
            (Scope::Page, Phase::Syncing) => {
                // Pages are read from the history: all of this is durable.
                let upto = messages.last().map_or(0, |newest| newest.timestamp);
                self.show_missed(messages, effects);
                self.shown.pass_over(upto);
                self.shown.settle(upto);
                self.retry_ms = ATTACH_RETRY_MS;
                self.sync(effects);
            }
            (Scope::Synced { roster, last, durable }, Phase::Syncing) => {
                self.phase = Phase::Synced { epoch, heard: 0 };
                self.fence = epoch;
                self.retry_ms = ATTACH_RETRY_MS;
                self.adopt_roster(roster, effects);
                // What the room does not know of has vanished.
                self.shown.keep_only(&messages);
                self.show_missed(messages, effects);
                self.shown.pass_over(last);
                self.shown.settle(durable);
                self.mark_arrivals();
                self.say_what_was_held(epoch, effects);
                let seats: Vec<SessionNumber> = self.seats.keys().copied().collect();
                for number in seats {
                    self.let_in(number, epoch, effects);
                }
            }
            (Scope::Entered { number, gap }, Phase::Synced { epoch: ours, .. }) if epoch == ours => {
                self.entered(number, gap, messages, effects);
                self.say_what_was_held(epoch, effects);
            }
            (Scope::Entered { .. } | Scope::Synced { .. } | Scope::Page, _) => {}
        }
    }

    /// A session's first bytes: who is there, and what was said before.
    fn entered(
        &mut self,
        number: SessionNumber,
        gap: bool,
        messages: Vec<Posted>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(seat) = self.seats.get_mut(&number) else { return };
        if !seat.is_waiting() {
            return;
        }
        seat.state = SeatState::Arriving;
        for posted in &messages {
            if !self.shown.contains(posted) {
                self.shown.note(posted);
            }
        }
        let backlog_len: usize = messages.iter().map(|posted| posted.wire.len()).sum();
        let mut wire = BytesMut::with_capacity(backlog_len + self.roster.len() * 32);
        for member in self.roster.values() {
            ServerFrame::Joined { joined: &member.name }.encode_into(&mut wire);
        }
        if gap {
            ServerFrame::Gap { gap: true }.encode_into(&mut wire);
        }
        for posted in messages {
            wire.extend_from_slice(&posted.wire);
        }
        effects.push(Effect::One(number, wire.freeze(), 0));
        effects.push(Effect::GoLive(number));
    }

    fn batch(
        &mut self,
        epoch: Epoch,
        number: u64,
        durable: Timestamp,
        events: &[Event],
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Synced { epoch: ours, heard } = self.phase else { return };
        if epoch < ours && is_planted(Bug::StaleTerm) {
            self.show_stale(events, effects);
        }
        if epoch < ours {
            return; // An instance that was replaced.
        }
        if epoch > ours || number != heard + 1 {
            return self.sync(effects);
        }
        self.phase = Phase::Synced { epoch, heard: number };
        self.losses = 0;
        let mut frames = Vec::with_capacity(events.len());
        let mut messages = 0;
        for event in events {
            match event {
                Event::Message(posted) => {
                    debug_assert!(
                        posted.timestamp > self.shown.last() || is_planted(Bug::ClockOnly),
                        "a room's timestamps strictly increase"
                    );
                    self.shown.note(posted);
                    frames.push(posted.wire.clone());
                    messages += 1;
                }
                Event::Joined { place, member } => {
                    if !self.note_joined(*place, member.clone()) {
                        continue;
                    }
                    frames.push(ServerFrame::Joined { joined: &member.name }.encode());
                    if let Some(number) = self.arriving(&member.session) {
                        // Its own arrival completes what a session is shown; `ready` follows at once.
                        show_everyone(&mut frames, &mut messages, effects);
                        effects.push(Effect::One(number, ServerFrame::Ready { ready: true }.encode(), 0));
                    }
                }
                Event::Quit { place } => {
                    if let Some(member) = self.roster.remove(place) {
                        self.places.remove(&member.session);
                        frames.push(ServerFrame::Quit { quit: &member.name }.encode());
                    }
                }
            }
        }
        show_everyone(&mut frames, &mut messages, effects);
        self.shown.settle(durable);
    }

    /// What must never be done with a replaced instance's words; for [`Bug::StaleTerm`] only.
    fn show_stale(&self, events: &[Event], effects: &mut Vec<Effect>) {
        let mut frames: Vec<Bytes> = events
            .iter()
            .filter_map(|event| match event {
                Event::Message(posted) => Some(posted.wire.clone()),
                Event::Joined { .. } | Event::Quit { .. } => None,
            })
            .collect();
        let mut count = frames.len();
        show_everyone(&mut frames, &mut count, effects);
    }

    /// Puts somebody on the roster; false when they were there already.
    fn note_joined(&mut self, place: u64, member: Member) -> bool {
        let before = self.places.insert(member.session.clone(), place);
        if let Some(before) = before {
            self.roster.remove(&before);
        }
        self.roster.insert(place, member);
        before.is_none()
    }

    /// If `session` is ours and hears of its own arrival just now, its number.
    fn arriving(&mut self, session: &SessionKey) -> Option<SessionNumber> {
        if session.gateway != self.gateway {
            return None;
        }
        let seat = self.seats.get_mut(&session.number)?;
        if seat.state != SeatState::Arriving {
            return None;
        }
        seat.state = SeatState::Live;
        Some(session.number)
    }

    /// Replaces the roster and tells the live sessions the difference.
    fn adopt_roster(&mut self, roster: Vec<(u64, Member)>, effects: &mut Vec<Effect>) {
        let present: HashMap<&SessionKey, u64> =
            roster.iter().map(|(place, member)| (&member.session, *place)).collect();
        let mut frames = Vec::new();
        for member in self.roster.values().filter(|member| !present.contains_key(&member.session)) {
            frames.push(ServerFrame::Quit { quit: &member.name }.encode());
        }
        for (_, member) in roster.iter().filter(|(_, member)| !self.places.contains_key(&member.session)) {
            frames.push(ServerFrame::Joined { joined: &member.name }.encode());
        }
        self.places = present.into_iter().map(|(session, place)| (session.clone(), place)).collect();
        self.roster = roster.into_iter().collect();
        show_everyone(&mut frames, &mut 0, effects);
        // A session whose arrival fell into the gap between two instances is on the roster now.
        for (number, seat) in &mut self.seats {
            if seat.state == SeatState::Arriving {
                seat.state = SeatState::Live;
                effects.push(Effect::One(*number, ServerFrame::Ready { ready: true }.encode(), 0));
            }
        }
    }

    /// Notes for those who came before the room was heard where its history stood then.
    fn mark_arrivals(&mut self) {
        for seat in self.seats.values_mut() {
            if let SeatState::Unnamed(Missed::Around(mark)) | SeatState::Waiting(Missed::Around(mark)) =
                &mut seat.state
            {
                mark.get_or_insert(self.shown.last());
            }
        }
    }

    fn show_missed(&mut self, messages: Vec<Posted>, effects: &mut Vec<Effect>) {
        let mut frames: Vec<Bytes> = Vec::with_capacity(messages.len());
        for posted in messages {
            if !self.shown.contains(&posted) {
                self.shown.note(&posted);
                frames.push(posted.wire);
            }
        }
        let mut count = frames.len();
        show_everyone(&mut frames, &mut count, effects);
    }

    /// Says what was held back while there was no room to say it in, or its session was not in yet.
    fn say_what_was_held(&mut self, epoch: Epoch, effects: &mut Vec<Effect>) {
        let seats = &self.seats;
        for say in self.unacked.deliver_new(|say| !is_held_for(say, seats)) {
            effects.push(Effect::Room(ToRoom::Say { epoch, say }));
        }
    }

    fn ack(&mut self, ack: &Ack, effects: &mut Vec<Effect>) {
        if self.settle(ack.number, &ack.id) {
            let wire = match ack.id.client() {
                Some(id) => ServerFrame::Ack { ack: id, timestamp: ack.timestamp }.encode(),
                None => Bytes::new(),
            };
            effects.push(Effect::One(ack.number, wire, 1));
        }
    }

    fn refused(
        &mut self,
        number: SessionNumber,
        id: &MessageId,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        if self.settle(number, id) {
            self.settle_with_refusal(number, id, refusal, effects);
        }
    }

    fn settle_with_refusal(
        &self,
        number: SessionNumber,
        id: &MessageId,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let frame = ServerFrame::Error {
            error: refusal.sentence(),
            id: id.client(),
            retry_after_ms: refusal.retry_after_ms(),
        };
        effects.push(Effect::One(number, frame.encode(), 1));
    }

    /// Forgets one unacknowledged message; false when it was settled before.
    fn settle(&mut self, number: SessionNumber, id: &MessageId) -> bool {
        self.unacked.settle(number, id)
    }

    fn detach_if_empty(&mut self, effects: &mut Vec<Effect>) {
        if self.is_empty() && self.phase != Phase::Apart {
            self.phase = Phase::Apart;
            self.roster.clear();
            self.places.clear();
            effects.push(Effect::Room(ToRoom::Detach(self.gateway.clone())));
        }
    }

    fn session(&self, number: SessionNumber) -> SessionKey {
        SessionKey { gateway: self.gateway.clone(), number }
    }
}

impl Seat {
    fn is_waiting(&self) -> bool {
        matches!(self.state, SeatState::Unnamed(_) | SeatState::Waiting(_))
    }
}

/// Whether what it says has to wait until its session is in: nobody speaks before they have been shown who listens.
fn is_held_for(say: &Say, seats: &BTreeMap<SessionNumber, Seat>) -> bool {
    seats.get(&say.from.session.number).is_some_and(Seat::is_waiting)
}

fn show_everyone(frames: &mut Vec<Bytes>, messages: &mut usize, effects: &mut Vec<Effect>) {
    if !frames.is_empty() {
        effects.push(Effect::Everyone(concat(frames), *messages));
        frames.clear();
        *messages = 0;
    }
}
