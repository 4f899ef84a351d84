//! The links between nodes as the nodes meet them: several processes, real sockets, real signals.
//!
//! Process groups are statics of a process, so that several nodes need several processes: a test starts this very
//! program again, once for each node ([`node`]), and tells it over its standard input what to do ([`cluster`]).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of a test fails the test by panicking, like the test itself"
)]

mod cluster;
mod node;

use cluster::{Cluster, Node, eventually, sockets};
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn two_nodes_exchange_frames_in_order() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    assert_eq!(n1.ask("group n2"), "1");
    assert_eq!(n1.ask("send n2 1 2000"), "2000 sent");
    assert_eq!(n2.ask("send n1 1 2000"), "2000 sent");
    n2.until("received n1", "2000 up to 2000, in order");
    n1.until("received n2", "2000 up to 2000, in order");
    assert_eq!(n1.ask("send n2 too-large"), "the frame is too large");
    assert_eq!(n1.ask("send n2 largest"), "sent");
    n2.until("bytes n1", &(2000 * 8 + 1024 * 1024).to_string());
    assert_eq!(n1.ask("send n9 1 1"), "the peer is not linked");
}

#[test]
fn three_nodes_link_all_to_all_and_hear_what_changes() {
    let cluster = Cluster::new(&["n1", "n2", "n3"]);
    let mut nodes: Vec<Node> = ["n1", "n2", "n3"].map(|name| cluster.start(name)).into();
    for node in &mut nodes {
        for other in ["n1", "n2", "n3"] {
            if node.name != other {
                node.until_peer(other, "up");
            }
        }
    }
    for node in &mut nodes {
        for other in ["n1", "n2", "n3"] {
            if node.name != other {
                assert_eq!(node.ask(&format!("send {other} 1 500")), "500 sent");
            }
        }
    }
    for node in &mut nodes {
        for other in ["n1", "n2", "n3"] {
            if node.name != other {
                node.until(&format!("received {other}"), "500 up to 500, in order");
            }
        }
    }
    assert_eq!(nodes[0].ask("past n2"), "false");
    assert_eq!(nodes[1].ask("have-past"), "ok");
    nodes[0].until("past n2", "true");
    nodes[2].until("past n2", "true");
    // One session a pair, however often both sides have dialled.
    for node in &nodes {
        eventually("one socket a peer and the listener", || sockets(node.pid()) == node.sockets_idle + 2);
    }
}

#[test]
fn a_killed_node_is_back_as_soon_as_it_runs_again() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    for round in 1..=3 {
        let mut n2 = cluster.start("n2");
        n1.until_peer("n2", "up");
        n2.until_peer("n1", "up");
        assert_eq!(n1.ask("send n2 1 10"), "10 sent", "round {round}");
        n2.until("received n1", "10 up to 10, in order");
        n2.kill();
        n1.until_peer("n2", "down");
        n1.until("group n2", "0");
    }
}

#[test]
fn a_stopped_node_is_suspected_and_comes_back() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    let idle = sockets(n1.pid());
    let stopped = Instant::now();
    n2.pause();
    n1.until_peer("n2", "suspect");
    n1.until("group n2", "0");
    let suspected = stopped.elapsed();
    assert!(suspected > Duration::from_millis(1200), "suspected after {suspected:?}");
    assert!(suspected < Duration::from_millis(2600), "suspected after {suspected:?}");
    assert!(n1.log().contains("the peer is silent"));
    eventually("three seconds have passed", || stopped.elapsed() > Duration::from_secs(3));
    // At most the one attempt that is under way.
    assert!(sockets(n1.pid()) <= idle + 1, "{} sockets, {idle} before", sockets(n1.pid()));
    n2.resume();
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    assert_eq!(n2.ask("send n1 1 10"), "10 sent");
    n1.until("received n2", "10 up to 10, in order");
    // It was away itself, and did not take the others for dead.
    assert!(n2.log().contains("this node stood still"), "{}", n2.log());
    assert!(!n2.log().contains("the peer is silent"), "{}", n2.log());
}

#[test]
fn another_cookie_never_links() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start_with("n2", "cookie", "another cookie of the right length");
    n1.until_log("before it was authenticated");
    n2.until_log("before it was authenticated");
    n1.until_log("has it another cookie?");
    for node in [&mut n1, &mut n2] {
        assert!(!node.log().contains("linked peer"), "{}", node.log());
        assert!(!node.ask("peers").contains("up"));
    }
}

