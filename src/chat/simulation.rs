//! Rooms, audiences, a store and clients in one thread, driven by random steps: joining, leaving, speaking, repeating,
//! slow reads, rooms that fail at any point, leaders that are replaced while they go on talking. In the end every promise of the protocol is checked.

mod check;

use super::audience::{Audience, Effect as AudienceEffect, HOLD_MS};
use super::room::{Effect as RoomEffect, HistoryRead, Inherited, Page, Room, Ticket};
use crate::protocol::internal::{Epoch, Posted, ToGateway, ToRoom};
use crate::protocol::message::Message;
use crate::protocol::names::{GatewayId, MessageId, SessionNumber};
use crate::protocol::{BACKLOG_DEFAULT, BACKLOG_MAX, Timestamp};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const GATEWAYS: usize = 2;

/// What a client has been sent.
#[derive(Default)]
struct Client {
    gateway: usize,
    name: String,
    since: Option<Timestamp>,
    /// The newest durable message when it came, and how many were on their way then, if its gateway heard the room
    /// already.
    came_at: Option<(Timestamp, usize)>,
    live: bool,
    gone: bool,
    frames: Vec<Value>,
    said: u32,
    settled: u32,
}

#[derive(Default)]
struct World {
    audiences: Vec<Audience>,
    room: Option<Room>,
    epoch: Epoch,
    now: Timestamp,
    to_room: VecDeque<ToRoom>,
    to_gateway: Vec<VecDeque<ToGateway>>,
    history: Vec<Message>,
    writing: VecDeque<Vec<Message>>,
    written: VecDeque<Timestamp>,
    reads: Vec<(Ticket, HistoryRead)>,
    timers: Vec<(usize, u64)>,
    /// Milliseconds since the beginning; unlike `now` it never steps back.
    uptime: u64,
    expiries: Vec<(usize, u64, u64)>,
    clients: BTreeMap<SessionNumber, Client>,
    /// Whether the room's actor has ever panicked: then those of another gateway may be seen to go and come.
    failed: bool,
    /// Who was just coming in when another node took over: their arrival may be seen twice.
    half_in: BTreeSet<String>,
    next_id: u64,
    ids: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
enum Step {
    Join {
        gateway: usize,
        since: Option<u8>,
    },
    Name {
        client: u8,
    },
    Leave {
        client: u8,
    },
    Say {
        client: u8,
        repeat: Option<u8>,
        with_id: bool,
    },
    ToRoom,
    ToGateway {
        gateway: usize,
    },
    Flush,
    Write,
    Written,
    Read {
        which: u8,
    },
    Fail,
    Timer {
        which: u8,
    },
    ClockBack,
    /// Another node takes the shard over; so much of what was being agreed upon survives.
    TakeOver {
        kept: u8,
    },
    /// Something that was to be kept is refused, though the leader stays the same.
    Refuse,
    /// Time passes, and nothing else.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..GATEWAYS, prop::option::of(any::<u8>())).prop_map(|(gateway, since)| Step::Join { gateway, since }),
        3 => any::<u8>().prop_map(|client| Step::Name { client }),
        1 => any::<u8>().prop_map(|client| Step::Leave { client }),
        8 => (any::<u8>(), prop::option::weighted(0.2, any::<u8>()), any::<bool>())
            .prop_map(|(client, repeat, with_id)| Step::Say { client, repeat, with_id }),
        16 => Just(Step::ToRoom),
        16 => (0..GATEWAYS).prop_map(|gateway| Step::ToGateway { gateway }),
        10 => Just(Step::Flush),
        6 => Just(Step::Write),
        6 => Just(Step::Written),
        6 => any::<u8>().prop_map(|which| Step::Read { which }),
        1 => Just(Step::Fail),
        2 => any::<u8>().prop_map(|which| Step::Timer { which }),
        1 => Just(Step::ClockBack),
        1 => any::<u8>().prop_map(|kept| Step::TakeOver { kept }),
        1 => Just(Step::Refuse),
        1 => Just(Step::Wait),
    ]
}

impl World {
    fn new() -> Self {
        let audiences = (0..GATEWAYS).map(|index| Audience::new(GatewayId::new("n", index))).collect();
        Self { audiences, to_gateway: vec![VecDeque::new(); GATEWAYS], now: 1_000, ..Self::default() }
    }

