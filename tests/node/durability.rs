//! What is acked stays, whenever the node is killed: exactly once, in order, unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Client, Node, SOON, Said, Seed, Written, until};

const ROOMS: [&str; 2] = ["kitchen", "garden"];

#[tokio::test]
async fn everything_is_there_after_a_kill() {
    let mut node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut said = Vec::new();
    for round in 0..5 {
        said.push(alice.say_and_settle(&format!("round {round}"), &round.to_string()).await);
        node.restart_after_kill().await;
        assert_eq!(node.history("lobby").await, said);
        alice = Client::join(&node, "lobby", "alice").await;
    }
}

#[tokio::test]
async fn a_node_killed_again_and_again_while_writing_loses_nothing_it_acked() {
    const ROUNDS: usize = 12;
    const WRITERS: usize = 4;
    let mut seed = Seed::new("a_node_killed_again_and_again");
    let mut node = Node::start().await;
    let mut written: Vec<(usize, Written)> = Vec::new();
    let mut known: [Vec<Said>; 2] = Default::default();
    for round in 0..ROUNDS {
        let acked = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let room = writer % ROOMS.len();
            let prefix = format!("r{round}w{writer}");
            let client = Client::join(&node, ROOMS[room], &prefix).await;
            let window = 1 + seed.between(0, 64) as usize;
            tasks.push((room, tokio::spawn(client.write_until_closed(prefix, window, acked.clone()))));
        }
        let enough = seed.between(1, 800) as usize;
        until("enough is acked", SOON, async || acked.load(Ordering::Relaxed) >= enough).await;
        node.kill9();
        let mut of_round = Vec::new();
        for (room, task) in tasks {
            of_round.push((room, task.await.unwrap()));
        }
        // Sometimes it does not even get to its feet before the next kill.
        for _ in 0..seed.between(0, 3) {
            node.start_and_kill_after(Duration::from_millis(seed.between(0, 120))).await;
        }
        node.start_again().await;
        for (room, name) in ROOMS.iter().enumerate() {
            let history = node.history(name).await;
            assert!(
                history.starts_with(&known[room]),
                "round {round}: what was in the history stays as it was"
            );
            for (_, one) in of_round.iter().filter(|(of, _)| *of == room) {
                one.check_against(&history);
            }
        }
        for (room, one) in &of_round {
            one.say_the_rest(&node, ROOMS[*room]).await;
        }
        written.extend(of_round);
        for (room, name) in ROOMS.iter().enumerate() {
            known[room] = node.history(name).await;
        }
    }
    let mut total = 0;
    for (room, one) in &written {
        one.check_complete(&known[*room]);
        total += one.sent.len();
    }
    assert_eq!(known[0].len() + known[1].len(), total, "every message once, and nothing that nobody said");
}

#[tokio::test]
async fn what_is_relayed_keeps_its_timestamp_for_ever() {
    let mut node = Node::start().await;
    let mut watcher = Client::join(&node, "lobby", "watcher").await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..500).map(|n| (format!("m{n}"), n.to_string())).collect();
    let (said, _) = alice.say_all(&lines, 60).await;
    watcher.expect_joined("alice").await;
    let mut seen = Vec::new();
    while seen.len() < 500 {
        seen.push(watcher.next_message().await);
    }
    node.restart_after_kill().await;
    assert_eq!(seen, said);
    assert_eq!(node.history("lobby").await, said);
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let next = alice.say_and_settle("after", "after").await;
    assert!(next.timestamp > said[499].timestamp, "also across the restart");
}