#[test]
fn another_number_of_shards_is_refused_in_plain_words() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start_with("n2", "shards", "8");
    n1.until_peer("n2", "refused");
    n1.until_log("n2 divides its rooms into 8 shards, this node into 16");
    n1.until("group n2", "0");
    assert_eq!(n1.ask("send n2 1 1"), "the peer is not linked");
    assert!(!n2.ask("peers").contains("up"));
    // What is refused once is not complained of again at every attempt.
    n2.until_log("n1 divides its rooms into 16 shards, this node into 8");
    assert_eq!(n1.log().matches("divides its rooms").count(), 1, "{}", n1.log());
}

#[test]
fn a_stranger_and_a_namesake_are_refused_in_plain_words() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let stranger = cluster.start_with("n2", "name", "n7");
    n1.until_log("is not among this node's peers");
    drop(stranger);
    let namesake = cluster.start_with("n2", "name", "n1");
    n1.until_log("another node calls itself n1, which is this node's own name");
    drop(namesake);
    assert_eq!(n1.ask("group n7"), "0");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let cluster = Cluster::new(&["n1"]);
    let taken = TcpListener::bind(cluster.addr("n1")).unwrap();
    let error = cluster.start("n1").started.clone().unwrap_err();
    assert_eq!(
        error,
        format!(
            "cannot listen for other nodes on {}: Address already in use (os error 98)",
            taken.local_addr().unwrap()
        )
    );
}

#[test]
fn a_peer_that_accepts_and_says_nothing_does_not_gather_sockets() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let silent = TcpListener::bind(cluster.addr("n2")).unwrap();
    let n1 = cluster.start("n1");
    // Held open on this side for ever: only the node can let go of them.
    let mut held = Vec::new();
    let mut most = 0;
    for _ in 0..4 {
        held.push(silent.accept().unwrap());
        most = most.max(sockets(n1.pid()));
    }
    assert!(most <= n1.sockets_idle + 2, "{most} sockets, {} when idle", n1.sockets_idle);
    n1.until_log("it accepts connections but says nothing");
}

#[test]
fn a_connection_from_outside_that_says_nothing_is_ended() {
    let cluster = Cluster::new(&["n1"]);
    let n1 = cluster.start("n1");
    let held: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(cluster.addr("n1")).unwrap()).collect();
    eventually("all are ended", || sockets(n1.pid()) == n1.sockets_idle);
    drop(held);
}

#[test]
fn a_flood_to_a_stopped_peer_stays_within_the_credit() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    let before = n1.memory_kb();
    n2.pause();
    let told = n1.ask("flood n2 200000");
    let (sent, full) = told.split_once(' ').expect(&told);
    let (sent, full): (u64, u64) = (sent.parse().unwrap(), full.parse().unwrap());
    assert!(sent < 70_000 && full > 0, "{told}");
    let grown = n1.memory_kb().saturating_sub(before);
    assert!(grown < 100_000, "{grown} KB for {sent} frames");
    n1.until_peer("n2", "suspect");
    n2.resume();
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    assert_eq!(n1.ask("send n2 300000 300009"), "10 sent");
    n2.until_last("n1", 300_009);
}

#[test]
fn a_socket_that_takes_nothing_more_is_let_go_of() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    n2.pause();
    while n1.ask("send n2 largest") == "sent" {}
    n1.until_peer("n2", "suspect");
    // Attempts come and go; between two of them nothing may be left.
    eventually("the full socket is gone", || sockets(n1.pid()) == n1.sockets_idle);
    n2.resume();
    n1.until_peer("n2", "up");
}

#[test]
fn a_busy_link_is_not_held_back_by_its_credit() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    // Far more than the credit, as fast as it is renewed.
    assert_eq!(n1.ask("pump n2 200000"), "200000 sent");
    n2.until("received n1", "200000 up to 200000, in order");
}

#[test]
fn links_that_stop_leave_nothing_behind() {
    let cluster = Cluster::new(&["n1", "n2"]);
    let mut n1 = cluster.start("n1");
    let mut n2 = cluster.start("n2");
    n1.until_peer("n2", "up");
    n2.until_peer("n1", "up");
    assert_eq!(n1.ask("stop"), "stopped");
    eventually("no sockets are left", || sockets(n1.pid()) < n1.sockets_idle);
    n2.until("group n1", "0");
    n2.until_peer("n1", "down");
}