    fn with_history(len: usize) -> Self {
        let mut world = Self::new();
        for count in 0..len as u64 {
            let id = MessageId::Client(format!("old-{count}").into());
            world.history.push(Message { timestamp: count + 1, name: "old".into(), text: "x".into(), id });
        }
        world
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        self.uptime += 1;
        match *step {
            Step::Join { gateway, since } => {
                self.join(gateway, since.map(|since| self.some_timestamp(since)));
            }
            Step::Name { client } => {
                if let Some(number) = self.pick(client) {
                    self.name(number);
                }
            }
            Step::Leave { client } => {
                if let Some(number) = self.pick(client) {
                    self.clients.get_mut(&number).unwrap().gone = true;
                    self.audience(number, |audience, effects| audience.leave(number, effects));
                }
            }
            Step::Say { client, repeat, with_id } => self.say(client, repeat, with_id),
            Step::ToRoom => self.deliver_to_room(),
            Step::ToGateway { gateway } => {
                if let Some(message) = self.to_gateway[gateway].pop_front() {
                    self.drive(gateway, |audience, effects| audience.room(message, effects));
                }
            }
            Step::Flush => self.room_step(|room, _, effects| room.flush(effects)),
            Step::Write => {
                if let Some(messages) = self.writing.pop_front() {
                    self.written.push_back(messages.last().unwrap().timestamp);
                    self.history.extend(messages);
                    self.history.sort_by_key(|message| message.timestamp);
                }
            }
            Step::Written => {
                if let Some(upto) = self.written.pop_front() {
                    self.room_step(|room, _, effects| room.durable(upto, effects));
                }
            }
            Step::Read { which } => {
                if !self.reads.is_empty() {
                    let (ticket, read) = self.reads.remove(usize::from(which) % self.reads.len());
                    let page = self.page(read);
                    let now = self.now;
                    self.room_step(|room, history, effects| {
                        room.history_read(ticket, page, now, &mut |id| find(history, id), effects);
                    });
                }
            }
            Step::Fail => self.fail(),
            Step::Timer { which } => {
                if !self.timers.is_empty() {
                    let (gateway, attempt) = self.timers.remove(usize::from(which) % self.timers.len());
                    self.drive(gateway, |audience, effects| audience.timer(attempt, effects));
                }
            }
            Step::ClockBack => self.now = self.now.saturating_sub(500),
            Step::TakeOver { kept } => self.take_over(kept),
            Step::Refuse => self.refuse(),
            Step::Wait => self.wait(),
        }
    }

    fn join(&mut self, gateway: usize, since: Option<Timestamp>) {
        let number = self.clients.len() as SessionNumber;
        let name = format!("u{number}");
        let newest = self.history.last().map_or(0, |message| message.timestamp);
        let on_its_way = self.writing.iter().flatten().count();
        let came_at = self.audiences[gateway].is_synced().then_some((newest, on_its_way));
        let client = Client { gateway, name, since, came_at, ..Client::default() };
        self.clients.insert(number, client);
        self.audience(number, |audience, effects| audience.arrive(number, since, effects));
    }

    fn name(&mut self, number: SessionNumber) {
        let name = self.clients[&number].name.clone();
        self.audience(number, |audience, effects| audience.enter(number, name.into(), effects));
    }

    /// A timestamp that a client may have seen, or 0.
    fn some_timestamp(&self, which: u8) -> Timestamp {
        let place = self.history.len() * usize::from(which) / 256;
        if place == 0 { 0 } else { self.history[place - 1].timestamp }
    }

    fn say(&mut self, client: u8, repeat: Option<u8>, with_id: bool) {
        let Some(number) = self.pick(client) else { return };
        self.next_id += 1;
        let (id, text) = match repeat.filter(|_| !self.ids.is_empty()) {
            Some(which) => self.ids[usize::from(which) % self.ids.len()].clone(),
            None => (format!("id{}", self.next_id), format!("text {}", self.next_id)),
        };
        let id = if with_id || repeat.is_some() {
            self.ids.push((id.clone(), text.clone()));
            MessageId::Client(id.into())
        } else {
            MessageId::Made(u128::from(self.next_id))
        };
        self.clients.get_mut(&number).unwrap().said += 1;
        let now = self.uptime;
        self.audience(number, |audience, effects| audience.say(number, id, text.into(), now, effects));
    }

