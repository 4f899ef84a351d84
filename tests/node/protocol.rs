//! What is said in a room, by whom, how long it may be, and in which order it arrives.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Node, Opcode, SOON, Wire, until};

#[tokio::test]
async fn a_first_guest_sees_itself_and_is_ready() {
    let node = Node::start().await;
    let mut alice = Client::connect(&node, "lobby").await;
    let welcome = alice.enter("alice").await;
    assert!(welcome.roster.is_empty() && welcome.backlog.is_empty() && !welcome.gap, "{welcome:?}");
    alice.expect_silence().await;
}

#[tokio::test]
async fn nothing_comes_before_the_name() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say_and_settle("before", "1").await;
    let mut lurker = Client::connect(&node, "lobby").await;
    alice.say_and_settle("meanwhile", "2").await;
    lurker.expect_silence().await;
    alice.expect_silence().await; // Nobody is told of a session without a name.
    let welcome = lurker.enter("bob").await;
    assert_eq!(welcome.roster, ["alice"]);
    assert_eq!(welcome.texts(), ["before", "meanwhile"]);
    alice.expect_joined("bob").await;
}

#[tokio::test]
async fn a_session_without_a_name_that_leaves_was_never_there() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    Client::connect(&node, "lobby").await.leave().await;
    let _bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
}

#[tokio::test]
async fn a_newcomer_gets_roster_then_backlog_then_itself_then_ready() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut said = vec![alice.say_and_settle("one", "1").await];
    let mut bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
    said.push(alice.say_and_settle("two", "2").await);
    assert_eq!(bob.next_message().await, said[1]);
    let mut carol = Client::connect(&node, "lobby").await;
    said.push(alice.say_and_settle("three", "3").await);
    let mut welcome = carol.enter("carol").await;
    welcome.roster.sort();
    assert_eq!(welcome.roster, ["alice", "bob"]);
    assert_eq!(welcome.backlog, said, "the same messages as were seen live, oldest first");
    alice.expect_joined("carol").await;
    bob.expect_said("alice", "three").await;
    bob.expect_joined("carol").await;
}

#[tokio::test]
async fn the_roster_has_an_entry_for_every_session() {
    let node = Node::start().await;
    let mut watcher = Client::join(&node, "lobby", "watcher").await;
    let first = Client::join(&node, "lobby", "twin").await;
    watcher.expect_joined("twin").await;
    let mut second = Client::connect(&node, "lobby").await;
    let mut welcome = second.enter("twin").await;
    welcome.roster.sort();
    assert_eq!(welcome.roster, ["twin", "watcher"]);
    watcher.expect_joined("twin").await;
    first.leave().await;
    watcher.expect_quit("twin").await;
    second.expect_quit("twin").await;
    watcher.expect_silence().await; // One of the two left, so one quit and no more.
    let mut late = Client::connect(&node, "lobby").await;
    let mut welcome = late.enter("late").await;
    welcome.roster.sort();
    assert_eq!(welcome.roster, ["twin", "watcher"], "the other one is still there");
}

#[tokio::test]
async fn who_came_and_went_before_the_name_was_given_is_not_in_the_roster() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let bob = Client::join(&node, "lobby", "bob").await;
    let mut carol = Client::connect(&node, "lobby").await;
    bob.leave().await;
    alice.expect_joined("bob").await;
    alice.expect_quit("bob").await;
    let _dave = Client::join(&node, "lobby", "dave").await;
    let mut welcome = carol.enter("carol").await;
    welcome.roster.sort();
    assert_eq!(welcome.roster, ["alice", "dave"]);
}

#[tokio::test]
async fn quit_is_told_after_a_polite_end_and_after_a_reset() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let polite = Client::join(&node, "lobby", "polite").await;
    alice.expect_joined("polite").await;
    polite.leave().await;
    alice.expect_quit("polite").await;
    let mut rude = Wire::open(node.address(), "/api/room/lobby").await;
    rude.send(Opcode::Text, true, br#"{"name":"rude"}"#).await.unwrap();
    alice.expect_joined("rude").await;
    rude.vanish();
    alice.expect_quit("rude").await;
    alice.expect_silence().await;
}

