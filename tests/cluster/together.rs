//! Nothing fails: whoever is connected to whatever node is in the same chat.

use crate::cluster::{Cluster, Shape, name, trial};
use crate::support::{Client, Frame, Node, Opening, SOON, room_path, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_ready_line_and_the_view_name_every_node() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        for index in cluster.all() {
            let node = cluster.node(index);
            let line = node.ready_line();
            let expected = format!("parley {} ready http=http://{} cluster=", name(index), node.address());
            assert!(line.starts_with(&expected), "{line}");
            assert!(line.ends_with(&format!(" data={}", node.data().display())), "{line}");
            assert_eq!(node.get("/healthz").await.status, 200);

            let view = cluster.view(index).await.unwrap();
            assert_eq!(view["node"], name(index).as_str());
            let names: Vec<&str> =
                view["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
            assert_eq!(names, ["n1", "n2", "n3"]);
            for (of, node) in view["nodes"].as_array().unwrap().iter().enumerate() {
                assert_eq!(node["url"], format!("http://{}", cluster.address(of)), "{view}");
            }
            let shards = view["shards"].as_array().unwrap();
            assert_eq!(shards.len(), 4);
            for shard in shards {
                assert_eq!(shard["replicas"].as_array().unwrap().len(), 3, "{view}");
                assert!(names.contains(&shard["leader"].as_str().unwrap()), "{view}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_on_three_nodes_hear_each_other_at_once_and_in_one_order() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        let mut alice = Client::join(cluster.node(0), "lobby", "alice").await;
        let mut bob = Client::connect(cluster.node(1), "lobby").await;
        assert_eq!(bob.enter("bob").await.roster, ["alice"]);
        alice.expect_joined("bob").await;
        let mut carol = Client::connect(cluster.node(2), "lobby").await;
        let mut welcome = carol.enter("carol").await;
        welcome.roster.sort();
        assert_eq!(welcome.roster, ["alice", "bob"]);
        alice.expect_joined("carol").await;
        bob.expect_joined("carol").await;

        let mut said = Vec::new();
        for round in 0..10 {
            said.push(alice.say_and_settle("hello", &format!("a{round}")).await);
            assert_eq!(bob.next_message().await, *said.last().unwrap());
            assert_eq!(carol.next_message().await, *said.last().unwrap());
            said.push(bob.say_and_settle("good evening", &format!("b{round}")).await);
            assert_eq!(alice.next_message().await, *said.last().unwrap());
            assert_eq!(carol.next_message().await, *said.last().unwrap());
            said.push(carol.say_and_settle("hi", &format!("c{round}")).await);
            assert_eq!(alice.next_message().await, *said.last().unwrap());
            assert_eq!(bob.next_message().await, *said.last().unwrap());
        }
        assert!(said.windows(2).all(|pair| pair[0].timestamp < pair[1].timestamp));
        for client in [&mut alice, &mut bob, &mut carol] {
            client.expect_silence().await;
        }

        for index in cluster.all() {
            let mut late = Client::connect(cluster.node(index), "lobby").await;
            let mut welcome = late.enter("late").await;
            welcome.roster.sort();
            assert_eq!(welcome.roster, ["alice", "bob", "carol"], "on {}", name(index));
            assert_eq!(welcome.backlog, said, "on {}", name(index));
            for client in [&mut alice, &mut bob, &mut carol] {
                client.expect_joined("late").await;
            }
            late.leave().await;
            for client in [&mut alice, &mut bob, &mut carol] {
                client.expect_quit("late").await;
            }
        }
        assert_eq!(cluster.history("lobby").await, said);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gives_the_same_pages_of_history_and_takes_up_where_another_left_off() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        let lines: Vec<_> = (0..250).map(|n| (format!("line {n}"), format!("id {n}"))).collect();
        let mut writer = Client::join(cluster.node(0), "library", "writer").await;
        let (said, acks) = writer.say_all(&lines, 50).await;
        assert_eq!(acks.len(), 250);
        for index in cluster.all() {
            let node = cluster.node(index);
            assert_eq!(node.history("library").await, said, "on {}", name(index));
            let (page, more) = node.page("library", "").await;
            assert!(more);
            assert_eq!(page, said[150..], "the last hundred, on {}", name(index));
            let (page, more) = node.page("library", &format!("before={}&limit=10", said[20].timestamp)).await;
            assert!(more);
            assert_eq!(page, said[10..20], "on {}", name(index));
            let since = said[200].timestamp;
            let (client, welcome) = Client::rejoin(node, "library", "reader", since).await;
            assert!(!welcome.gap);
            assert_eq!(welcome.backlog, said[201..], "on {}", name(index));
            client.leave().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_room_that_one_node_issued_is_known_to_all_and_a_forged_one_to_none() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        for issuer in cluster.all() {
            let room = cluster.node(issuer).private_room().await;
            let mut here = Client::join(cluster.node(issuer), &room, "here").await;
            for index in cluster.others(issuer) {
                let mut there = Client::join(cluster.node(index), &room, "there").await;
                here.expect_joined("there").await;
                let said = there.say_and_settle("psst", &format!("psst {index}")).await;
                assert_eq!(here.next_message().await, said);
                there.leave().await;
                here.expect_quit("there").await;
            }
            let last = if room.ends_with('0') { '1' } else { '0' };
            let forged = format!("{}{last}", &room[..63]);
            for index in cluster.all() {
                let node = cluster.node(index);
                assert_eq!(node.get(&format!("{}/history", room_path(&room))).await.status, 200);
                assert_eq!(node.get(&format!("{}/history", room_path(&forged))).await.status, 404);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_on_two_nodes_is_one_message() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        let mut watcher = Client::join(cluster.node(0), "lobby", "watcher").await;
        let mut first = Client::join(cluster.node(1), "lobby", "alice").await;
        watcher.expect_joined("alice").await;
        let said = first.say_and_settle("once", "the id").await;
        assert_eq!(watcher.next_message().await, said);

        let mut second = Client::connect(cluster.node(2), "lobby").await;
        assert_eq!(second.enter("alice").await.backlog, std::slice::from_ref(&said));
        watcher.expect_joined("alice").await;
        second.say_with_id("once", "the id").await;
        assert_eq!(second.expect_ack("the id").await, said.timestamp, "acked again, at its old time");
        watcher.expect_silence().await;

        // Both at the same moment: neither node can know of the other's.
        first.expect_joined("alice").await;
        for round in 0..50 {
            let id = format!("at once {round}");
            tokio::join!(first.say_with_id("together", &id), second.say_with_id("together", &id));
            let (said_first, acks_first) = first.read_acks(1).await;
            let (said_second, acks_second) = second.read_acks(1).await;
            assert_eq!(acks_first, acks_second, "one time for both");
            let heard = watcher.next_message().await;
            assert_eq!((heard.id.as_ref(), heard.timestamp), (Some(&id), acks_first[0].1));
            // Each is shown it before its own ack, or is the second to come and gets the ack at once.
            for said in said_first.iter().chain(&said_second) {
                assert_eq!(*said, heard);
            }
            for (client, said) in [(&mut first, said_first), (&mut second, said_second)] {
                if said.is_empty() {
                    assert_eq!(client.next_message().await, heard);
                }
            }
        }
        watcher.expect_silence().await;
        assert_eq!(cluster.history("lobby").await.len(), 51);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_rooms_are_counted_where_they_are() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        let mut people = Vec::new();
        for (index, count) in [(0, 1), (1, 2), (2, 3)] {
            for _ in 0..count {
                people.push(Client::join(cluster.node(index), "lobby", "someone").await);
            }
        }
        for index in cluster.all() {
            until("every node knows who has how many sessions", SOON, async || {
                let view = cluster.view(index).await.unwrap();
                let nodes = view["nodes"].as_array().unwrap();
                let sessions: Vec<_> = nodes.iter().map(|node| node["sessions"].as_u64().unwrap()).collect();
                let rooms: u64 = nodes.iter().map(|node| node["rooms"].as_u64().unwrap()).sum();
                let led: u64 = nodes.iter().map(|node| node["shards_led"].as_u64().unwrap()).sum();
                sessions == [1, 2, 3] && rooms == 1 && led == 4
            })
            .await;
        }
    })
    .await;
}

/// Says ten things in the room, and returns how many of them were taken.
async fn accepted(node: &Node, room: &str) -> usize {
    let mut client = Client::join(node, room, "alice").await;
    let mut taken = 0;
    for number in 0..10 {
        client.say_with_id("hello", &format!("{number} at {}", node.address())).await;
        loop {
            match client.next().await {
                Frame::Said(_) => {}
                Frame::Ack { .. } => break taken += 1,
                Frame::Error(refusal) if refusal.retry_after_ms.is_some() => break,
                other => client.fail(&format!("an ack or a refusal, not {other:?}")),
            }
        }
    }
    client.leave().await;
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_one_limit_on_all_nodes() {
    trial(60, async {
        // Four at once, and then none for as long as this test takes.
        let shape =
            Shape::of(3).env("PARLEY_LIMITS_INTERVAL_MS", "60000").env("PARLEY_LIMITS_GRACE_MS", "240000");
        let cluster = shape.start().await;
        assert!(accepted(cluster.node(0), "kitchen").await >= 4);
        // A session may get one thing through before it is told.
        assert!(accepted(cluster.node(1), "kitchen").await <= 1, "the same room");
        assert!(accepted(cluster.node(2), "garden").await <= 1, "another room");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_any_node_may_open_sockets_at_every_other_and_a_foreign_one_at_none() {
    trial(60, async {
        let cluster = Cluster::start(3).await;
        let knock = async |at: usize, origin: String| {
            let opening = Opening { headers: vec![("Origin", &origin)], ..Opening::default() };
            Client::open(cluster.address(at), &room_path("lobby"), &opening).await.map(drop)
        };
        for at in cluster.all() {
            for from in cluster.all() {
                let own = knock(at, format!("http://{}", cluster.address(from))).await;
                assert_eq!(own, Ok(()), "from {} at {}", name(from), name(at));
            }
            let foreign = knock(at, "http://evil.example".to_owned()).await;
            assert_eq!(foreign.unwrap_err().0, 403);
        }
    })
    .await;
}