    /// What the shard host does: only an attach opens a room.
    fn deliver_to_room(&mut self) {
        let Some(message) = self.to_room.pop_front() else { return };
        if self.room.is_none() && matches!(message, ToRoom::Attach(_)) {
            while !self.writing.is_empty() {
                self.step(&Step::Write);
            }
            self.written.clear();
            self.reads.clear();
            let page = newest(&self.history, BACKLOG_DEFAULT);
            self.epoch.instance += 1;
            let mut room = Room::open(self.epoch, page.messages, page.more);
            room.pass_by(self.now);
            self.room = Some(room);
        }
        let now = self.now;
        self.room_step(|room, history, effects| {
            room.command(message, now, &mut |id| find(history, id), effects);
        });
    }

    /// The room's actor panics: what it was sent is lost with it, what it appended is not.
    fn fail(&mut self) {
        self.failed = true;
        if self.room.take().is_some() {
            self.to_room.clear();
            self.reads.clear();
            self.written.clear();
            self.to_gateway.iter_mut().for_each(|queue| queue.push_back(ToGateway::Failed));
        }
    }

    /// The room's node is cut off, paused or dead: what it was sent is lost, what it has sent may still arrive, and of
    /// what it wanted to keep a beginning is kept. Another node is elected, is handed over what the gateways know, and
    /// opens the room.
    fn take_over(&mut self, kept: u8) {
        self.epoch = Epoch { term: self.epoch.term + 1, instance: 1 };
        self.open_anew(usize::from(kept) % (self.writing.len() + 1));
    }

    /// What was appended first is refused, what was appended behind it is kept. The room hears of both, in this order.
    fn refuse(&mut self) {
        if self.room.is_none() {
            return;
        }
        if self.writing.pop_front().is_none() {
            return;
        }
        self.room_step(|room, _, _| room.append_refused());
        while !self.writing.is_empty() {
            self.step(&Step::Write);
        }
        while !self.written.is_empty() {
            self.step(&Step::Written);
        }
        self.epoch.instance += 1;
        self.open_anew(0);
    }

    fn open_anew(&mut self, kept: usize) {
        let is_in = |client: &&Client| client.frames.iter().any(|frame| frame["ready"] == true);
        let half_in = self.clients.values().filter(|client| !is_in(client));
        self.half_in.extend(half_in.map(|client| client.name.clone()));
        self.history.extend(self.writing.drain(..).take(kept).flatten());
        self.written.clear();
        self.reads.clear();
        self.to_room.clear();
        let (mut inherited, mut members) = (BTreeMap::new(), Vec::new());
        for gateway in 0..GATEWAYS {
            let term = self.epoch.term;
            let mut shown = Vec::new();
            self.drive(gateway, |audience, effects| {
                let handed_over = audience.hand_over(term, effects);
                members.extend(handed_over.members);
                shown = handed_over.messages;
            });
            inherited.extend(shown.into_iter().map(|posted| (posted.timestamp, posted)));
        }
        let messages =
            inherited.into_values().map(|posted| posted.to_message().expect("a message")).collect();
        let inherited = Inherited { members, messages };
        self.history.sort_by_key(|message| message.timestamp);
        let page = newest(&self.history, BACKLOG_DEFAULT);
        let now = self.now;
        self.room = Some(Room::open(self.epoch, page.messages, page.more));
        self.room_step(|room, history, effects| {
            room.pass_by(now);
            room.adopt(inherited, &mut |id| find(history, id));
            room.flush(effects);
        });
        // One of the gateways hears what is left of the old leader's words before it hears of the new one.
        self.hear_everything(kept % GATEWAYS);
        (0..GATEWAYS).for_each(|gateway| self.drive(gateway, Audience::lost));
    }

    fn hear_everything(&mut self, gateway: usize) {
        while let Some(message) = self.to_gateway[gateway].pop_front() {
            self.drive(gateway, |audience, effects| audience.room(message, effects));
        }
    }

    fn wait(&mut self) {
        self.uptime += HOLD_MS + 1;
        let (due, later) =
            std::mem::take(&mut self.expiries).into_iter().partition(|(_, _, at)| *at <= self.uptime);
        self.expiries = later;
        let due: Vec<(usize, u64, u64)> = due;
        for (gateway, outage, _) in due {
            let now = self.uptime;
            self.drive(gateway, |audience, effects| audience.expire(outage, now, effects));
        }
    }

    fn room_step(&mut self, run: impl FnOnce(&mut Room, &[Message], &mut Vec<RoomEffect>)) {
        let Some(room) = &mut self.room else { return };
        let mut effects = Vec::new();
        run(room, &self.history, &mut effects);
        for effect in effects {
            match effect {
                RoomEffect::Append(messages) => self.writing.push_back(messages),
                RoomEffect::Tell(gateway, message) => {
                    let index = (0..GATEWAYS).find(|index| GatewayId::new("n", *index) == gateway).unwrap();
                    self.to_gateway[index].push_back(message);
                }
                RoomEffect::Read(ticket, read) => self.reads.push((ticket, read)),
            }
        }
    }

