//! A room of two or three members is told what it received; the check says what is wrong with it.

use super::*;

const RUN: u32 = 7;

fn text(sender: u32, seq: u32) -> String {
    let mut text = String::new();
    Payload { room: 0, sender, seq, sent_us: 5 }.encode(RUN, 100, &mut text);
    text
}

/// A room with two senders, seen by `members`.
struct Room {
    order: RoomOrder,
    members: Vec<MemberCheck>,
}

impl Room {
    fn new(members: u32) -> Self {
        Self {
            order: RoomOrder::new(members),
            members: (0..members).map(|_| MemberCheck::new(0, 2)).collect(),
        }
    }

    fn gets(&mut self, member: usize, sender: u32, seq: u32, timestamp: u64) -> Result<Payload, Violation> {
        self.members[member].receive(&self.order, RUN, &format!("m{sender}"), &text(sender, seq), timestamp)
    }

    /// Everyone gets these (sender, seq), with timestamps 1, 2, 3…
    fn all_get(&mut self, messages: &[(u32, u32)]) {
        for member in 0..self.members.len() {
            for (&(sender, seq), timestamp) in messages.iter().zip(1..) {
                self.gets(member, sender, seq, timestamp).unwrap();
            }
        }
    }

    fn finish(&self, sent: [u32; 2]) -> Vec<Result<(), Violation>> {
        self.members.iter().map(|member| member.finish(&sent)).collect()
    }
}

