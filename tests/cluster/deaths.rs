//! SIGKILL: of the node that hosts a room, of one that does not, of all.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, trial};
use crate::person::{Person, conclude};
use crate::support::{Client, SOON};

const ROOM: &str = "lobby";

/// Without acks for longer than this, a failover has failed.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_of_a_room_dies_its_people_elsewhere_stay_and_nothing_acked_is_lost() {
    trial(90, async {
        let mut cluster = Cluster::start(3).await;
        let host = cluster.leader_of(ROOM).await;
        one_dies(&mut cluster, host).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_another_node_dies_the_room_loses_only_those_who_were_on_it() {
    trial(90, async {
        let mut cluster = Cluster::start(3).await;
        let host = cluster.leader_of(ROOM).await;
        let other = cluster.others(host)[0];
        one_dies(&mut cluster, other).await;
    })
    .await;
}

/// Kills this node in the middle of a conversation.
async fn one_dies(cluster: &mut Cluster, dying: usize) {
    let [left, right] = cluster.others(dying)[..] else { panic!("three nodes") };
    let mut people = Vec::new();
    for (home, name) in [(left, "alice"), (right, "bob")] {
        people.push(Person::on(cluster, &[home], ROOM, name).talking_every(15).come().await);
    }
    people.push(Person::on(cluster, &[right], ROOM, "silent").come().await);
    let carol = Person::on(cluster, &[dying, left], ROOM, "carol").coming_back().in_danger();
    people.push(carol.talking_every(15).come().await);
    // Connected to the node that dies, and never seen again.
    let gone = Client::join(cluster.node(dying), ROOM, "gone").await;
    for person in &mut people {
        person.until_roster(&["alice", "bob", "carol", "gone", "silent"], SOON).await;
    }
    for talker in [0, 1, 3] {
        people[talker].until_acked(50, SOON).await;
    }

    cluster.kill(dying);
    let killed_at = Instant::now();
    for talker in [0, 1, 3] {
        people[talker].until_acked(100, SOON).await;
    }
    for person in &mut people {
        person.until_roster(&["alice", "bob", "carol", "silent"], SOON).await;
    }
    drop(gone);
    cluster.ready().await;

    let (history, accounts) = conclude(cluster, people, SOON).await;
    println!("{} messages", history.len());
    for account in &accounts[..3] {
        assert!(account.parted.is_empty(), "sessions on surviving nodes are not closed");
        assert!(account.quits.iter().any(|name| name == "gone"), "{:?}", account.quits);
        assert!(account.quits.iter().all(|name| name == "gone" || name == "carol"), "{:?}", account.quits);
    }
    for account in &accounts[..2] {
        let silence = account.longest_silence(killed_at);
        println!("no ack for {silence:?} after the kill");
        assert!(silence < SILENCE_MAX, "{silence:?}");
    }
    println!("who was on the dead node: {:?}", accounts[3].parted);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_nodes_die_at_once_everything_acked_is_there_afterwards() {
    trial(120, async {
        let mut cluster = Cluster::start(3).await;
        let mut people = Vec::new();
        for (homes, name) in [([0, 1, 2], "alice"), ([1, 2, 0], "bob"), ([2, 0, 1], "carol")] {
            let person = Person::on(&cluster, &homes, ROOM, name).coming_back().in_danger();
            people.push(person.talking_every(10).come().await);
        }
        for round in 0..2 {
            for person in &mut people {
                person.until_acked(50, SOON).await;
            }
            for index in cluster.all() {
                cluster.kill(index);
            }
            let acked: Vec<_> = people.iter().map(|person| person.account().acked.clone()).collect();
            let down_at = Instant::now();
            cluster.start_all().await;
            println!("round {round}: all were ready again after {:?}", down_at.elapsed());
            // From one node, since people are back and talking.
            let history = cluster.node(round).history(ROOM).await;
            for one in acked.iter().flatten() {
                let there = history.iter().filter(|said| said.id.as_ref() == Some(&one.id));
                let times: Vec<u64> = there.map(|said| said.timestamp).collect();
                assert_eq!(times, [one.timestamp], "{one:?} is there, once");
            }
        }
        for person in &mut people {
            person.until_acked(20, SOON).await;
            person.until_roster(&["alice", "bob", "carol"], SOON).await;
        }
        conclude(&cluster, people, SOON).await;
    })
    .await;
}
