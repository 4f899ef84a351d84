//! Much more said at once than the machine can keep up with: that is a reason to wait, not to elect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, name, trial_alone};
use crate::person::{Person, conclude};
use crate::support::{Client, SOON};

/// Writers, and how much each leaves unanswered: far more than three nodes on a small machine keep up with.
const WRITERS: usize = 24;
const WINDOW: usize = 48;

const BURST: Duration = Duration::from_secs(8);

/// Who leads each shard, and under which term.
fn leads(view: &Value) -> Vec<(Value, Value)> {
    let shards = view["shards"].as_array().unwrap().iter();
    shards.map(|shard| (shard["leader"].clone(), shard["term"].clone())).collect()
}

/// How often a node has won an election so far.
async fn elections(cluster: &Cluster, index: usize) -> String {
    let metrics = cluster.node(index).get("/metrics").await;
    let found = metrics.text().lines().find(|line| line.starts_with("parley_elections_total"));
    found.expect("a node counts elections").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_chat_delays_neither_heartbeats_nor_elections() {
    trial_alone(120, async {
        let cluster = Cluster::start(3).await;
        cluster.whole().await;
        // Leads are given to whom they belong once a node has been there for some seconds; that is no election lost.
        let start = Instant::now();
        let mut before = leads(&cluster.view(0).await.unwrap());
        let mut calm_since = start;
        while calm_since.elapsed() < Duration::from_secs(4) {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = leads(&cluster.view(0).await.unwrap());
            if now != before {
                (before, calm_since) = (now, Instant::now());
            }
            assert!(start.elapsed() < SOON + SOON, "leads are still handed on");
        }
        let mut stood = Vec::new();
        for index in cluster.all() {
            stood.push(elections(&cluster, index).await);
        }

        let alice = Person::on(&cluster, &[0], "lobby", "alice").talking_every(50).come().await;
        let total = Arc::new(AtomicUsize::new(0));
        let mut writers = Vec::new();
        for number in 0..WRITERS {
            let prefix = format!("writer {number}");
            let client = Client::join(cluster.node(number % 3), &format!("burst {number}"), &prefix).await;
            let writing = client.write_until_closed(prefix, WINDOW, Arc::clone(&total));
            writers.push(tokio::spawn(tokio::time::timeout(BURST, writing)));
        }
        let burst = Instant::now();
        while burst.elapsed() < BURST {
            tokio::time::sleep(Duration::from_millis(250)).await;
            for index in cluster.all() {
                let view = cluster.view(index).await.unwrap();
                let states: Vec<_> =
                    view["nodes"].as_array().unwrap().iter().map(|node| &node["state"]).collect();
                assert!(states.iter().all(|state| *state == "up"), "{} sees {states:?}", name(index));
            }
        }
        for writer in writers {
            assert!(writer.await.unwrap().is_err(), "nobody was sent away");
        }
        println!("{} acks in {BURST:?}", total.load(Ordering::Relaxed));
        for index in cluster.all() {
            assert_eq!(leads(&cluster.view(index).await.unwrap()), before, "no lead has changed");
            assert_eq!(
                elections(&cluster, index).await,
                stood[index],
                "{} was not elected anew",
                name(index)
            );
            let log = cluster.node(index).stderr();
            assert!(!log.contains("the peer is silent"), "{} suspected nobody", name(index));
        }
        let (_, accounts) = conclude(&cluster, vec![alice], SOON).await;
        let silence = accounts[0].longest_silence(burst);
        println!("no ack for {silence:?} at most");
    })
    .await;
}