    fn page(&self, read: HistoryRead) -> Page {
        let range: Vec<Message> = self
            .history
            .iter()
            .filter(|message| message.timestamp > read.after && message.timestamp <= read.upto)
            .cloned()
            .collect();
        if read.newest {
            newest(&range, BACKLOG_MAX)
        } else {
            let messages = range.iter().take(BACKLOG_MAX).map(Message::post).collect();
            Page { messages, more: range.len() > BACKLOG_MAX }
        }
    }

    fn audience(&mut self, number: SessionNumber, run: impl FnOnce(&mut Audience, &mut Vec<AudienceEffect>)) {
        self.drive(self.clients[&number].gateway, run);
    }

    fn drive(&mut self, gateway: usize, run: impl FnOnce(&mut Audience, &mut Vec<AudienceEffect>)) {
        let mut effects = Vec::new();
        run(&mut self.audiences[gateway], &mut effects);
        for effect in effects {
            match effect {
                AudienceEffect::Room(message) => self.to_room.push_back(message),
                AudienceEffect::Everyone(wire, _) => {
                    for client in self.clients.values_mut() {
                        if client.gateway == gateway && client.live && !client.gone {
                            client.frames.extend(decode(&wire));
                        }
                    }
                }
                AudienceEffect::One(number, wire, settled) => {
                    let client = self.clients.get_mut(&number).unwrap();
                    if !client.gone {
                        client.frames.extend(decode(&wire));
                        client.settled += settled;
                    }
                }
                AudienceEffect::GoLive(number) => self.clients.get_mut(&number).unwrap().live = true,
                AudienceEffect::Timer(attempt, _) => self.timers.push((gateway, attempt)),
                AudienceEffect::Expire(outage, after_ms) => {
                    self.expiries.push((gateway, outage, self.uptime + after_ms));
                }
            }
        }
    }

    fn pick(&self, which: u8) -> Option<SessionNumber> {
        let here: Vec<SessionNumber> =
            self.clients.iter().filter(|(_, client)| !client.gone).map(|(number, _)| *number).collect();
        (!here.is_empty()).then(|| here[usize::from(which) % here.len()])
    }

    /// Lets everything run to its end, without further faults. Whoever has no name yet gets one.
    fn settle(&mut self) {
        for number in self.clients.keys().copied().collect::<Vec<_>>() {
            if !self.clients[&number].gone {
                self.name(number);
            }
        }
        let mut at_rest = 0;
        for _ in 0..100_000 {
            for step in [Step::ToRoom, Step::Flush, Step::Write, Step::Written, Step::Read { which: 0 }] {
                self.step(&step);
            }
            (0..GATEWAYS).for_each(|gateway| self.step(&Step::ToGateway { gateway }));
            let busy = !self.to_room.is_empty()
                || self.to_gateway.iter().any(|queue| !queue.is_empty())
                || !self.writing.is_empty()
                || !self.written.is_empty()
                || !self.reads.is_empty();
            let unsynced =
                self.audiences.iter().any(|audience| !audience.is_empty() && !audience.is_synced());
            if !busy && unsynced {
                (0..self.timers.len()).for_each(|_| self.step(&Step::Timer { which: 0 }));
            }
            // Twice, because what the last step of one pass left in the room's round comes out with the next.
            at_rest = if busy || unsynced { 0 } else { at_rest + 1 };
            if at_rest == 2 {
                return;
            }
        }
        panic!("the world does not come to rest");
    }
}

fn find(history: &[Message], id: &MessageId) -> Option<Timestamp> {
    history.iter().find(|message| message.id == *id).map(|message| message.timestamp)
}

fn newest(messages: &[Message], max: usize) -> Page {
    let start = messages.len().saturating_sub(max);
    let posts: Vec<Posted> = messages[start..].iter().map(Message::post).collect();
    Page { messages: posts, more: start > 0 }
}

