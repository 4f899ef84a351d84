//! One message per interval and address, after a burst.

use std::time::Duration;

use crate::support::{Client, Frame, Node, Opening, Plan, room_path};

/// An interval that no test outlives, so that what is spent stays spent.
const LONG_MS: u64 = 600_000;

/// A node that grants a burst and then nothing for the rest of the test, behind these proxies.
async fn stingy(proxies: &str) -> Node {
    Plan::new().limited(LONG_MS, 4 * LONG_MS).env("PARLEY_HTTP_TRUSTED_PROXIES", proxies).start().await
}

async fn join_as(node: &Node, room: &str, forwarded: &[&str]) -> Client {
    let headers = forwarded.iter().map(|&value| ("X-Forwarded-For", value)).collect();
    let opening = Opening { headers, ..Opening::default() };
    let mut client = Client::open(node.address(), &room_path(room), &opening).await.unwrap();
    client.enter("alice").await;
    client
}

/// Says one thing; `None` when it was accepted (relayed and acked), else what the client was told to wait for, in ms.
async fn try_say(client: &mut Client, id: &str) -> Option<u64> {
    client.say_with_id("hello", id).await;
    loop {
        match client.next().await {
            Frame::Error(refusal) => {
                assert_eq!(refusal.text, "Your IP is being rate-limited, please try again later.");
                assert_eq!(refusal.id.as_deref(), Some(id));
                return Some(refusal.retry_after_ms.expect("waiting helps, and the client is told how long"));
            }
            Frame::Ack { id: acked, .. } if acked == id => return None,
            Frame::Said(_) | Frame::Joined(_) | Frame::Quit(_) => {}
            other => client.fail(&format!("neither an ack nor a refusal: {other:?}")),
        }
    }
}

/// How many messages get through one after the other from an address, in a room and session of their own.
async fn accepted(node: &Node, room: &str, forwarded: &[&str]) -> usize {
    let mut client = join_as(node, room, forwarded).await;
    let mut count = 0;
    while count < 20 && try_say(&mut client, &format!("{room}-{count}")).await.is_none() {
        count += 1;
    }
    client.leave().await;
    count
}

#[tokio::test]
async fn a_burst_is_accepted_and_then_one_message_an_interval() {
    let node = stingy("").await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut count = 0;
    let wait_ms = loop {
        match try_say(&mut alice, &count.to_string()).await {
            None => count += 1,
            Some(wait_ms) => break wait_ms,
        }
        assert!(count < 20, "never limited");
    };
    assert!((4..=5).contains(&count), "a burst of grace / interval: {count}");
    assert!((1..=LONG_MS).contains(&wait_ms), "{wait_ms}");
    assert!(wait_ms > LONG_MS / 2, "the wait is the rest of the interval: {wait_ms}");
    for again in 0..5 {
        assert!(try_say(&mut alice, &format!("again-{again}")).await.is_some());
    }
    assert_eq!(node.history("lobby").await.len(), count, "what was refused is nowhere");
    assert_eq!(node.metric("parley_limiter_refusals_total").await, 6.0);
}

#[tokio::test]
async fn waiting_as_told_helps_and_refusals_cost_nothing() {
    const INTERVAL_MS: u64 = 400;
    let node = Plan::new().limited(INTERVAL_MS, 2 * INTERVAL_MS).start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    for round in 0..3 {
        let mut wait_ms = None;
        for n in 0..10 {
            wait_ms = wait_ms.or(try_say(&mut alice, &format!("{round}-{n}")).await);
        }
        let wait_ms = wait_ms.expect("ten at once are too many");
        assert!((1..=INTERVAL_MS).contains(&wait_ms), "{wait_ms}");
        // More refusals, which must not make the wait longer than was told at first.
        for n in 0..20 {
            try_say(&mut alice, &format!("{round}-more-{n}")).await;
        }
        let wait_ms = loop {
            match try_say(&mut alice, &format!("{round}-last")).await {
                Some(wait_ms) => break wait_ms,
                None => continue,
            }
        };
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        assert_eq!(try_say(&mut alice, &format!("{round}-after")).await, None, "waited {wait_ms} ms as told");
    }
}

#[tokio::test]
async fn messages_in_quick_succession_do_not_reject_each_other() {
    let node = Plan::new().limited(5000, 20_000).start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    // All at once: no answer of the limiter can be back before the last is sent.
    for id in ["1", "2", "3", "4"] {
        alice.say_with_id("quick", id).await;
    }
    let (said, acks) = alice.read_acks(4).await;
    assert_eq!((said.len(), acks.len()), (4, 4));
    alice.expect_silence().await;
}

