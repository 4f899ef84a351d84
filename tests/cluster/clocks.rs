//! Clocks that are hours apart. Only in builds with the feature `fault-injection`.

use std::time::{Instant, SystemTime};

use crate::cluster::{Shape, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::{Client, SOON};

const HOUR_MS: u64 = 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn time_in_a_room_goes_on_when_the_clock_of_its_next_host_is_hours_behind() {
    trial(120, async {
        // More shards than elsewhere, so that the node with the fast clock surely leads one.
        let mut cluster = Shape::of(3)
            .shards(12)
            .env_of(0, "PARLEY_FAULT_CLOCK_OFFSET_MS", "3600000")
            .env_of(2, "PARLEY_FAULT_CLOCK_OFFSET_MS", "-3600000")
            .start()
            .await;
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
        let shape = Shape::of(3).env("PARLEY_FAULT_CLOCK_OFFSET_MS", "7200000");
        let mut cluster = shape.start().await;
        let mut alice = Client::join(cluster.node(0), "lobby", "alice").await;
        let before = alice.say_and_settle("in two hours", "1").await;
        drop(alice);
        cluster.stop_all().await;
        for index in cluster.all() {
            cluster.replan(index, |plan| plan.env("PARLEY_FAULT_CLOCK_OFFSET_MS", "0"));
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