/// The JSON texts in a run of WebSocket frames.
fn decode(wire: &Bytes) -> Vec<Value> {
    let mut frames = Vec::new();
    let mut rest = &wire[..];
    while let [0x81, len, tail @ ..] = rest {
        let (len, tail) = match *len {
            126 => (usize::from(u16::from_be_bytes([tail[0], tail[1]])), &tail[2..]),
            short => (usize::from(short), tail),
        };
        frames.push(serde_json::from_slice(&tail[..len]).unwrap());
        rest = &tail[len..];
    }
    assert!(rest.is_empty(), "whole frames only");
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Whatever happens in whichever order, the promises hold once things have come to rest.
    #[test]
    fn the_promises_hold(
        history in prop_oneof![Just(0_usize), 1..5_usize, Just(150), Just(1_300)],
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut world = World::with_history(history);
        for step in &steps {
            world.step(step);
        }
        world.settle();
        world.check();
    }
}

/// A message that makes its room fail every time is given up, and the rest of the room goes on.
#[test]
fn a_message_that_kills_its_room_is_given_up() {
    let mut world = World::new();
    world.step(&Step::Join { gateway: 0, since: None });
    world.settle();
    world.step(&Step::Say { client: 0, repeat: None, with_id: true });
    for _ in 0..10 {
        world.fail();
        for _ in 0..20 {
            world.step(&Step::ToGateway { gateway: 0 });
            world.step(&Step::Timer { which: 0 });
        }
        let carries_it = world.to_room.iter().any(|message| {
            matches!(message, ToRoom::Say { .. })
                || matches!(message, ToRoom::Attach(attach) if format!("{attach:?}").contains("text 1"))
        });
        if !carries_it {
            break;
        }
        world.room =
            Some(Room::open(Epoch { term: 0, instance: world.epoch.instance + 1 }, Vec::new(), false));
    }
    world.settle();
    let client = &world.clients[&0];
    assert!(client.frames.iter().any(|frame| frame["id"] == "id1" && frame["error"].is_string()));
    world.check();
}

/// Ten people, a short story, and what one of them sees.
#[test]
fn a_transcript() {
    let mut world = World::new();
    world.step(&Step::Join { gateway: 0, since: None });
    world.settle();
    world.step(&Step::Join { gateway: 1, since: None });
    world.settle();
    world.step(&Step::Say { client: 0, repeat: None, with_id: true });
    world.settle();
    world.step(&Step::Leave { client: 1 });
    world.settle();
    let timestamp = world.history[0].timestamp;
    let seen: Vec<String> = world.clients[&0].frames.iter().map(Value::to_string).collect();
    assert_eq!(
        seen,
        [
            r#"{"joined":"u0"}"#.to_owned(),
            r#"{"ready":true}"#.to_owned(),
            r#"{"joined":"u1"}"#.to_owned(),
            format!(r#"{{"id":"id1","message":"text 1","name":"u0","timestamp":{timestamp}}}"#),
            format!(r#"{{"ack":"id1","timestamp":{timestamp}}}"#),
            r#"{"quit":"u1"}"#.to_owned(),
        ]
    );
}

/// A leader of an earlier term that does not know yet that it is one is not believed, even when it is asked.
#[test]
fn an_answer_from_before_the_fence_is_not_believed() {
    let mut world = World::new();
    world.epoch.term = 1;
    world.step(&Step::Join { gateway: 0, since: None });
    world.settle();
    let attempt = world.timers.last().map_or(0, |(_, attempt)| *attempt);
    world.drive(0, |audience, effects| drop(audience.hand_over(2, effects)));
    (0..world.timers.len()).for_each(|_| world.step(&Step::Timer { which: 0 }));
    // The room of term 1 is still there and answers.
    world.deliver_to_room();
    world.hear_everything(0);
    assert!(!world.audiences[0].is_synced(), "attempt {attempt}");
}

/// Who moves here from another gateway has seen there what is not known to be durable yet, and does not see it again.
#[test]
fn what_was_seen_elsewhere_is_not_shown_again() {
    let mut world = World::new();
    world.step(&Step::Join { gateway: 0, since: None });
    world.settle();
    world.step(&Step::Say { client: 0, repeat: None, with_id: true });
    for step in [Step::ToRoom, Step::Flush, Step::Write] {
        world.step(&step);
    }
    let newest = world.history[0].timestamp;
    world.join(1, Some(newest));
    world.name(1);
    for _ in 0..2 {
        world.step(&Step::ToRoom);
        world.step(&Step::ToGateway { gateway: 1 });
    }
    assert!(world.clients[&1].live);
    world.step(&Step::Say { client: 0, repeat: None, with_id: true });
    world.step(&Step::ToRoom);
    world.step(&Step::Flush);
    world.hear_everything(1);
    world.step(&Step::Fail);
    world.settle();
    world.check();
}
