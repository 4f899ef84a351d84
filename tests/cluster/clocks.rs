//! Clocks that are hours apart.

use std::time::{Duration, Instant, SystemTime};

use crate::cluster::{Shape, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::proxy::Fault;
use crate::support::{Client, SOON};

const HOUR_MS: u64 = 3_600_000;

/// Shorter than a lease.
const LAST_WORDS: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn time_in_a_room_goes_on_when_the_clock_of_its_next_host_is_hours_behind() {
    trial(120, async {
        // More shards than elsewhere, so that the node with the fast clock surely leads one.
        let mut cluster =
            Shape::of(3).shards(12).clock(0, HOUR_MS as i64).clock(2, -(HOUR_MS as i64)).start().await;
        let room = cluster.room_led_by(0).await;
        let mut people = Vec::new();
        for (home, name) in [(1, "alice"), (2, "bob")] {
            people.push(Person::on(&cluster, &[home], &room, name).talking_every(15).come().await);
        }
        for person in &mut people {
            person.until_acked(50, SOON).await;
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
        let ahead = people[0].account().shown.last().unwrap().timestamp.saturating_sub(now);
        assert!(
            ahead > HOUR_MS / 2,
            "the first host's clock is ahead, or this test shows nothing: {ahead} ms"
        );

        cluster.kill(0);
        let killed_at = Instant::now();
        for person in &mut people {
            person.until_acked(100, SOON).await;
            let silence = person.account().longest_silence(killed_at);
            println!("{}: no ack for {silence:?} after the kill", person.name());
            assert!(silence < SILENCE_MAX, "{silence:?}");
        }
        cluster.start_again(0).await;
        cluster.whole().await;

        // Whoever comes back with a time of the future has missed nothing, on whatever node.
        let last = people[0].account().shown.last().unwrap().timestamp;
        let (back, welcome) = Client::rejoin(cluster.node(2), &room, "back", last).await;
        assert!(!welcome.gap && welcome.backlog.iter().all(|said| said.timestamp > last), "{welcome:?}");
        back.leave().await;

        // Handed on, not lost: again to a clock that is behind, or to one that is ahead.
        let host = cluster.leader_of(&room).await;
        if host != 0 {
            for person in &mut people {
                person.until_acked(20, SOON).await;
            }
        }
        conclude(&cluster, people, SOON).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_clocks_were_all_set_back_goes_on_above_what_was_said() {
    trial(120, async {
        let ahead_ms = 2 * HOUR_MS as i64;
        let shape = (0..3).fold(Shape::of(3), |shape, node| shape.clock(node, ahead_ms));
        let mut cluster = shape.start().await;
        let mut alice = Client::join(cluster.node(0), "lobby", "alice").await;
        let before = alice.say_and_settle("in two hours", "1").await;
        drop(alice);
        cluster.stop_all().await;
        for index in cluster.all() {
            cluster.disk(index).set_clock(0);
        }
        cluster.start_all().await;
        // They stay, so that nobody's leaving comes between what another says and hears.
        let mut there = Vec::new();
        for index in cluster.all() {
            let (mut alice, welcome) =
                Client::rejoin(cluster.node(index), "lobby", "alice", before.timestamp).await;
            let after = alice.say_and_settle("now", &format!("now {index}")).await;
            assert!(after.timestamp > before.timestamp, "{after:?} after {before:?}");
            assert_eq!(welcome.backlog.len(), index, "what was said since");
            there.push(alice);
        }
    })
    .await;
}

/// The last words of a host whose clock was ahead may reach only those on its own node, and nobody else ever. Whatever
/// is said in the room afterwards is above them, or those who saw them would ask for too little when they come back.
#[tokio::test(flavor = "multi_thread")]
async fn who_saw_the_last_words_of_a_host_whose_clock_was_ahead_misses_nothing() {
    trial(120, async {
        let shape = Shape::of(3).shards(12).proxied().clock(0, HOUR_MS as i64);
        let mut cluster = shape.start().await;
        let rooms = cluster.rooms_led_by(0).await;
        let mut conversations = Vec::new();
        for room in &rooms {
            let there = Person::on(&cluster, &[0, 1, 2], room, "there").coming_back().in_danger();
            let elsewhere = Person::on(&cluster, &[1], room, "elsewhere").talking_every(5);
            conversations.push(vec![there.talking_every(5).come().await, elsewhere.come().await]);
        }
        for people in &mut conversations {
            people[1].until_acked(100, SOON).await;
        }
        // Nothing is agreed upon any more, but for as long as its lease holds the host speaks.
        cluster.isolate(0, Fault::Held);
        tokio::time::sleep(LAST_WORDS).await;
        let ghosts: usize = conversations.iter().map(|people| people[0].account().unacked()).sum();
        assert!(ghosts > 0, "somebody heard what was not acknowledged, or this test shows nothing");
        cluster.kill(0);
        cluster.heal();
        for people in &mut conversations {
            people[1].until_acked(200, SOON).await;
        }
        cluster.start_again(0).await;
        cluster.whole().await;
        for people in conversations {
            conclude(&cluster, people, SOON).await;
        }
    })
    .await;
}
