//! Nodes that come back: with what they had, or with nothing.

use std::time::Instant;

use crate::cluster::{Cluster, name, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::{Client, SOON, Said, room_path};

const ROOM: &str = "lobby";

/// Something old, in rooms of every shard and in a private one.
async fn past(cluster: &Cluster) -> Vec<(String, Vec<Said>)> {
    let mut rooms: Vec<String> = (0..8).map(|number| format!("archive {number}")).collect();
    rooms.push(cluster.node(0).private_room().await);
    let mut past = Vec::new();
    for (number, room) in rooms.into_iter().enumerate() {
        let mut writer = Client::join(cluster.node(number % 3), &room, "writer").await;
        let lines: Vec<_> = (0..60).map(|n| (format!("{n} of long ago"), format!("{number} {n}"))).collect();
        let (said, _) = writer.say_all(&lines, 30).await;
        writer.leave().await;
        past.push((room, said));
    }
    past
}

/// Every live node still has it all.
async fn remember(cluster: &Cluster, past: &[(String, Vec<Said>)]) {
    for (room, said) in past {
        assert_eq!(cluster.history(room).await, *said, "{} is as it was", room_path(room));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_died_comes_back_with_its_data_and_then_another_may_die() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        let past = past(&cluster).await;
        let host = cluster.leader_of(ROOM).await;
        let [first, safe] = cluster.others(host)[..] else { panic!("three nodes") };
        let mut alice = Person::on(&cluster, &[safe], ROOM, "alice").talking_every(15).come().await;
        alice.until_acked(20, SOON).await;

        cluster.kill(first);
        alice.until_acked(100, SOON).await;
        cluster.start_again(first).await;
        let back_at = Instant::now();
        cluster.whole().await;
        println!("whole {:?} after {} was back", back_at.elapsed(), name(first));

        // From here on nothing can be acked without the copy of the one that was away.
        cluster.kill(host);
        let killed_at = Instant::now();
        alice.until_acked(50, SOON).await;
        let silence = alice.account().longest_silence(killed_at);
        println!("no ack for {silence:?} after the second kill");
        assert!(silence < SILENCE_MAX, "{silence:?}");
        cluster.ready().await;
        remember(&cluster, &past).await;
        conclude(&cluster, vec![alice], SOON).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_folder_may_be_lost_once_one_after_the_other() {
    trial(170, async {
        let mut cluster = Cluster::start(3).await;
        let past = past(&cluster).await;
        let mut people = Vec::new();
        for (homes, name) in [([0, 1, 2], "alice"), ([1, 2, 0], "bob"), ([2, 0, 1], "carol")] {
            let person = Person::on(&cluster, &homes, ROOM, name).coming_back().in_danger();
            people.push(person.talking_every(25).come().await);
        }
        for losing in cluster.all() {
            for person in &mut people {
                person.until_acked(10, SOON).await;
            }
            cluster.kill(losing);
            for person in &mut people {
                person.until_acked(20, SOON).await;
            }
            cluster.wipe(losing);
            cluster.start_again(losing).await;
            let back_at = Instant::now();
            cluster.whole().await;
            println!("{} was a replica again {:?} after it came back empty", name(losing), back_at.elapsed());
        }
        // No folder is left of those that the past was written to.
        remember(&cluster, &past).await;
        let dying = cluster.leader_of(ROOM).await;
        cluster.kill(dying);
        for person in &mut people {
            person.until_acked(20, SOON).await;
        }
        cluster.ready().await;
        remember(&cluster, &past).await;
        conclude(&cluster, people, SOON).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_catches_up_and_tells_the_same() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        let away = cluster.others(cluster.leader_of(ROOM).await)[0];
        let [left, right] = cluster.others(away)[..] else { panic!("three nodes") };
        cluster.stop(away).await;
        cluster.ready().await;
        let mut writer = Client::join(cluster.node(left), ROOM, "writer").await;
        // More than a log keeps for those who are behind, so that it may have to be caught up with a snapshot.
        for round in 0..4 {
            let lines: Vec<_> =
                (0..2_500).map(|n| (format!("{round} {n}"), format!("{round}-{n}"))).collect();
            writer.say_all(&lines, 60).await;
        }
        cluster.start_again(away).await;
        cluster.whole().await;
        let history = cluster.history(ROOM).await;
        assert_eq!(history.len(), 10_000);
        // Now those who were there all the time cannot do without it.
        cluster.kill(left);
        cluster.ready_of(&[away, right]).await;
        assert_eq!(cluster.history(ROOM).await, history);
        let mut reader = Client::join(cluster.node(away), ROOM, "reader").await;
        reader.say_and_settle("I have caught up", "caught up").await;
    })
    .await;
}
