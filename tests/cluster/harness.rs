//! What the other tests rely on: links that fail as told, and people whose account of a chat is right.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{Cluster, trial};
use crate::person::{Person, conclude};
use crate::proxy::{Fault, Proxy, Way};
use crate::support::SOON;

/// Nothing comes within this, when nothing is to come.
const NOTHING: Duration = Duration::from_millis(150);

/// A server that answers every byte with itself, and a proxy in front of it.
async fn echo() -> (Proxy, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    // Taken and given back: the chance that another takes it in between is small, and then the test fails at once.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    (Proxy::start(address, target).await.unwrap(), address)
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn expect(stream: &mut TcpStream, text: &str) {
    let mut got = vec![0; text.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut got)).await.expect("an answer").unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), text);
}

async fn expect_nothing(stream: &mut TcpStream) {
    let got = tokio::time::timeout(NOTHING, stream.read_u8()).await;
    assert!(got.is_err(), "nothing, not {got:?}");
}

async fn expect_reset(stream: &mut TcpStream) {
    let got = tokio::time::timeout(SOON, stream.read_u8()).await.expect("an end");
    assert_eq!(got.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_arrives_when_the_link_is_healed() {
    let (proxy, address) = echo().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, "one").await;
    expect(&mut stream, "one").await;
    for way in [Way::Forth, Way::Back] {
        proxy.set(way, Fault::Held);
        send(&mut stream, "two").await;
        expect_nothing(&mut stream).await;
        let mut new = TcpStream::connect(address).await.unwrap();
        send(&mut new, "new").await;
        expect_nothing(&mut new).await;
        proxy.set(way, Fault::None);
        expect(&mut stream, "two").await;
        expect(&mut new, "new").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_swallowed_never_arrives_and_costs_the_connection() {
    for way in [Way::Forth, Way::Back] {
        let (proxy, address) = echo().await;
        let mut lossy = TcpStream::connect(address).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        for stream in [&mut lossy, &mut idle] {
            send(stream, "one").await;
            expect(stream, "one").await;
        }
        proxy.set(way, Fault::Swallowed);
        send(&mut lossy, "two").await;
        expect_nothing(&mut lossy).await;
        proxy.set(way, Fault::None);
        expect_reset(&mut lossy).await;
        send(&mut idle, "three").await;
        expect(&mut idle, "three").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_resets_and_refuses_and_one_that_is_reset_takes_the_next() {
    let (proxy, address) = echo().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, "one").await;
    expect(&mut stream, "one").await;
    proxy.reset();
    expect_reset(&mut stream).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, "two").await;
    expect(&mut stream, "two").await;
    proxy.set(Way::Back, Fault::Cut);
    expect_reset(&mut stream).await;
    // The reset may come before the dial has returned.
    if let Ok(mut refused) = TcpStream::connect(address).await {
        expect_reset(&mut refused).await;
    }
    proxy.set(Way::Back, Fault::None);
    let mut stream = TcpStream::connect(address).await.unwrap();
    proxy.set(Way::Forth, Fault::Late(NOTHING));
    let start = Instant::now();
    send(&mut stream, "late").await;
    expect(&mut stream, "late").await;
    assert!(start.elapsed() >= NOTHING);
    drop(proxy);
    expect_reset_or_end(&mut stream).await;
}

async fn expect_reset_or_end(stream: &mut TcpStream) {
    let got = tokio::time::timeout(SOON, stream.read_u8()).await.expect("an end");
    assert!(got.is_err(), "{got:?}");
}

/// One node promises less than a cluster, but everything that the people here do can be done to it.
#[tokio::test(flavor = "multi_thread")]
async fn people_come_back_to_one_node_over_everything_and_their_accounts_add_up() {
    trial(90, async {
        let mut cluster = Cluster::start(1).await;
        let mut people = Vec::new();
        for name in ["alice", "bob"] {
            let person = Person::on(&cluster, &[0], "lobby", name).coming_back().in_danger();
            people.push(person.talking_every(10).come().await);
        }
        people.push(Person::on(&cluster, &[0], "lobby", "silent").coming_back().in_danger().come().await);
        for turn in 0..4 {
            for person in &mut people {
                person.until_roster(&["alice", "bob", "silent"], SOON).await;
            }
            for person in &mut people[..2] {
                person.until_acked(50, SOON).await;
            }
            match turn {
                0 => {
                    cluster.kill(0);
                    cluster.start_all().await;
                }
                1 => {
                    cluster.stop(0).await;
                    cluster.start_again(0).await;
                }
                2 => {
                    cluster.pause(0);
                    tokio::time::sleep(NOTHING).await;
                    cluster.resume(0);
                }
                _ => {
                    cluster.stop_all().await;
                    cluster.start_all().await;
                }
            }
        }
        cluster.ready().await;
        for person in &mut people[..2] {
            person.until_acked(20, SOON).await;
            println!("{}: {:?}", person.name(), person.account().parted);
        }
        let (history, accounts) = conclude(&cluster, people, SOON).await;
        assert!(history.len() >= 440, "{}", history.len());
        for account in &accounts {
            let codes: Vec<_> = account.parted.iter().map(|parted| parted.code).collect();
            assert_eq!(codes, [None, Some(1012), Some(1012)], "killed, stopped, stopped");
        }
    })
    .await;
}

/// A person who is not shown what is in the history, or is told of an ack that the history does not know, would make
/// every other test worthless if nobody noticed.
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "is lost")]
async fn an_ack_of_what_was_wiped_is_noticed() {
    trial(60, async {
        let mut cluster = Cluster::start(1).await;
        let person = Person::on(&cluster, &[0], "lobby", "alice").coming_back().in_danger();
        let mut people = vec![person.talking_every(10).come().await];
        people[0].until_acked(20, SOON).await;
        cluster.kill(0);
        cluster.wipe(0);
        cluster.start_again(0).await;
        people[0].until_acked(20, SOON).await;
        conclude(&cluster, people, SOON).await;
    })
    .await;
}
