//! Links that break, lose, hold back, or carry only one way, while all nodes live.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::cluster::{Cluster, Shape, WHOLE, trial};
use crate::deaths::SILENCE_MAX;
use crate::person::{Person, conclude};
use crate::proxy::Fault;
use crate::support::{Client, Frame, SOON};

const ROOM: &str = "lobby";

/// Long enough for a link to be given up by those who watch it.
const OUTAGE: Duration = Duration::from_millis(2_500);

/// Long enough for a link to come back in between.
const FLAP_EVERY: Duration = Duration::from_millis(250);

/// A node may take this long to say that it is not ready; a second of it is for a busy machine.
const NOT_READY_MAX: Duration = Duration::from_secs(4);

/// One person on each node, all of whom talk and none of whom may be disconnected.
async fn one_on_each(cluster: &Cluster) -> Vec<Person> {
    let mut people = Vec::new();
    for (index, name) in ["alice", "bob", "carol"].into_iter().enumerate() {
        people.push(Person::on(cluster, &[index], ROOM, name).talking_every(25).come().await);
    }
    for person in &mut people {
        person.until_acked(10, SOON).await;
    }
    people
}

/// Waits until everyone is understood and everyone is seen again.
async fn goes_on(cluster: &Cluster, people: &mut [Person]) {
    cluster.ready().await;
    for person in people {
        person.until_acked(20, SOON).await;
        person.until_roster(&["alice", "bob", "carol"], SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_between_nodes_that_are_reset_again_and_again_cost_nobody_a_message() {
    trial(90, async {
        let cluster = Shape::of(3).proxied().start().await;
        let mut people = one_on_each(&cluster).await;
        for round in 0..6 {
            let (one, other) = [(0, 1), (1, 2), (2, 0)][round % 3];
            cluster.reset(one, other);
            goes_on(&cluster, &mut people).await;
        }
        // All at once.
        for (one, other) in [(0, 1), (1, 2), (2, 0)] {
            cluster.reset(one, other);
        }
        goes_on(&cluster, &mut people).await;
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}

/// A new link is there before the old one is quite forgotten: what still comes of that must not be taken for news of
/// the new one.
#[tokio::test(flavor = "multi_thread")]
async fn links_that_come_and_go_all_the_time_leave_nobody_behind() {
    trial(180, async {
        let cluster = Shape::of(3).proxied().start().await;
        let mut people = one_on_each(&cluster).await;
        for round in 0..6 {
            for turn in 0..8 {
                cluster.isolate(round % 3, if turn % 2 == 0 { Fault::Cut } else { Fault::None });
                tokio::time::sleep(FLAP_EVERY).await;
            }
            goes_on(&cluster, &mut people).await;
        }
        conclude(&cluster, people, WHOLE).await;
    })
    .await;
}

/// Breaks the link between two nodes in every way, one after the other.
async fn break_link(cluster: &Cluster, one: usize, other: usize) {
    let mut people = one_on_each(cluster).await;
    let breaks: [(&str, &dyn Fn()); 5] = [
        ("cut", &|| cluster.part(one, other, Fault::Cut)),
        ("held", &|| cluster.part(one, other, Fault::Held)),
        ("swallowed", &|| cluster.part(one, other, Fault::Swallowed)),
        ("lost there", &|| cluster.link(one, other, Fault::Swallowed)),
        ("lost back", &|| cluster.link(other, one, Fault::Swallowed)),
    ];
    for (how, broken) in breaks {
        let since = Instant::now();
        broken();
        tokio::time::sleep(OUTAGE).await;
        cluster.heal();
        let healed_at = Instant::now();
        goes_on(cluster, &mut people).await;
        println!("{how}: all went on {:?} after the link was healed", healed_at.elapsed());
        for person in &people {
            let silence = person.account().longest_silence(since);
            println!("{how}: {} had no ack for {silence:?}", person.name());
            assert!(silence < OUTAGE + SILENCE_MAX, "{silence:?}");
        }
    }
    conclude(cluster, people, WHOLE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_link_to_the_host_breaks_misses_nothing_once_it_is_back() {
    trial(150, async {
        let cluster = Shape::of(3).proxied().start().await;
        let host = cluster.leader_of(ROOM).await;
        break_link(&cluster, host, cluster.others(host)[0]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_link_between_two_others_is_not_noticed_in_the_room() {
    trial(150, async {
        let cluster = Shape::of(3).proxied().start().await;
        let host = cluster.leader_of(ROOM).await;
        let [left, right] = cluster.others(host)[..] else { panic!("three nodes") };
        break_link(&cluster, left, right).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_slow_only_make_the_chat_slower() {
    trial(90, async {
        let cluster = Shape::of(3).proxied().start().await;
        let mut people = one_on_each(&cluster).await;
        for one in cluster.all() {
            for other in cluster.others(one) {
                cluster.link(one, other, Fault::Late(Duration::from_millis(20)));
            }
        }
        goes_on(&cluster, &mut people).await;
        let since = Instant::now();
        for person in &mut people {
            person.until_acked(60, SOON).await;
        }
        for person in &people {
            println!("{}: no ack for {:?}", person.name(), person.account().longest_silence(since));
        }
        let (_, accounts) = conclude(&cluster, people, WHOLE).await;
        for account in accounts {
            assert!(account.quits.is_empty(), "slow is not gone: {:?}", account.quits);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_cut_off_acks_nothing_says_so_and_is_one_of_them_again_afterwards() {
    trial(100, async {
        let cluster = Shape::of(3).proxied().start().await;
        let host = cluster.leader_of(ROOM).await;
        // Held, so that all it said meanwhile arrives when it is healed.
        isolation(&cluster, host, || cluster.isolate(host, Fault::Held)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_that_is_cut_off_acks_nothing_says_so_and_is_one_of_them_again_afterwards() {
    trial(100, async {
        let cluster = Shape::of(3).proxied().start().await;
        let host = cluster.leader_of(ROOM).await;
        let lone = cluster.others(host)[0];
        isolation(&cluster, lone, || cluster.isolate(lone, Fault::Swallowed)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_heard_but_hears_nobody_is_replaced() {
    trial(100, async {
        let cluster = Shape::of(3).proxied().start().await;
        let host = cluster.leader_of(ROOM).await;
        let deafen =
            || cluster.others(host).into_iter().for_each(|other| cluster.link(other, host, Fault::Swallowed));
        isolation(&cluster, host, deafen).await;
    })
    .await;
}

/// Cuts a node off, and heals it when all has been seen.
async fn isolation(cluster: &Cluster, lone: usize, cut_off: impl FnOnce()) {
    let mut people = Vec::new();
    for (&home, name) in cluster.others(lone).iter().zip(["alice", "bob"]) {
        people.push(Person::on(cluster, &[home], ROOM, name).talking_every(25).come().await);
    }
    people.push(Person::on(cluster, &[lone], ROOM, "robinson").in_danger().talking_every(100).come().await);
    let mut friday = Client::join(cluster.node(lone), ROOM, "friday").await;
    for person in &mut people {
        person.until_roster(&["alice", "bob", "friday", "robinson"], SOON).await;
        person.until_acked(10, SOON).await;
    }

    cut_off();
    let since = Instant::now();
    let reason = loop {
        match cluster.readiness(lone).await {
            (503, reason) => break reason,
            (200, _) => assert!(since.elapsed() < NOT_READY_MAX, "still ready after {NOT_READY_MAX:?}"),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    println!("not ready after {:?}: {}", since.elapsed(), reason.trim());
    assert!(reason.trim().len() > 10, "it says why: {reason:?}");
    assert_eq!(cluster.node(lone).get("/healthz").await.status, 200, "it lives");
    let acked_before = people[2].account().acked.len();

    let said_at = Instant::now();
    friday.say_with_id("is anybody there?", "alone").await;
    let wait_ms = refusal_of(&mut friday, "alone").await;
    let waited = said_at.elapsed();
    println!("refused after {waited:?}, to be said again in {wait_ms} ms");
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(12)).contains(&waited),
        "after about five seconds, not {waited:?}"
    );
    for person in &mut people[..2] {
        person.until_acked(20, SILENCE_MAX + SOON).await;
        let silence = person.account().longest_silence(since);
        println!("{}: no ack for {silence:?} when the node was cut off", person.name());
        assert!(silence < SILENCE_MAX, "{silence:?}");
    }
    people[2].until("robinson is refused too", SOON, |account| !account.refused.is_empty()).await;
    let first = people[2].account().refused[0].clone();
    println!("robinson was refused {:?} after speaking", first.at - first.said_at);
    assert_eq!(people[2].account().acked.len(), acked_before, "nothing is acked without a majority");
    assert_eq!(cluster.readiness(lone).await.0, 503, "it still is not ready");
    for &other in &cluster.others(lone) {
        assert_eq!(cluster.readiness(other).await.0, 200, "the majority serves every room");
    }

    cluster.heal();
    let healed_at = Instant::now();
    cluster.ready().await;
    println!("ready {:?} after it was healed", healed_at.elapsed());
    friday.say_with_id("is anybody there?", "alone").await;
    let timestamp = ack_of(&mut friday, "is anybody there?", "alone").await;
    for person in &mut people {
        person.until_acked(10, SOON).await;
        person.until_roster(&["alice", "bob", "friday", "robinson"], SOON).await;
    }
    let (history, _) = conclude(cluster, people, WHOLE).await;
    let found: Vec<u64> = history
        .iter()
        .filter(|said| said.id.as_deref() == Some("alone"))
        .map(|said| said.timestamp)
        .collect();
    assert_eq!(found, [timestamp], "said once, however often it was tried");
    friday.leave().await;
}

/// Reads until this message is refused for now, and returns for how long; what others say may come in between.
async fn refusal_of(client: &mut Client, id: &str) -> u64 {
    loop {
        match client.next().await {
            Frame::Error(refusal) if refusal.id.as_deref() == Some(id) => {
                return refusal
                    .retry_after_ms
                    .unwrap_or_else(|| client.fail("a refusal that waiting helps says so"));
            }
            Frame::Said(_) | Frame::Joined(_) | Frame::Quit(_) => {}
            other => client.fail(&format!("a refusal of {id}, not {other:?}")),
        }
    }
}

/// Reads until this message is acked, saying it again when it is refused for now; returns its timestamp.
async fn ack_of(client: &mut Client, text: &str, id: &str) -> u64 {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < WHOLE, "{id} is not acked after {WHOLE:?}");
        match client.next().await {
            Frame::Ack { id: acked, timestamp } if acked == id => return timestamp,
            Frame::Error(refusal) if refusal.id.as_deref() == Some(id) => {
                let wait = Duration::from_millis(refusal.retry_after_ms.unwrap_or_default().min(1_000));
                tokio::time::sleep(wait).await;
                client.send_raw(Message::text(json!({ "message": text, "id": id }).to_string())).await;
            }
            Frame::Said(_) | Frame::Joined(_) | Frame::Quit(_) => {}
            other => client.fail(&format!("an ack of {id}, not {other:?}")),
        }
    }
}