#[tokio::test]
async fn rooms_do_not_hear_each_other() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "kitchen", "alice").await;
    let mut bob = Client::join(&node, "garden", "bob").await;
    alice.say_and_settle("in the kitchen", "1").await;
    bob.expect_silence().await;
    bob.say_and_settle("in the garden", "1").await;
    alice.expect_silence().await;
    assert_eq!(node.history("kitchen").await.len(), 1);
    assert_eq!(node.history("garden").await.len(), 1);
}

#[tokio::test]
async fn names_are_measured_in_utf16_units() {
    let node = Node::start().await;
    for name in ["x".repeat(32), "é".repeat(32), "漢".repeat(32), "😀".repeat(16)] {
        let mut client = Client::connect(&node, "lobby").await;
        client.enter(&name).await;
        client.leave().await;
    }
    let mut watcher = Client::join(&node, "lobby", "watcher").await;
    for name in ["x".repeat(33), "漢".repeat(33), "😀".repeat(17), format!("{}x", "😀".repeat(16))] {
        let mut client = Client::connect(&node, "lobby").await;
        client.send(json!({ "name": name })).await;
        assert_eq!(client.expect_error().await.text, "Name too long.");
        client.expect_close(1009).await;
    }
    watcher.expect_silence().await;
    assert_eq!(node.metric_where("parley_closes_total", "code=\"1009\"").await, 4.0);
}

#[tokio::test]
async fn whoever_gives_no_name_is_anonymous() {
    let node = Node::start().await;
    for first in [json!({}), json!({ "name": "" })] {
        let mut client = Client::connect(&node, "lobby").await;
        client.send(first).await;
        client.welcome("anonymous").await;
        client.say("hello").await;
        client.expect_said("anonymous", "hello").await;
        client.leave().await;
    }
}

#[tokio::test]
async fn a_first_frame_that_is_no_introduction_can_be_followed_by_one() {
    let node = Node::start().await;
    let mut client = Client::connect(&node, "lobby").await;
    for wrong in ["no json", "", "[]", "7", "\"alice\"", "{\"name\":", r#"{"name":7}"#, r#"{"name":["a"]}"#] {
        client.send_text(wrong).await;
        client.expect_error().await;
    }
    client.enter("alice").await;
    client.say_and_settle("made it", "1").await;
}

#[tokio::test]
async fn messages_are_measured_in_utf16_units() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
    let fitting = ["x".repeat(256), "漢".repeat(256), "😀".repeat(128), "\u{1}".repeat(256)];
    for text in &fitting {
        alice.say(text).await;
        alice.expect_said("alice", text).await;
        bob.expect_said("alice", text).await;
    }
    let too_long = ["x".repeat(257), "漢".repeat(257), "😀".repeat(129), format!("{}x", "😀".repeat(128))];
    for (index, text) in too_long.iter().enumerate() {
        let id = format!("long-{index}");
        alice.say_with_id(text, &id).await;
        let refusal = alice.expect_error().await;
        assert_eq!(refusal.text, "Message too long.");
        assert_eq!(refusal.id, Some(id), "the error names the refused message");
        alice.say(text).await;
        assert_eq!(alice.expect_error().await.id, None);
    }
    alice.say_and_settle("still here", "1").await;
    bob.expect_said("alice", "still here").await;
    assert_eq!(node.history("lobby").await.len(), fitting.len() + 1, "what was refused is nowhere");
}

#[tokio::test]
async fn text_arrives_as_it_was_sent() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "a\"l\\ice </script> \u{2028}").await;
    let texts = [
        "<img src=x onerror=alert(1)>",
        "quotes \" and ' and \\ and \\u0041 and \\\\n",
        "line\nbreaks\r\nand\ttabs",
        "zero \u{0} escape \u{1b} delete \u{7f} bom \u{feff}",
        "e\u{301} is not é, and 👩‍👩‍👧 is one",
        "\u{2028}\u{2029}\u{fffd}\u{10ffff}",
        " space around ",
    ];
    for (index, text) in texts.iter().enumerate() {
        alice.say_and_settle(text, &index.to_string()).await;
    }
    let history: Vec<String> = node.history("lobby").await.into_iter().map(|said| said.text).collect();
    assert_eq!(history, texts);
}

