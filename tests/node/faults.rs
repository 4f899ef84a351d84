//! What the program does when a part of it fails on purpose. Only in builds with the feature `fault-injection`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Client, Frame, Node, Plan};

async fn fragile(moment: &str) -> Node {
    Plan::new().env("PARLEY_FAULT_ROOM_PANIC", moment).panics_allowed().start().await
}

/// Without this a test of a panic that never happened would pass.
fn assert_panicked(node: &Node) {
    assert!(node.has_panicked(), "the room did panic:\n{}", node.stderr());
}

#[tokio::test]
async fn a_panic_of_a_room_disconnects_nobody_and_loses_nothing() {
    for moment in ["before", "after"] {
        let node = fragile(moment).await;
        let mut alice = Client::join(&node, "lobby", "alice").await;
        let mut bob = Client::join(&node, "lobby", "bob").await;
        alice.expect_joined("bob").await;
        let mut neighbour = Client::join(&node, "garden", "carol").await;
        let mut said = vec![alice.say_and_settle("calm", "1").await];
        assert_eq!(bob.next_message().await, said[0]);

        for round in 0..3 {
            // With an id, so that it is acked exactly once, with its timestamp.
            said.push(alice.say_and_settle("panic!", &format!("panic-{round}")).await);
            assert_eq!(bob.next_message().await, *said.last().unwrap(), "{moment}");
            said.push(bob.say_and_settle("are you all right?", &format!("after-{round}")).await);
            assert_eq!(alice.next_message().await, *said.last().unwrap(), "{moment}");
        }
        bob.say("panic!").await;
        let anonymous = bob.expect_said("bob", "panic!").await;
        assert_eq!(alice.next_message().await, anonymous, "{moment}: without an id, once all the same");
        said.push(anonymous);
        said.push(alice.say_and_settle("phew", "2").await);
        assert_eq!(bob.next_message().await, *said.last().unwrap());

        alice.expect_silence().await;
        bob.expect_silence().await;
        neighbour.expect_silence().await;
        neighbour.say_and_settle("heard nothing", "1").await;
        let mut late = Client::connect(&node, "lobby").await;
        let mut welcome = late.enter("late").await;
        welcome.roster.sort();
        assert_eq!(welcome.roster, ["alice", "bob"], "{moment}: the roster is intact");
        assert_eq!(welcome.backlog, said, "{moment}");
        assert_eq!(node.history("lobby").await, said, "{moment}");
        alice.expect_joined("late").await;
        late.leave().await;
        alice.expect_quit("late").await;
        assert_panicked(&node);
        assert_eq!(node.metric("parley_rooms").await, 2.0, "{moment}: the old room is not counted any more");
    }
}

#[tokio::test]
async fn a_panic_amid_a_crowd_keeps_everyones_order() {
    const WRITERS: usize = 4;
    const EACH: usize = 150;
    for moment in ["before", "after"] {
        let node = fragile(moment).await;
        let mut watcher = Client::join(&node, "lobby", "watcher").await;
        let mut clients = Vec::new();
        for writer in 0..WRITERS {
            clients.push(Client::join(&node, "lobby", &format!("w{writer}")).await);
            watcher.expect_joined(&format!("w{writer}")).await;
        }
        let mut tasks = Vec::new();
        for (writer, mut client) in clients.into_iter().enumerate() {
            tasks.push(tokio::spawn(async move {
                let text = |n| if n % 40 == 20 { "panic!".to_owned() } else { format!("{writer} {n}") };
                let lines: Vec<_> = (0..EACH).map(|n| (text(n), format!("{writer}-{n}"))).collect();
                let (_, acks) = client.say_all(&lines, 40).await;
                (client, lines, acks)
            }));
        }
        let mut seen = Vec::new();
        while seen.len() < WRITERS * EACH {
            seen.push(watcher.next_message().await);
        }
        let mut stayed = Vec::new();
        for (writer, task) in tasks.into_iter().enumerate() {
            let (mut client, lines, acks) = task.await.unwrap();
            let name = format!("w{writer}");
            let own: Vec<_> = seen.iter().filter(|said| said.name == name).collect();
            let told: Vec<_> = own.iter().map(|said| (said.text.clone(), said.id.clone().unwrap())).collect();
            assert_eq!(told, lines, "{moment}: {name} is heard in the order of speaking, each once");
            let expected: Vec<_> =
                own.iter().map(|said| (said.id.clone().unwrap(), said.timestamp)).collect();
            assert_eq!(acks, expected, "{moment}: acked in order, with the message's timestamp");
            client.expect_silence_but_talk().await;
            stayed.push(client);
        }
        watcher.expect_silence_but_talk().await;
        assert_eq!(node.history("lobby").await, seen, "{moment}: one order");
        assert_panicked(&node);
    }
}

#[tokio::test]
async fn who_comes_during_a_panic_misses_nothing() {
    for moment in ["before", "after"] {
        let node = fragile(moment).await;
        let mut alice = Client::join(&node, "lobby", "alice").await;
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let talk = tokio::spawn(async move {
            for n in 0..60 {
                let text = if n % 3 == 0 { "panic!" } else { "calm" };
                alice.say_with_id(text, &n.to_string()).await;
                alice.read_acks(1).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            alice
        });
        let mut guests = Vec::new();
        while sent.load(Ordering::Relaxed) < 60 {
            let mut guest = Client::connect(&node, "lobby").await;
            let welcome = guest.enter("guest").await;
            guests.push((guest, welcome.backlog));
            assert!(!talk.is_finished() || sent.load(Ordering::Relaxed) == 60, "the talk failed");
            tokio::task::yield_now().await;
        }
        let mut alice = talk.await.unwrap();
        let history = node.history("lobby").await;
        assert_eq!(history.len(), 60);
        alice.say_with_id("the end", "end").await;
        alice.read_acks(1).await;
        println!("{moment}: {} guests came", guests.len());
        for (mut guest, mut seen) in guests {
            while seen.last().is_none_or(|said| said.text != "the end") {
                match guest.next().await {
                    Frame::Said(said) => seen.push(said),
                    Frame::Joined(_) => {}
                    other => guest.fail(&format!("{other:?}")),
                }
            }
            seen.pop();
            assert_eq!(
                seen, history,
                "{moment}: fewer than a hundred were said, so everyone has all of them"
            );
        }
        assert_panicked(&node);
    }
}
