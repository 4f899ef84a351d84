//! Five nodes: rooms on nodes that hold no copy of them, and more than one death.

use std::time::Instant;

use crate::cluster::{Cluster, Shape, WHOLE, name, trial_alone};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::SOON;

const ROOM: &str = "lobby";

/// Kills a node, and checks that those who talk go on.
async fn kill(cluster: &mut Cluster, talkers: &mut [Person], dying: usize) {
    cluster.kill(dying);
    let killed_at = Instant::now();
    for person in talkers {
        person.until_acked(30, SOON).await;
        let silence = person.account().longest_silence(killed_at);
        println!("{}: no ack for {silence:?} after {} died", person.name(), name(dying));
        assert!(silence < SILENCE_MAX, "{silence:?}");
    }
}

/// Someone on each node, who goes to the next one when it dies.
async fn one_on_each(cluster: &Cluster) -> Vec<Person> {
    let mut people = Vec::new();
    for home in cluster.all() {
        let homes: Vec<usize> = (0..5).map(|step| (home + step) % 5).collect();
        let person = Person::on(cluster, &homes, ROOM, &format!("p{home}")).coming_back().in_danger();
        people.push(person.talking_every(30).come().await);
    }
    people
}

#[tokio::test(flavor = "multi_thread")]
async fn with_five_copies_two_nodes_may_die_one_after_the_other() {
    trial_alone(150, async {
        let shape = Shape::of(5).env("PARLEY_CLUSTER_REPLICAS", "5");
        let mut cluster = shape.start().await;
        let mut people = one_on_each(&cluster).await;
        for person in &mut people {
            person.until_acked(10, SOON).await;
        }
        for _ in 0..2 {
            let host = cluster.leader_of(ROOM).await;
            kill(&mut cluster, &mut people, host).await;
            cluster.ready().await;
        }
        for person in &mut people {
            person.until_roster(&["p0", "p1", "p2", "p3", "p4"], SOON).await;
        }
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_three_copies_on_five_nodes_any_node_serves_every_room_and_any_one_may_die() {
    trial_alone(150, async {
        let mut cluster = Cluster::start(5).await;
        let view = cluster.view(0).await.unwrap();
        let shard = &view["shards"][usize::from(cluster.shard(ROOM))];
        let replicas = shard["replicas"].as_array().unwrap();
        assert_eq!(replicas.len(), 3, "{shard}");
        let mut people = one_on_each(&cluster).await;
        for person in &mut people {
            person.until_acked(10, SOON).await;
            person.until_roster(&["p0", "p1", "p2", "p3", "p4"], SOON).await;
        }
        let strangers: Vec<usize> =
            cluster.all().into_iter().filter(|&index| !replicas.contains(&name(index).into())).collect();
        // The host, then one that holds no copy of the room, then whoever hosts it then; each comes back in between.
        for turn in 0..3 {
            let dying = if turn == 1 { strangers[0] } else { cluster.leader_of(ROOM).await };
            kill(&mut cluster, &mut people, dying).await;
            cluster.ready().await;
            cluster.start_again(dying).await;
            cluster.whole().await;
        }
        for person in &mut people {
            person.until_roster(&["p0", "p1", "p2", "p3", "p4"], SOON).await;
        }
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}
