//! What takes a minute and more: pings, sessions without a name, rooms without sessions. All of it waits at the same
//! time, in one test, so that it holds up the others as little as it can.

use std::time::{Duration, Instant};

use crate::support::{Client, Node, Opcode, Opening, SOON, Wire, room_path, until};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Checks that something took about as long as it should: not earlier than promised, and not much later.
fn assert_took(what: &str, took: Duration, least_s: u64, most_s: u64) {
    println!("{what}: {:.1} s", took.as_secs_f64());
    assert!(
        (seconds(least_s)..seconds(most_s)).contains(&took),
        "{what}: {took:?}, not {least_s} to {most_s} s"
    );
}

#[tokio::test]
async fn idle_sessions_strangers_and_empty_rooms_are_seen_off_in_time() {
    let node = Node::start().await;
    let lone = Node::start().await;
    let stuffed = Node::start().await;
    let ((), (), (), (), ()) = tokio::join!(
        deaf_sessions_are_pinged_and_dropped(&node),
        strangers_are_closed(&node, false),
        strangers_are_closed(&node, true),
        empty_rooms_stop(&lone),
        sessions_that_never_read_are_let_go(&stuffed),
    );
}

/// A session that answers pings stays; one that does not gets two more chances, and then the others see it quit.
async fn deaf_sessions_are_pinged_and_dropped(node: &Node) {
    let start = Instant::now();
    let mut polite = Wire::open(node.address(), "/api/room/lobby").await;
    polite.send(Opcode::Text, true, br#"{"name":"polite"}"#).await.unwrap();
    while polite.next_of(Opcode::Text).await.unwrap() != br#"{"ready":true}"# {}
    let mut deaf = Wire::open(node.address(), "/api/room/lobby").await;
    deaf.send(Opcode::Text, true, br#"{"name":"deaf"}"#).await.unwrap();
    let deaf_pings = async {
        let mut pings = Vec::new();
        while let Some((kind, _)) = deaf.next().await {
            if kind == Opcode::Ping {
                pings.push(start.elapsed());
            }
        }
        (pings, start.elapsed())
    };
    let polite_pings = async {
        let mut pings = Vec::new();
        let quit = br#"{"quit":"deaf"}"#;
        let mut quit_at = None;
        while quit_at.is_none() || pings.len() < 4 {
            match polite.next().await.expect("who answers pings is not dropped") {
                (Opcode::Ping, payload) => {
                    pings.push(start.elapsed());
                    polite.send(Opcode::Pong, true, &payload).await.unwrap();
                }
                (Opcode::Text, text) if text == quit => quit_at = Some(start.elapsed()),
                (Opcode::Text, _) => {}
                other => panic!("{other:?}"),
            }
        }
        (pings, quit_at.unwrap())
    };
    let ((deaf_pings, dropped_at), (polite_pings, quit_at)) =
        tokio::time::timeout(seconds(180), async { tokio::join!(deaf_pings, polite_pings) }).await.unwrap();
    assert!(deaf_pings.len() >= 2, "two pings go unanswered: {deaf_pings:?}");
    assert_took("a deaf session is dropped", dropped_at, 55, 100);
    assert!(quit_at >= dropped_at.saturating_sub(seconds(1)) && quit_at < dropped_at + seconds(15));
    assert_took("the first ping", polite_pings[0], 25, 40);
    for pair in polite_pings.windows(2) {
        assert_took("the time between pings", pair[1] - pair[0], 25, 40);
    }
}

/// A session that gives no name is closed, and neither pings nor nonsense make it a session with a name.
async fn strangers_are_closed(node: &Node, babbling: bool) {
    let start = Instant::now();
    let mut stranger = Wire::open(node.address(), "/api/room/street").await;
    let code = loop {
        let wait = tokio::time::timeout(seconds(3), stranger.next());
        match wait.await {
            Ok(Some((Opcode::Close, payload))) => break Wire::close_code(&payload),
            Ok(Some((Opcode::Ping, payload))) => stranger.send(Opcode::Pong, true, &payload).await.unwrap(),
            Ok(Some((Opcode::Text, text))) => assert!(text.starts_with(b"{\"error\""), "only errors come"),
            Ok(Some((Opcode::Pong, _))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(_) if babbling => {
                stranger.send(Opcode::Text, true, b"no name").await.unwrap();
                stranger.send(Opcode::Ping, true, b"").await.unwrap();
            }
            Err(_) => assert!(start.elapsed() < seconds(60), "a stranger is not closed"),
        }
        assert!(start.elapsed() < seconds(60), "a stranger is not closed");
    };
    assert_eq!(code, Some(1008));
    assert_took("a session without a name is closed", start.elapsed(), 28, 40);
}

/// A room stops a minute after its last session left, not earlier, and is as it was when somebody comes back.
async fn empty_rooms_stop(node: &Node) {
    let mut alice = Client::join(node, "short", "alice").await;
    let mut said = vec![alice.say_and_settle("anyone?", "1").await];
    let mut bob = Client::join(node, "again", "bob").await;
    bob.say_and_settle("here", "1").await;
    assert_eq!(node.metric("parley_rooms").await, 2.0);
    let left = Instant::now();
    alice.leave().await;
    until("the empty room has stopped", seconds(120), async || {
        bob.expect_silence().await; // Someone who is there keeps a room going.
        node.metric("parley_rooms").await == 1.0
    })
    .await;
    assert_took("an empty room stops", left.elapsed(), 58, 90);
    assert_eq!(node.history("short").await, said);
    let mut alice = Client::connect(node, "short").await;
    assert_eq!(alice.enter("alice").await.backlog, said);
    alice.say_with_id("anyone?", "1").await;
    assert_eq!(alice.expect_ack("1").await, said[0].timestamp, "ids are known for ever");
    said.push(alice.say_and_settle("hello again", "2").await);
    assert!(said[1].timestamp > said[0].timestamp);
    let gone = async || node.metric("parley_rooms").await == 2.0;
    until("both rooms are there", SOON, gone).await;
}

/// A session that reads nothing any more cannot be told so, and is not kept for ever either.
async fn sessions_that_never_read_are_let_go(node: &Node) {
    let mut flooder = Client::join(node, "lobby", "flooder").await;
    let opening = Opening { receive_buffer: Some(4096), ..Opening::default() };
    let mut stuck = Client::open(node.address(), &room_path("lobby"), &opening).await.unwrap();
    stuck.enter("stuck").await;
    flooder.expect_joined("stuck").await;
    assert_eq!(flooder.flood_until_quit(SOON * 3).await, "stuck");
    let start = Instant::now();
    until("the stuck session is gone", seconds(150), async || {
        flooder.expect_silence().await;
        node.metric("parley_sessions").await == 1.0
    })
    .await;
    println!("a session that reads nothing is gone after {:.1} s", start.elapsed().as_secs_f64());
    drop(stuck);
}
