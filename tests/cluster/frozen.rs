//! SIGSTOP: a node that is gone for a while, does not know it, and wakes up in the belief that nothing happened.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, WHOLE, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::SOON;

const ROOM: &str = "lobby";

/// One person on each node: first on the frozen one, then on the two others.
async fn one_on_each(cluster: &Cluster, frozen: usize) -> Vec<Person> {
    let [left, right] = cluster.others(frozen)[..] else { panic!("three nodes") };
    let sleeper = Person::on(cluster, &[frozen], ROOM, "sleeper").in_danger().talking_every(20);
    let mut people = vec![sleeper.come().await];
    for (home, name) in [(left, "alice"), (right, "bob")] {
        people.push(Person::on(cluster, &[home], ROOM, name).talking_every(20).come().await);
    }
    for person in &mut people {
        person.until_acked(20, SOON).await;
    }
    people
}

/// Freezes a node for so long, and checks that the others go on and that it says nothing stale afterwards.
async fn freeze(cluster: &mut Cluster, people: &mut [Person], frozen: usize, pause: Duration) {
    cluster.pause(frozen);
    let since = Instant::now();
    tokio::time::sleep(pause).await;
    for person in &mut people[1..] {
        person.until_acked(20, SILENCE_MAX + SOON).await;
    }
    cluster.resume(frozen);
    for person in people.iter_mut() {
        person.until_acked(20, SOON).await;
        person.until_roster(&["alice", "bob", "sleeper"], SOON).await;
    }
    for person in &people[1..] {
        let silence = person.account().longest_silence(since);
        println!("{}: no ack for {silence:?} in a freeze of {pause:?}", person.name());
        assert!(silence < SILENCE_MAX, "{silence:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_freezes_says_nothing_stale_when_it_wakes_and_its_sessions_go_on() {
    trial(90, async {
        let mut cluster = Cluster::start(3).await;
        let host = cluster.leader_of(ROOM).await;
        let mut people = one_on_each(&cluster, host).await;
        freeze(&mut cluster, &mut people, host, Duration::from_secs(5)).await;
        cluster.ready().await;
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_freezes_and_leads_nothing_of_the_room_does_not_hold_it_up() {
    trial(90, async {
        let mut cluster = Cluster::start(3).await;
        let host = cluster.leader_of(ROOM).await;
        let frozen = cluster.others(host)[0];
        let mut people = one_on_each(&cluster, frozen).await;
        freeze(&mut cluster, &mut people, frozen, Duration::from_secs(4)).await;
        cluster.ready().await;
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freezes_about_as_long_as_a_lease_confuse_nobody() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        // Always the node that is first frozen: the others' people are never in danger.
        let host = cluster.leader_of(ROOM).await;
        let mut people = one_on_each(&cluster, host).await;
        for pause_ms in [100, 300, 600, 900] {
            freeze(&mut cluster, &mut people, host, Duration::from_millis(pause_ms)).await;
        }
        cluster.ready().await;
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}