#[tokio::test]
async fn nobody_speaks_for_another_and_unknown_fields_are_ignored() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice
        .send(json!({ "name": "mallory", "message": "hi", "timestamp": 1, "joined": "x", "id": "1", "more": [1] }))
        .await;
    let said = alice.expect_said("alice", "hi").await;
    assert!(said.timestamp > 1_600_000_000_000, "the node's own clock, in milliseconds: {said:?}");
    assert_eq!(alice.expect_ack("1").await, said.timestamp);
}

#[tokio::test]
async fn senseless_frames_are_answered_and_the_session_goes_on() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut bob = Client::join(&node, "lobby", "bob").await;
    alice.expect_joined("bob").await;
    let senseless = [
        "",
        "hello",
        "null",
        "[]",
        "{",
        r#"{"message":"a"}{"message":"b"}"#,
        r#"{"message":7}"#,
        r#"{"message":null,"id":"x"}"#,
        r#"{"message":{"a":1}}"#,
        r#"{"message":"hi","id":7}"#,
        r#"{"message":"a lone surrogate \ud800"}"#,
    ];
    for text in senseless {
        alice.send_text(text).await;
        alice.expect_error().await;
    }
    // Deep nesting must not exhaust the stack of the node.
    alice.send_text(&"[".repeat(60_000)).await;
    alice.expect_error().await;
    bob.expect_silence().await;
    alice.say_and_settle("all is well", "1").await;
    assert_eq!(node.history("lobby").await.len(), 1);
}

