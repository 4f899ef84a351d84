//! A client's own ids: echoed, acknowledged, and never said twice.

use serde_json::json;

use crate::support::{Client, Node};

#[tokio::test]
async fn an_id_is_echoed_to_everyone_and_only_the_sender_gets_the_ack() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
    let said = alice.say_and_settle("hi", "my-id").await;
    assert_eq!(bob.next_message().await, said);
    bob.expect_silence().await;
    let mut carol = Client::connect(&node, "lobby").await;
    assert_eq!(carol.enter("carol").await.backlog, std::slice::from_ref(&said));
    assert_eq!(node.history("lobby").await, [said]);
}

#[tokio::test]
async fn without_an_id_there_is_neither_an_id_nor_an_ack() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say("no id").await;
    assert_eq!(alice.expect_said("alice", "no id").await.id, None);
    // The second message's ack comes after the first would have been acked.
    alice.say_and_settle("with id", "1").await;
    alice.expect_silence().await;
    assert_eq!(node.history("lobby").await[0].id, None);
    // The same text again is a new message: without an id nothing is a repetition.
    alice.say("no id").await;
    alice.expect_said("alice", "no id").await;
}

#[tokio::test]
async fn an_id_has_up_to_64_characters() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let longest = "i".repeat(64);
    alice.say_and_settle("fits", &longest).await;
    alice.say_and_settle("odd but fine", "\"\\ {}\n😀").await;
    alice.say_with_id("does not fit", &"i".repeat(65)).await;
    alice.expect_error().await;
    alice.send(json!({ "message": "no text", "id": ["1"] })).await;
    alice.expect_error().await;
    alice.say_and_settle("goes on", "2").await;
    assert_eq!(node.history("lobby").await.len(), 3);
}

#[tokio::test]
async fn the_same_id_again_is_acked_again_and_not_repeated() {
    let mut node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
    let first = alice.say_and_settle("once", "the-id").await;
    assert_eq!(bob.next_message().await, first);

    alice.say_with_id("once", "the-id").await;
    assert_eq!(alice.expect_ack("the-id").await, first.timestamp, "in the same session");
    alice.leave().await;
    bob.expect_quit("alice").await;

    let mut again = Client::join(&node, "lobby", "alice").await;
    bob.expect_joined("alice").await;
    again.say_with_id("once", "the-id").await;
    assert_eq!(again.expect_ack("the-id").await, first.timestamp, "in another session");
    bob.expect_silence().await;

    node.restart_after_kill().await;
    let mut later = Client::join(&node, "lobby", "alice").await;
    later.say_with_id("once", "the-id").await;
    assert_eq!(later.expect_ack("the-id").await, first.timestamp, "after a restart");
    let next = later.say_and_settle("another", "another-id").await;
    assert_eq!(node.history("lobby").await, [first, next]);
}

#[tokio::test]
async fn an_old_id_is_known_however_much_was_said_since() {
    let mut node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let first = alice.say_and_settle("the first", "first").await;
    let lines: Vec<_> = (0..3000).map(|n| (format!("{n}"), format!("id-{n}"))).collect();
    let (_, acks) = alice.say_all(&lines, 60).await;
    alice.say_with_id("the first", "first").await;
    assert_eq!(alice.expect_ack("first").await, first.timestamp);
    node.restart_after_kill().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say_with_id("the first", "first").await;
    assert_eq!(alice.expect_ack("first").await, first.timestamp);
    alice.say_with_id("1500", "id-1500").await;
    assert_eq!(alice.expect_ack("id-1500").await, acks[1500].1);
    assert_eq!(node.history("lobby").await.len(), 3001);
}

#[tokio::test]
async fn the_same_id_from_many_sessions_at_once_is_one_message() {
    const SESSIONS: usize = 8;
    const IDS: usize = 40;
    let node = Node::start().await;
    let mut tasks = Vec::new();
    for _ in 0..SESSIONS {
        let mut client = Client::join(&node, "lobby", "alice").await;
        tasks.push(tokio::spawn(async move {
            let lines: Vec<_> = (0..IDS).map(|n| (format!("text {n}"), format!("id-{n}"))).collect();
            let (_, acks) = client.say_all(&lines, IDS).await;
            acks
        }));
    }
    let mut all_acks = Vec::new();
    for task in tasks {
        all_acks.push(task.await.unwrap());
    }
    let history = node.history("lobby").await;
    assert_eq!(history.len(), IDS, "each id is one message");
    for acks in all_acks {
        assert_eq!(acks.len(), IDS);
        for (id, timestamp) in acks {
            let said = history.iter().find(|said| said.id.as_ref() == Some(&id)).unwrap();
            assert_eq!(said.timestamp, timestamp, "everyone is told the same timestamp for {id}");
        }
    }
}

#[tokio::test]
async fn the_same_id_twice_in_one_breath_is_one_message_and_two_acks() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..30).map(|n| (format!("{}", n / 2), format!("id-{}", n / 2))).collect();
    let (said, acks) = alice.say_all(&lines, 30).await;
    assert_eq!(said.len(), 15);
    assert_eq!(acks.len(), 30);
    for (id, timestamp) in &acks {
        assert_eq!(acks.iter().filter(|(other, _)| other == id).count(), 2);
        assert!(said.iter().any(|said| said.id.as_ref() == Some(id) && said.timestamp == *timestamp));
    }
    assert_eq!(node.history("lobby").await, said);
}

#[tokio::test]
async fn an_id_belongs_to_its_room() {
    let node = Node::start().await;
    let mut kitchen = Client::join(&node, "kitchen", "alice").await;
    let mut garden = Client::join(&node, "garden", "alice").await;
    kitchen.say_and_settle("in the kitchen", "1").await;
    garden.say_and_settle("in the garden", "1").await;
    assert_eq!(node.history("garden").await[0].text, "in the garden");
}
