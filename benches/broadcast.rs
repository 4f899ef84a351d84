//! What one message costs from the room's rules to the queues of everyone in the room, without sockets.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use parley::actors::gateway::{Inbox, Outbox, session_queue};
use parley::chat::audience::{Audience, Effect as AudienceEffect};
use parley::chat::room::{Effect as RoomEffect, Room};
use parley::protocol::internal::Epoch;
use parley::protocol::names::{GatewayId, MessageId};
use std::hint::black_box;

/// A room with everyone in it, and what stands between its rules and the sockets.
struct Hall {
    room: Room,
    audience: Audience,
    seats: Vec<(Outbox, Inbox)>,
    next_id: u128,
}

impl Hall {
    fn with_members(members: u64) -> Self {
        let audience = Audience::new(GatewayId::new("n1", 0));
        let mut hall = Self {
            room: Room::open(Epoch { term: 1, instance: 1 }, Vec::new(), false),
            audience,
            seats: Vec::new(),
            next_id: 0,
        };
        for number in 0..members {
            let mut effects = Vec::new();
            hall.audience.arrive(number, None, &mut effects);
            hall.audience.enter(number, format!("member {number}").into(), &mut effects);
            hall.seats.push(session_queue());
            hall.settle(effects);
        }
        hall
    }

    fn say(&mut self) {
        self.next_id += 1;
        let mut effects = Vec::new();
        let text =
            "a message of about a hundred characters, as people write them when they have something to tell";
        self.audience.say(0, MessageId::Made(self.next_id), text.into(), 0, &mut effects);
        self.settle(effects);
    }

    /// Carries effects to and fro until nothing is left to do.
    fn settle(&mut self, mut effects: Vec<AudienceEffect>) {
        while !effects.is_empty() {
            let mut answers = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    AudienceEffect::Room(message) => {
                        self.room.command(message, 1_700_000_000_000, &mut |_| None, &mut answers);
                    }
                    AudienceEffect::Everyone(wire, _) => {
                        for (outbox, inbox) in &mut self.seats {
                            assert!(outbox.relay(wire.clone()));
                            black_box(inbox.try_next());
                        }
                    }
                    AudienceEffect::One(..)
                    | AudienceEffect::GoLive(_)
                    | AudienceEffect::Timer(..)
                    | AudienceEffect::Expire(..) => {}
                }
            }
            self.room.flush(&mut answers);
            let mut upto = None;
            for answer in answers {
                match answer {
                    RoomEffect::Append(messages) => upto = messages.last().map(|message| message.timestamp),
                    RoomEffect::Tell(_, message) => self.audience.room(message, &mut effects),
                    RoomEffect::Read(..) => unreachable!("the ring holds everything"),
                }
            }
            if let Some(upto) = upto {
                let mut acks = Vec::new();
                self.room.durable(upto, &mut acks);
                for ack in acks {
                    if let RoomEffect::Tell(_, message) = ack {
                        self.audience.room(message, &mut effects);
                    }
                }
            }
        }
    }
}

fn broadcast(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("broadcast");
    for members in [1, 100, 1000] {
        let mut hall = Hall::with_members(members);
        group.throughput(Throughput::Elements(members));
        group.bench_function(BenchmarkId::from_parameter(members), |bencher| bencher.iter(|| hall.say()));
    }
    group.finish();
}

criterion_group!(benches, broadcast);
criterion_main!(benches);
