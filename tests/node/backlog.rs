//! What a session is given to catch up with: the last hundred messages, or everything since a timestamp.

use crate::support::{Client, Node, Said, Seed, request};

/// Says `count` messages and returns them as they were relayed.
async fn fill(client: &mut Client, count: usize) -> Vec<Said> {
    let lines: Vec<_> = (0..count).map(|n| (format!("m{n}"), format!("id-{n}"))).collect();
    let (said, _) = client.say_all(&lines, 60).await;
    assert_eq!(said.len(), count);
    said
}

#[tokio::test]
async fn a_newcomer_gets_the_last_hundred() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let said = fill(&mut alice, 100).await;
    let mut bob = Client::connect(&node, "lobby").await;
    assert_eq!(bob.enter("bob").await.backlog, said, "exactly a hundred is all of them");
    alice.expect_joined("bob").await;
    alice.say_and_settle("one more", "more").await;
    let mut carol = Client::connect(&node, "lobby").await;
    let welcome = carol.enter("carol").await;
    assert_eq!(welcome.backlog.len(), 100);
    assert_eq!(welcome.backlog[..99], said[1..]);
    assert!(!welcome.gap, "who did not ask for more misses nothing");
}

#[tokio::test]
async fn the_backlog_is_the_same_after_a_restart() {
    let mut node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let said = fill(&mut alice, 120).await;
    node.restart_after_kill().await;
    let mut bob = Client::connect(&node, "lobby").await;
    let welcome = bob.enter("bob").await;
    assert!(welcome.roster.is_empty(), "nobody of before is in the roster: {welcome:?}");
    assert_eq!(welcome.backlog, said[20..]);
    let (_carol, welcome) = Client::rejoin(&node, "lobby", "carol", 0).await;
    assert_eq!(welcome.backlog, said);
}

#[tokio::test]
async fn all_that_is_said_between_connecting_and_the_name_arrives() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say_and_settle("before", "before").await;
    let mut late = Client::connect(&node, "lobby").await;
    late.expect_silence().await;
    let said = fill(&mut alice, 150).await;
    let welcome = late.enter("late").await;
    assert!(
        welcome.backlog.len() >= 150,
        "a hundred of before, and anything since: {}",
        welcome.backlog.len()
    );
    assert!(welcome.backlog.ends_with(&said), "nothing is missing or doubled");
}

#[tokio::test]
async fn since_gives_what_came_after_and_nothing_twice() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let said = fill(&mut alice, 300).await;
    for seen in [0, 1, 150, 298, 299] {
        let (client, welcome) = Client::rejoin(&node, "lobby", "bob", said[seen].timestamp).await;
        assert_eq!(welcome.backlog, said[seen + 1..], "after the message with index {seen}");
        assert!(!welcome.gap);
        client.leave().await;
    }
    for (since, count) in [(0, 300), (said[0].timestamp - 1, 300), (u64::from(u32::MAX) * 100_000, 0)] {
        let (client, welcome) = Client::rejoin(&node, "lobby", "bob", since).await;
        assert_eq!(welcome.backlog.len(), count, "since {since}");
        client.leave().await;
    }
}

#[tokio::test]
async fn since_reaches_back_a_thousand_messages_and_tells_of_a_gap_beyond() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let said = fill(&mut alice, 1002).await;
    let (client, welcome) = Client::rejoin(&node, "lobby", "bob", said[1].timestamp).await;
    assert!(!welcome.gap, "a thousand is not too many");
    assert_eq!(welcome.backlog, said[2..]);
    client.leave().await;
    let (client, welcome) = Client::rejoin(&node, "lobby", "bob", said[0].timestamp).await;
    assert!(welcome.gap, "one of 1001 is missing");
    assert_eq!(welcome.backlog, said[2..], "the newest thousand");
    client.leave().await;
    // What is missing is in the history, between what was seen and where the backlog begins.
    let query = format!("after={}&before={}&limit=1000", said[0].timestamp, said[2].timestamp);
    assert_eq!(node.page("lobby", &query).await, (vec![said[1].clone()], false));
}

#[tokio::test]
async fn a_since_that_is_no_timestamp_is_refused() {
    let node = Node::start().await;
    for wrong in ["abc", "-1", "1.5", "", "99999999999999999999999", "1e3", "%20"] {
        let path = format!("/api/room/lobby/websocket?since={wrong}");
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "AAECAwQFBgcICQoLDA0ODw=="),
        ];
        let reply = request(node.address(), "GET", &path, &headers).await;
        assert_eq!(reply.status, 400, "since={wrong}: {reply:?}");
        reply.error();
    }
}

#[tokio::test]
async fn who_comes_and_goes_during_a_flood_misses_nothing_and_sees_nothing_twice() {
    const TOTAL: usize = 3000;
    let mut seed = Seed::new("who_comes_and_goes");
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let flood = tokio::spawn(async move { fill(&mut alice, TOTAL).await });
    let mut seen: Vec<Said> = Vec::new();
    while seen.len() < TOTAL {
        let since = seen.last().map_or(0, |said| said.timestamp);
        let (mut guest, welcome) = Client::rejoin(&node, "lobby", "guest", since).await;
        let after = format!("after={since}&limit=1000");
        if welcome.gap {
            // More than a thousand came while nobody was here: a client reads them from the history.
            let first = welcome.backlog[0].timestamp;
            let (page, _) = node.page("lobby", &format!("{after}&before={first}")).await;
            seen.extend(page);
            guest.leave().await;
            continue;
        }
        seen.extend(welcome.backlog);
        for _ in 0..seed.between(0, 200) {
            if seen.len() == TOTAL {
                break;
            }
            seen.push(guest.next_message_of_many().await);
        }
        if seed.between(0, 2) == 0 {
            guest.leave().await;
        }
    }
    let said = flood.await.unwrap();
    assert_eq!(seen, said);
}
