//! A graceful stop: everyone is told to come back, and what was acked is there when they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Client, Frame, Node, Opening, SOON, Written, room_path, until};

#[tokio::test]
async fn a_stop_closes_sessions_with_1012_and_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut node = Node::start().await;
        let mut alice = Client::join(&node, "lobby", "alice").await;
        let mut bob = Client::join(&node, "garden", "bob").await;
        let mut nameless = Client::connect(&node, "lobby").await;
        nameless.expect_silence().await;
        let said = alice.say_and_settle("see you", "1").await;
        node.signal(signal);
        alice.expect_close(1012).await;
        bob.expect_close(1012).await;
        nameless.expect_close(1012).await;
        assert_eq!(node.ended(SOON / 2).await, Some(0));
        node.start_again().await;
        assert_eq!(node.history("lobby").await, [said]);
    }
}

#[tokio::test]
async fn a_crowd_is_told_to_come_back_too() {
    let mut node = Node::start().await;
    let mut guests = Vec::new();
    for n in 0..40 {
        guests.push(Client::join(&node, "lobby", &format!("guest {n}")).await);
    }
    node.signal(Signal::TERM);
    for guest in &mut guests {
        // Whoever is closed later may still see others quit.
        let end = loop {
            match guest.next().await {
                Frame::Joined(_) | Frame::Quit(_) => {}
                other => break other,
            }
        };
        assert_eq!(end, Frame::Close(Some(1012)));
    }
    assert_eq!(node.ended(SOON / 2).await, Some(0));
}

#[tokio::test]
async fn what_was_acked_before_a_stop_is_there_after_it() {
    let mut node = Node::start().await;
    let acked = Arc::new(AtomicUsize::new(0));
    let mut writers = Vec::new();
    for index in 0..4 {
        let client = Client::join(&node, "lobby", &format!("w{index}")).await;
        writers.push(tokio::spawn(client.write_until_closed(format!("w{index}"), 50, acked.clone())));
    }
    until("some messages are acked", SOON, async || acked.load(Ordering::Relaxed) > 300).await;
    assert_eq!(node.stop().await, Some(0));
    let mut written: Vec<Written> = Vec::new();
    for writer in writers {
        let one = writer.await.unwrap();
        assert_eq!(one.closed_with, Some(1012), "told to come back");
        written.push(one);
    }
    node.start_again().await;
    let history = node.history("lobby").await;
    for one in &written {
        one.check_against(&history);
    }
    for one in &written {
        one.say_the_rest(&node, "lobby").await;
    }
    let history = node.history("lobby").await;
    for one in &written {
        one.check_complete(&history);
    }
}

#[tokio::test]
async fn connections_that_hang_do_not_hold_up_a_stop() {
    let mut node = Node::start().await;
    let mut flooder = Client::join(&node, "lobby", "flooder").await;
    let opening = Opening { receive_buffer: Some(4096), ..Opening::default() };
    let mut stuck = Client::open(node.address(), &room_path("lobby"), &opening).await.unwrap();
    stuck.enter("stuck").await;
    flooder.expect_joined("stuck").await;
    let text = "\u{1}".repeat(256);
    let lines: Vec<_> = (0..300).map(|n| (text.clone(), n.to_string())).collect();
    flooder.say_all(&lines, 60).await; // More than the buffers of `stuck`, which does not read.

    let mut half = TcpStream::connect(node.address()).await.unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let mut kept = TcpStream::connect(node.address()).await.unwrap();
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_ne!(kept.read(&mut [0; 1024]).await.unwrap(), 0, "answered, and kept open");
    let silent = TcpStream::connect(node.address()).await.unwrap();

    assert_eq!(node.stop().await, Some(0));
    flooder.expect_close(1012).await;
    drop((stuck, half, kept, silent));
}

#[tokio::test]
async fn a_stopped_node_takes_no_more_guests() {
    let mut node = Node::start().await;
    let address = node.address();
    assert_eq!(node.stop().await, Some(0));
    assert!(TcpStream::connect(address).await.is_err());
    node.start_again().await;
    assert_eq!(node.get("/readyz").await.status, 200);
}
