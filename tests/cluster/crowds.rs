//! Many people in many rooms at once, on all nodes, without faults and with many.

use std::time::Duration;

use crate::cluster::{Cluster, WHOLE, name, trial};
use crate::person::{Person, conclude};
use crate::support::{SOON, Seed};

#[tokio::test(flavor = "multi_thread")]
async fn crowds_in_several_rooms_all_hear_one_order() {
    trial(90, async {
        let cluster = Cluster::start(3).await;
        let mut rooms = Vec::new();
        for number in 0..4 {
            let room = format!("crowd {number}");
            let mut people = Vec::new();
            for guest in 0..6 {
                let person = Person::on(&cluster, &[guest % 3], &room, &format!("guest {guest}"));
                people.push(person.talking_every(10).come().await);
            }
            rooms.push(people);
        }
        for people in &mut rooms {
            for person in people {
                person.until_acked(100, WHOLE).await;
            }
        }
        for people in rooms {
            let (history, accounts) = conclude(&cluster, people, WHOLE).await;
            assert!(history.len() >= 600, "{}", history.len());
            assert!(accounts.iter().all(|account| account.quits.is_empty() && account.refused.is_empty()));
        }
    })
    .await;
}

/// One fault after the other, of any kind, on any node, as chance wants it; each is over before the next begins.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_one_node_at_a_time_nothing_acked_is_lost() {
    const FAULTS: usize = 5;
    trial(170, async {
        let mut seed = Seed::new("whatever_happens_to_one_node_at_a_time_nothing_acked_is_lost");
        let mut cluster = Cluster::start(3).await;
        let mut rooms = Vec::new();
        for room in ["lobby", "garden"] {
            let mut people = Vec::new();
            for (homes, name) in [([0, 1, 2], "alice"), ([1, 2, 0], "bob"), ([2, 0, 1], "carol")] {
                let person = Person::on(&cluster, &homes, room, name).coming_back().in_danger();
                people.push(person.talking_every(25).come().await);
            }
            rooms.push(people);
        }
        for number in 0..FAULTS {
            let index = seed.between(0, 3) as usize;
            let pause = Duration::from_millis(seed.between(50, 3_000));
            let kind = seed.between(0, 5);
            println!("fault {number}: {kind} of {} for {pause:?}", name(index));
            match kind {
                0 => {
                    cluster.pause(index);
                    tokio::time::sleep(pause).await;
                    cluster.resume(index);
                }
                1 => {
                    cluster.stop(index).await;
                    cluster.start_again(index).await;
                }
                2 => {
                    cluster.kill(index);
                    cluster.wipe(index);
                    cluster.start_again(index).await;
                }
                3 => {
                    // Killed while it still comes back.
                    cluster.kill(index);
                    cluster.spawn(index);
                    tokio::time::sleep(pause / 3).await;
                    cluster.kill(index);
                    cluster.start_again(index).await;
                }
                _ => {
                    cluster.kill(index);
                    tokio::time::sleep(pause).await;
                    cluster.start_again(index).await;
                }
            }
            cluster.whole().await;
            for person in rooms.iter_mut().flatten() {
                person.until_acked(5, SOON).await;
            }
        }
        for people in rooms {
            conclude(&cluster, people, WHOLE).await;
        }
    })
    .await;
}
