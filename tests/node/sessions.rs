//! Sessions that are slow, many, or both.

use std::time::Instant;

use crate::support::{Client, Frame, Node, Opening, SOON, Said, room_path, until};

#[tokio::test]
async fn a_slow_reader_is_closed_with_1013_and_comes_back_without_loss() {
    let node = Node::start().await;
    let mut flooder = Client::join(&node, "lobby", "flooder").await;
    let opening = Opening { receive_buffer: Some(4096), ..Opening::default() };
    let mut slow = Client::open(node.address(), &room_path("lobby"), &opening).await.unwrap();
    slow.enter("slow").await;
    flooder.expect_joined("slow").await;
    assert_eq!(flooder.flood_until_quit(SOON * 3).await, "slow");

    let mut seen: Vec<Said> = Vec::new();
    loop {
        match slow.next().await {
            Frame::Said(said) => seen.push(said),
            Frame::Close(code) => {
                assert_eq!(code, Some(1013));
                break;
            }
            other => slow.fail(&format!("messages and then a close, not {other:?}")),
        }
    }
    assert!(!seen.is_empty(), "what was on its way still arrives");
    let since = seen.last().unwrap().timestamp;
    let (mut back, welcome) = Client::rejoin(&node, "lobby", "slow", since).await;
    assert_eq!(welcome.roster, ["flooder"], "the closed session is no longer there");
    if welcome.gap {
        let until = welcome.backlog[0].timestamp;
        let missed = node.history_after("lobby", since).await;
        seen.extend(missed.into_iter().filter(|said| said.timestamp < until));
    }
    println!("{} seen before the close, {} in the backlog", seen.len(), welcome.backlog.len());
    assert!(!welcome.backlog.is_empty(), "something was said that it could not read in time");
    seen.extend(welcome.backlog);
    assert!(seen == node.history("lobby").await, "nothing lost, nothing twice");
    assert_eq!(node.metric_where("parley_closes_total", "code=\"1013\"").await, 1.0);
    flooder.expect_joined("slow").await;
    flooder.say_and_settle("welcome back", "back").await;
    back.expect_said("flooder", "welcome back").await;
}

#[tokio::test]
async fn who_sends_without_reading_harms_nobody_else() {
    let node = Node::start().await;
    let mut bob = Client::join(&node, "lobby", "bob").await;
    let opening = Opening { receive_buffer: Some(4096), ..Opening::default() };
    let mut deaf = Client::open(node.address(), &room_path("lobby"), &opening).await.unwrap();
    deaf.enter("deaf").await;
    bob.expect_joined("deaf").await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let talker = tokio::spawn(async move {
        let text = "\u{1}".repeat(256);
        for n in 0.. {
            // Ends when the node closes the session or does not take more, or when the test is over.
            let id = format!("deaf-{n}");
            let say = deaf.try_say_with_id(&text, &id);
            if tokio::select! { sent = say => sent.is_err(), _ = &mut stopped => true } {
                return deaf;
            }
        }
        deaf
    });
    for n in 0..300 {
        let id = format!("bob-{n}");
        let start = Instant::now();
        bob.say_with_id("hello", &id).await;
        let acked = async {
            loop {
                match bob.next().await {
                    Frame::Ack { id: acked, .. } if acked == id => return,
                    Frame::Said(_) | Frame::Quit(_) => {}
                    other => bob.fail(&format!("{other:?}")),
                }
            }
        };
        acked.await;
        assert!(start.elapsed() < SOON);
    }
    drop(stop);
    talker.await.unwrap();
}

#[tokio::test]
async fn many_who_come_at_once_agree_on_who_is_there() {
    const GUESTS: usize = 60;
    let node = Node::start().await;
    let mut tasks = Vec::new();
    for n in 0..GUESTS {
        let mut client = Client::connect(&node, "lobby").await;
        tasks.push(tokio::spawn(async move {
            let name = format!("guest {n}");
            let welcome = client.enter(&name).await;
            (client, name, welcome.roster)
        }));
    }
    let mut guests = Vec::new();
    for task in tasks {
        guests.push(task.await.unwrap());
    }
    let mut everyone: Vec<String> = (0..GUESTS).map(|n| format!("guest {n}")).collect();
    everyone.sort();
    for (client, name, roster) in &mut guests {
        roster.push(name.clone());
        while roster.len() < GUESTS {
            match client.next().await {
                Frame::Joined(other) => roster.push(other),
                other => client.fail(&format!("everybody joined once, nobody quit: {other:?}")),
            }
        }
        roster.sort();
        assert_eq!(*roster, everyone, "as {name} sees it");
    }
    assert_eq!(node.metric("parley_sessions").await, GUESTS as f64);
    let (mut last, ..) = guests.pop().unwrap();
    drop(guests); // All the others vanish at once.
    let mut left = 0;
    while left < GUESTS - 1 {
        match last.next().await {
            Frame::Quit(_) => left += 1,
            other => last.fail(&format!("{other:?}")),
        }
    }
    until("one session is left", SOON, async || node.metric("parley_sessions").await == 1.0).await;
    last.expect_silence().await;
}

#[tokio::test]
async fn many_rooms_are_open_at_once() {
    const ROOMS: usize = 100;
    let node = Node::start().await;
    let mut guests = Vec::new();
    for n in 0..ROOMS {
        guests.push(Client::join(&node, &format!("room {n}"), "alice").await);
    }
    assert_eq!(node.metric("parley_rooms").await, ROOMS as f64);
    for (n, guest) in guests.iter_mut().enumerate() {
        guest.say_and_settle(&format!("in {n}"), "1").await;
    }
    for n in 0..ROOMS {
        let history = node.history(&format!("room {n}")).await;
        assert_eq!(history.len(), 1);
        assert_eq!(history[0].text, format!("in {n}"));
    }
}