#[tokio::test]
async fn a_binary_frame_is_refused() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut wire = Wire::open(node.address(), "/api/room/lobby").await;
    wire.send(Opcode::Text, true, br#"{"name":"bob"}"#).await.unwrap();
    alice.expect_joined("bob").await;
    wire.send(Opcode::Binary, true, br#"{"message":"binary","id":"1"}"#).await.unwrap();
    let refused = loop {
        match wire.next().await.expect("an answer") {
            (Opcode::Close, payload) => break Wire::close_code(&payload) == Some(1003),
            (_, payload) if payload.starts_with(b"{\"error\"") => break true,
            _ => {}
        }
    };
    assert!(refused);
    alice.say_and_settle("nothing was said", "2").await;
    assert_eq!(node.history("lobby").await.len(), 1);
}

#[tokio::test]
async fn a_message_in_pieces_is_one_message() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut wire = Wire::open(node.address(), "/api/room/lobby").await;
    wire.send(Opcode::Text, true, br#"{"name":"bob"}"#).await.unwrap();
    alice.expect_joined("bob").await;
    let whole = r#"{"message":"h\u00e9llo 😀"}"#.as_bytes();
    let (first, rest) = whole.split_at(whole.len() - 4); // In the middle of the last character.
    wire.send(Opcode::Text, false, first).await.unwrap();
    wire.send(Opcode::Ping, true, b"between").await.unwrap();
    wire.send(Opcode::Continuation, true, rest).await.unwrap();
    alice.expect_said("bob", "héllo 😀").await;
    assert_eq!(wire.next_of(Opcode::Pong).await.as_deref(), Some(&b"between"[..]));
}

#[tokio::test]
async fn frames_above_64_kib_end_the_session_with_1009() {
    let node = Node::start().await;
    let mut watcher = Client::join(&node, "lobby", "watcher").await;

    let mut fitting = Client::join(&node, "lobby", "fitting").await;
    watcher.expect_joined("fitting").await;
    let envelope = r#"{"message":""}"#.len();
    fitting.send_text(&format!(r#"{{"message":"{}"}}"#, "x".repeat(65_536 - envelope))).await;
    assert_eq!(fitting.expect_error().await.text, "Message too long.", "64 KiB are read and answered");
    fitting.leave().await;
    watcher.expect_quit("fitting").await;

    let mut big = Client::join(&node, "lobby", "big").await;
    watcher.expect_joined("big").await;
    big.send_text(&format!(r#"{{"message":"{}"}}"#, "x".repeat(65_537 - envelope))).await;
    big.expect_close(1009).await;
    watcher.expect_quit("big").await;

    let mut pieces = Wire::open(node.address(), "/api/room/lobby").await;
    pieces.send(Opcode::Text, true, br#"{"name":"pieces"}"#).await.unwrap();
    watcher.expect_joined("pieces").await;
    pieces.send(Opcode::Text, false, br#"{"message":""#).await.unwrap();
    for _ in 0..5 {
        // The node may have closed already; what counts is the code.
        let _sent = pieces.send(Opcode::Continuation, false, &[b'x'; 16_384]).await;
    }
    let close = pieces.next_of(Opcode::Close).await.expect("a close frame");
    assert_eq!(Wire::close_code(&close), Some(1009), "a message in pieces is measured as a whole");
    watcher.expect_quit("pieces").await;

    let mut nameless = Client::connect(&node, "lobby").await;
    nameless.send_raw(Message::text("x".repeat(1 << 20))).await;
    nameless.expect_close(1009).await;
    watcher.expect_silence().await;
    assert_eq!(node.metric_where("parley_closes_total", "code=\"1009\"").await, 3.0);
}

#[tokio::test]
async fn everyone_sees_a_thousand_concurrent_messages_in_one_order() {
    const SENDERS: usize = 10;
    const EACH: usize = 100;
    let node = Node::start().await;
    let mut watcher = Client::join(&node, "lobby", "watcher").await;
    let mut senders = Vec::new();
    for index in 0..SENDERS {
        senders.push(Client::join(&node, "lobby", &format!("s{index}")).await);
        watcher.expect_joined(&format!("s{index}")).await;
    }
    let mut tasks = Vec::new();
    for (index, mut sender) in senders.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            let lines: Vec<_> = (0..EACH).map(|n| (format!("{index} {n}"), format!("{index}-{n}"))).collect();
            let (mut said, acks) = sender.say_all(&lines, EACH).await;
            let order: Vec<_> = acks.iter().map(|(id, _)| id.clone()).collect();
            let sent: Vec<_> = lines.iter().map(|(_, id)| id.clone()).collect();
            assert_eq!(order, sent, "acks come in the order of sending");
            while said.len() < SENDERS * EACH {
                said.push(sender.next_message().await);
            }
            for (id, timestamp) in acks {
                let of_id = said.iter().find(|message| message.id.as_ref() == Some(&id)).unwrap();
                assert_eq!(of_id.timestamp, timestamp, "the ack of {id} has its message's timestamp");
            }
            (sender, said)
        }));
    }
    let mut seen = Vec::new();
    while seen.len() < SENDERS * EACH {
        seen.push(watcher.next_message().await);
    }
    for pair in seen.windows(2) {
        assert!(pair[0].timestamp < pair[1].timestamp, "{pair:?}");
    }
    for index in 0..SENDERS {
        let name = format!("s{index}");
        let own: Vec<_> =
            seen.iter().filter(|said| said.name == name).map(|said| said.text.clone()).collect();
        assert_eq!(own, (0..EACH).map(|n| format!("{index} {n}")).collect::<Vec<_>>());
    }
    for task in tasks {
        let (_stays, said) = task.await.unwrap();
        assert_eq!(said, seen, "one order for everyone");
    }
    assert_eq!(node.history("lobby").await, seen, "which is the order of the history");
    assert_eq!(node.metric("parley_messages_total").await, (SENDERS * EACH) as f64);
    assert_eq!(node.metric("parley_acks_total").await, (SENDERS * EACH) as f64);
    until("no session is left", SOON, async || node.metric("parley_sessions").await == 1.0).await;
}

#[tokio::test]
async fn five_hundred_messages_at_once_are_all_acked_in_order() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..500).map(|n| (format!("line {n}"), format!("id-{n}"))).collect();
    for (text, id) in &lines {
        alice.say_with_id(text, id).await; // Nothing is read meanwhile: far more than may be in flight.
    }
    let (said, acks) = alice.read_acks(lines.len()).await;
    let texts: Vec<_> = said.iter().map(|message| message.text.clone()).collect();
    assert_eq!(texts, lines.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>());
    let expected: Vec<_> = said.iter().map(|m| (m.id.clone().unwrap(), m.timestamp)).collect();
    assert_eq!(acks, expected);
    assert_eq!(node.history("lobby").await, said);
}