#[tokio::test]
async fn a_flood_is_stopped_while_it_is_on_its_way() {
    let node = stingy("").await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    const SENT: usize = 1000;
    for n in 0..SENT {
        alice.say_with_id("flood", &n.to_string()).await;
    }
    let (mut acks, mut refusals) = (0, 0);
    while acks + refusals < SENT {
        match alice.next().await {
            Frame::Ack { .. } => acks += 1,
            Frame::Error(refusal) => {
                assert!(refusal.id.is_some() && refusal.retry_after_ms.is_some(), "{refusal:?}");
                refusals += 1;
            }
            Frame::Said(_) => {}
            other => alice.fail(&format!("{other:?}")),
        }
    }
    assert!((4..=64 + 5).contains(&acks), "no more than may be in flight slip through: {acks}");
    assert_eq!(node.history("lobby").await.len(), acks);
}

#[tokio::test]
async fn a_limit_holds_for_an_address_in_all_rooms_and_sessions() {
    let node = stingy("").await;
    assert!(accepted(&node, "kitchen", &[]).await >= 4);
    assert_eq!(accepted(&node, "garden", &[]).await, 0, "another room and session, the same address");
    let mut slipped = 0;
    for n in 0..10 {
        let mut client = Client::join(&node, "kitchen", "alice").await;
        slipped += usize::from(try_say(&mut client, &format!("new-{n}")).await.is_none());
        client.leave().await;
    }
    assert_eq!(slipped, 0, "coming back with a new session is no way around");
}

#[tokio::test]
async fn a_forwarded_address_counts_only_from_a_trusted_proxy() {
    let node = stingy("10.0.0.0/8").await;
    assert!(accepted(&node, "a", &["203.0.113.1"]).await >= 4);
    assert!(accepted(&node, "b", &["203.0.113.2"]).await <= 1, "the peer is no proxy of ours");

    let node = stingy("127.0.0.1/32").await;
    assert!(accepted(&node, "a", &["203.0.113.1"]).await >= 4);
    assert!(accepted(&node, "b", &["203.0.113.1"]).await <= 1);
    assert!(accepted(&node, "c", &["203.0.113.2"]).await >= 4, "another address behind the same proxy");
    assert!(accepted(&node, "d", &[]).await >= 4, "the proxy itself");
}

#[tokio::test]
async fn forwarded_addresses_are_read_from_the_right() {
    let node = stingy("127.0.0.1/32,10.0.0.0/8").await;
    assert!(accepted(&node, "a", &["198.51.100.1, 203.0.113.1"]).await >= 4);
    assert!(
        accepted(&node, "b", &["198.51.100.2, 203.0.113.1"]).await <= 1,
        "the left is what a client claims"
    );
    assert!(accepted(&node, "c", &["198.51.100.3,203.0.113.1 , 10.1.2.3"]).await <= 1, "through two proxies");
    assert!(accepted(&node, "d", &["198.51.100.4", "203.0.113.1"]).await <= 1, "in two header lines");
    assert!(
        accepted(&node, "e", &["203.0.113.1", "10.1.2.3"]).await <= 1,
        "in two header lines, two proxies"
    );
    assert!(accepted(&node, "f", &["203.0.113.1, 203.0.113.9"]).await >= 4);
    assert!(accepted(&node, "g", &["203.0.113.1, garbage-1"]).await >= 4, "not the claim, but the proxy");
    assert!(accepted(&node, "h", &["203.0.113.2, garbage-2"]).await <= 1, "garbage makes no new address");
}

#[tokio::test]
async fn ipv6_is_limited_by_its_64_bit_network() {
    let node = stingy("127.0.0.1/32").await;
    assert!(accepted(&node, "a", &["2001:db8:1:2:3:4:5:6"]).await >= 4);
    assert!(accepted(&node, "b", &["2001:db8:1:2:ffff::1"]).await <= 1);
    assert!(accepted(&node, "c", &["2001:db8:1:3:3:4:5:6"]).await >= 4, "the next network");
    assert!(accepted(&node, "d", &["::ffff:203.0.113.1"]).await >= 4);
    assert!(
        accepted(&node, "e", &["203.0.113.1"]).await <= 1,
        "the same address, written as IPv6 and as IPv4"
    );
    assert!(accepted(&node, "f", &["::ffff:203.0.113.2"]).await >= 4, "IPv4 in IPv6 is not one big network");
}

#[tokio::test]
async fn an_interval_of_zero_limits_nobody() {
    let node = Plan::new().limited(0, 0).start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..300).map(|n| ("hello".to_owned(), n.to_string())).collect();
    assert_eq!(alice.say_all(&lines, 60).await.1.len(), 300);
    assert_eq!(node.metric("parley_limiters").await, 0.0);
    assert_eq!(node.metric("parley_limiter_refusals_total").await, 0.0);
}

#[tokio::test]
async fn a_limiter_is_gone_when_it_has_nothing_to_remember() {
    let node = Plan::new().limited(500, 1000).start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    for id in ["1", "2"] {
        assert_eq!(try_say(&mut alice, id).await, None);
    }
    assert_eq!(node.metric("parley_limiters").await, 1.0);
    let gone = async || node.metric("parley_limiters").await == 0.0;
    crate::support::until("the limiter has stopped", crate::support::SOON, gone).await;
    assert_eq!(try_say(&mut alice, "3").await, None, "and there is a new one when needed");
}
