//! SIGTERM: leadership is handed on, sessions are told to come back, and nobody waits for long.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, WHOLE, name, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::SOON;

const ROOM: &str = "lobby";

/// Whoever was told to come back is in again within this.
const AWAY_MAX: Duration = Duration::from_secs(5);

/// Three people who talk, one on each node, and go to the next when theirs restarts.
async fn one_on_each(cluster: &Cluster) -> Vec<Person> {
    let mut people = Vec::new();
    for (homes, name) in [([0, 1, 2], "alice"), ([1, 2, 0], "bob"), ([2, 0, 1], "carol")] {
        people.push(Person::on(cluster, &homes, ROOM, name).coming_back().talking_every(15).come().await);
    }
    people
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_nothing_and_keeps_nobody_out_for_long() {
    trial(150, async {
        let mut cluster = Cluster::start(3).await;
        let mut people = one_on_each(&cluster).await;
        for index in cluster.all() {
            for person in &mut people {
                person.until_acked(30, SOON).await;
            }
            let since = Instant::now();
            cluster.stop(index).await;
            println!("{} stopped in {:?}", name(index), since.elapsed());
            cluster.start_again(index).await;
            cluster.whole().await;
            for person in &mut people {
                person.until_acked(10, SOON).await;
                let silence = person.account().longest_silence(since);
                println!("{}: no ack for {silence:?} at the restart of {}", person.name(), name(index));
                assert!(silence < SILENCE_MAX, "{silence:?}");
            }
        }
        let (_, accounts) = conclude(&cluster, people, WHOLE).await;
        let mut partings = 0;
        for parted in accounts.iter().flat_map(|account| &account.parted) {
            assert_eq!(parted.code, Some(1012), "{parted:?}");
            let away = parted.away.expect("everyone is back");
            assert!(away < AWAY_MAX, "{parted:?}");
            partings += 1;
        }
        assert!(partings >= 3, "everyone's node was restarted: {partings}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stops_hands_its_rooms_on() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        let mut longest = Vec::new();
        for round in 0..3 {
            let room = format!("room of round {round}");
            let host = cluster.leader_of(&room).await;
            let mut people = Vec::new();
            for (&home, name) in cluster.others(host).iter().zip(["alice", "bob"]) {
                people.push(Person::on(&cluster, &[home], &room, name).talking_every(5).come().await);
            }
            for person in &mut people {
                person.until_acked(50, SOON).await;
            }
            let since = Instant::now();
            cluster.stop(host).await;
            for person in &mut people {
                person.until_acked(50, SOON).await;
                longest.push(person.account().longest_silence(since));
            }
            let (_, accounts) = conclude(&cluster, people, SOON).await;
            for account in accounts {
                assert!(account.parted.is_empty() && account.quits.is_empty(), "nobody noticed");
            }
            cluster.start_again(host).await;
            cluster.whole().await;
        }
        println!("no ack while leadership was handed on for {longest:?}");
        assert!(longest.iter().all(|silence| *silence < SILENCE_MAX), "{longest:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_may_be_stopped_at_once_and_started_again() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        let mut people = one_on_each(&cluster).await;
        for person in &mut people {
            person.until_acked(30, SOON).await;
        }
        // The last of them cannot have anything acked by a majority, and has to end in time all the same.
        let since = Instant::now();
        cluster.stop_all().await;
        println!("all stopped in {:?}", since.elapsed());
        cluster.start_all().await;
        for person in &mut people {
            person.until_acked(20, SOON).await;
            person.until_roster(&["alice", "bob", "carol"], SOON).await;
        }
        // What was said while a majority was already gone may have been heard by those on the last node alone.
        let people = people.into_iter().map(Person::in_danger).collect();
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}
