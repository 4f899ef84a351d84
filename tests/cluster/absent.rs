//! A node that missed more than the others' logs still hold. Only in builds with the feature `fault-injection`.

use std::time::Instant;

use crate::cluster::{Shape, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::support::{Client, SOON};

const ROOM: &str = "lobby";

/// Entries that a log keeps here for those who were away.
const KEPT: u64 = 30;

/// Rooms that are written to while a node is away, and what is said in each, so many at a time.
const ROOMS: usize = 12;
const LINES: usize = 1_500;
const WINDOW: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_more_than_the_logs_hold_is_sent_a_copy_and_the_room_goes_on_meanwhile() {
    trial(170, async {
        let shape = Shape::of(3).env("PARLEY_FAULT_KEPT_ENTRIES", &KEPT.to_string());
        let mut cluster = shape.start().await;
        let host = cluster.leader_of(ROOM).await;
        let [away, other] = cluster.others(host)[..] else { panic!("three nodes") };
        let mut alice = Person::on(&cluster, &[other], ROOM, "alice").talking_every(20).come().await;
        alice.until_acked(20, SOON).await;
        cluster.kill(away);
        cluster.ready().await;
        let commits = async |index| -> Vec<u64> {
            let view = cluster.view(index).await.unwrap();
            view["shards"].as_array().unwrap().iter().map(|shard| shard["commit"].as_u64().unwrap()).collect()
        };
        let before = commits(host).await;
        let mut writing = Vec::new();
        for number in 0..ROOMS {
            let mut writer = Client::join(cluster.node(other), &format!("archive {number}"), "writer").await;
            writing.push(tokio::spawn(async move {
                let lines: Vec<_> =
                    (0..LINES).map(|n| (format!("line {n}"), format!("{number}-{n}"))).collect();
                let (said, _) = writer.say_all(&lines, WINDOW).await;
                writer.leave().await;
                said
            }));
        }
        let mut past = Vec::new();
        for writer in writing {
            past.push(writer.await.unwrap());
        }
        let missed: Vec<u64> =
            commits(host).await.iter().zip(&before).map(|(now, then)| now - then).collect();
        println!("{missed:?} entries were missed, of which a log keeps {KEPT}");
        let shard = usize::from(cluster.shard(ROOM));
        assert!(missed[shard] > 4 * KEPT, "the log of the room itself holds too little: {missed:?}");

        let back_at = Instant::now();
        cluster.start_again(away).await;
        cluster.whole().await;
        println!("whole {:?} after it was back", back_at.elapsed());
        alice.until_acked(50, SOON).await;
        let silence = alice.account().longest_silence(back_at);
        println!("no ack for {silence:?} at most since then");
        assert!(silence < SILENCE_MAX, "{silence:?}");

        // Without one of those who were there all the time, nothing is acked that the one who was away does not have.
        cluster.kill(host);
        alice.until_acked(20, SILENCE_MAX + SOON).await;
        cluster.ready().await;
        for (number, said) in past.iter().enumerate() {
            assert_eq!(cluster.history(&format!("archive {number}")).await, *said);
        }
        conclude(&cluster, vec![alice], SOON).await;
    })
    .await;
}