#[test]
fn what_everyone_got_once_and_in_order_is_right() {
    let mut room = Room::new(3);
    room.all_get(&[(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]);
    assert_eq!(room.finish([3, 2]), vec![Ok(()); 3]);
    // What all have seen is forgotten, so a run's memory does not grow with its length.
    assert!(room.order.lock().entries.is_empty());
}

#[test]
fn a_room_of_one_keeps_no_log() {
    let mut room = Room::new(1);
    room.all_get(&[(0, 0), (0, 1), (1, 0)]);
    assert!(room.order.lock().entries.is_empty());
    assert_eq!(room.finish([2, 1]), vec![Ok(())]);
}

#[test]
fn a_missing_message_is_named() {
    let mut room = Room::new(2);
    for (sender, seq, timestamp) in [(0, 0, 1), (0, 1, 2), (0, 2, 3)] {
        room.gets(0, sender, seq, timestamp).unwrap();
    }
    room.gets(1, 0, 0, 1).unwrap();
    room.gets(1, 0, 2, 3).unwrap();
    assert_eq!(room.finish([3, 0]), vec![Ok(()), Err(Violation::Missing { sender: 0, seq: 1 })]);
}

#[test]
fn a_missing_message_at_the_one_who_leads_is_named_there() {
    let mut room = Room::new(2);
    // Session 0 never gets (1, 0) and is the first to see everything else.
    room.gets(0, 0, 0, 1).unwrap();
    room.gets(0, 0, 1, 3).unwrap();
    for (sender, seq, timestamp) in [(0, 0, 1), (1, 0, 2), (0, 1, 3)] {
        room.gets(1, sender, seq, timestamp).unwrap();
    }
    assert_eq!(room.finish([2, 1])[0], Err(Violation::Missing { sender: 1, seq: 0 }));
}

#[test]
fn a_last_message_that_never_came_is_named() {
    let mut room = Room::new(2);
    room.all_get(&[(0, 0), (1, 0)]);
    assert_eq!(room.finish([1, 2]), vec![Err(Violation::Missing { sender: 1, seq: 1 }); 2]);
}

#[test]
fn a_doubled_message_is_named() {
    let mut room = Room::new(2);
    room.all_get(&[(0, 0), (1, 0)]);
    assert_eq!(room.gets(0, 0, 0, 3), Err(Violation::Doubled { sender: 0, seq: 0 }));
    assert_eq!(room.gets(1, 1, 0, 2), Err(Violation::Doubled { sender: 1, seq: 0 }));
}

#[test]
fn a_message_after_a_later_one_of_its_sender_is_reordered() {
    let mut room = Room::new(1);
    room.gets(0, 0, 1, 2).unwrap();
    assert_eq!(room.gets(0, 0, 0, 3), Err(Violation::Reordered { sender: 0, seq: 0 }));
}

#[test]
fn senders_swapped_for_one_member_are_noticed() {
    let mut room = Room::new(2);
    room.gets(0, 0, 0, 1).unwrap();
    room.gets(0, 1, 0, 2).unwrap();
    room.gets(1, 1, 0, 2).unwrap();
    assert_eq!(
        room.gets(1, 0, 0, 1),
        Err(Violation::TimestampBack { sender: 0, seq: 0, timestamp: 1, last: 2 })
    );
}

#[test]
fn two_orders_with_timestamps_to_match_are_noticed() {
    let mut room = Room::new(2);
    room.gets(0, 0, 0, 1).unwrap();
    room.gets(0, 1, 0, 2).unwrap();
    assert_eq!(
        room.gets(1, 1, 0, 1),
        Err(Violation::TimestampShared { timestamp: 1, sender: 1, seq: 0, other_sender: 0, other_seq: 0 })
    );

    let mut room = Room::new(2);
    room.gets(0, 0, 0, 1).unwrap();
    room.gets(0, 1, 0, 2).unwrap();
    room.gets(1, 1, 0, 3).unwrap();
    room.gets(1, 0, 0, 4).unwrap();
    assert_eq!(room.finish([1, 1]), vec![Ok(()), Err(Violation::OrderDiffers)]);
}

#[test]
fn timestamps_must_rise_and_be_the_same_for_all() {
    let mut room = Room::new(2);
    room.gets(0, 0, 0, 5).unwrap();
    assert_eq!(
        room.gets(0, 0, 1, 5),
        Err(Violation::TimestampBack { sender: 0, seq: 1, timestamp: 5, last: 5 })
    );
    assert_eq!(
        room.gets(1, 0, 0, 6),
        Err(Violation::TimestampDiffers { sender: 0, seq: 0, timestamp: 6, other: 5 })
    );
}

#[test]
fn altered_misnamed_and_strange_messages_are_noticed() {
    let room = RoomOrder::new(1);
    let mut member = MemberCheck::new(0, 2);
    let altered = text(0, 0).replace("quick", "quack");
    assert_eq!(member.receive(&room, RUN, "m0", &altered, 1), Err(Violation::Altered(altered.clone())));
    assert_eq!(
        member.receive(&room, RUN, "m1", &text(0, 0), 1),
        Err(Violation::OtherName { sender: 0, seq: 0, name: "m1".into() })
    );
    assert_eq!(
        member.receive(&room, RUN, "m2", &text(2, 0), 1),
        Err(Violation::NeverSent { sender: 2, seq: 0 })
    );
    let mut elsewhere = MemberCheck::new(1, 2);
    assert_eq!(
        elsewhere.receive(&room, RUN, "m0", &text(0, 0), 1),
        Err(Violation::OtherRoom { sender: 0, seq: 0, room: 0 })
    );
}

#[test]
fn more_than_was_sent_is_noticed() {
    let mut room = Room::new(1);
    room.all_get(&[(0, 0), (0, 1)]);
    assert_eq!(room.finish([1, 0]), vec![Err(Violation::NeverSent { sender: 0, seq: 1 })]);
}

#[test]
fn a_flood_of_absences_ends_at_once() {
    let mut room = Room::new(1);
    assert_eq!(room.gets(0, 0, 20_000, 1), Err(Violation::Missing { sender: 0, seq: 0 }));
}

#[test]
fn acknowledgements_come_once_each_with_the_relayed_timestamp() {
    let mut acks = AckCheck::default();
    for seq in 0..3 {
        acks.sent(seq, u64::from(seq) * 10);
    }
    acks.relayed(4, 0, 100).unwrap();
    assert_eq!(acks.acked(RUN, 4, &AckCheck::id(RUN, 4, 0), 100), Ok(0));
    // The order of acknowledgements is free, and so is whether the relay or the acknowledgement comes first.
    assert_eq!(acks.acked(RUN, 4, &AckCheck::id(RUN, 4, 2), 102), Ok(20));
    assert_eq!((acks.waiting(), acks.oldest_waiting()), (1, Some(1)));
    acks.relayed(4, 2, 102).unwrap();
    let again = AckCheck::id(RUN, 4, 0);
    assert_eq!(acks.acked(RUN, 4, &again, 100), Err(Violation::AckUnasked(again.clone())));
    for strange in
        [AckCheck::id(RUN, 5, 1), AckCheck::id(RUN, 4, 9), AckCheck::id(8, 4, 1), "x".into(), String::new()]
    {
        assert_eq!(acks.acked(RUN, 4, &strange, 1), Err(Violation::AckUnasked(strange.clone())));
    }
    assert_eq!(acks.into_acked(), vec![100, 0, 102]);
}

#[test]
fn an_acknowledgement_with_another_timestamp_is_noticed() {
    let mut acks = AckCheck::default();
    acks.sent(0, 1);
    acks.relayed(4, 0, 100).unwrap();
    assert_eq!(
        acks.acked(RUN, 4, &AckCheck::id(RUN, 4, 0), 101),
        Err(Violation::AckTimestamp { seq: 0, acked: 101, relayed: 100 })
    );
}
