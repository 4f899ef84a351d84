//! What a node says of its cluster, and the table that people are shown of it.

use std::io::{Read, Write};
use std::net::TcpListener;

use crate::support::{Client, Node, Plan, SOON, request, room_path, until};

#[tokio::test]
async fn a_single_node_is_a_cluster_of_one() {
    let node = Plan::new().env("PARLEY_CLUSTER_SHARDS", "4").arg("--name").arg("kitchen").start().await;
    let _alice = Client::join(&node, "lobby", "alice").await;
    let _bob = Client::join(&node, "den", "bob").await;
    let reply = node.get("/api/cluster").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    let view = reply.json();
    let url = format!("http://{}", node.address());
    let this = serde_json::json!({
        "name": "kitchen", "url": url, "state": "up", "ready": true,
        "shards_led": 4, "rooms": 2, "sessions": 2,
    });
    assert_eq!(view["node"], "kitchen");
    assert_eq!(view["nodes"], serde_json::json!([this]));
    let shards = view["shards"].as_array().unwrap();
    assert_eq!(shards.iter().map(|shard| shard["id"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for shard in shards {
        assert_eq!(shard["leader"], "kitchen");
        assert_eq!(shard["replicas"], serde_json::json!(["kitchen"]));
        assert!(shard["term"].as_u64().unwrap() >= 1 && shard["commit"].is_u64(), "{shard}");
    }
    let reply = request(node.address(), "POST", "/api/cluster", &[]).await;
    assert_eq!(reply.status, 405);
    reply.error();
}

#[tokio::test]
async fn the_url_is_one_that_browsers_can_open() {
    let url_of =
        async |plan: Plan| plan.start().await.get("/api/cluster").await.json()["nodes"][0]["url"].clone();
    let anywhere = || Plan::bare().arg("--http").arg("0.0.0.0:0");
    assert_eq!(url_of(anywhere()).await, serde_json::Value::Null, "nobody can open 0.0.0.0");
    let advertised = anywhere().arg("--advertise").arg("https://chat.example/");
    assert_eq!(url_of(advertised).await, "https://chat.example");
}

#[tokio::test]
async fn a_page_of_another_node_may_read_histories() {
    let node = Node::start().await;
    let private = node.private_room().await;
    let unknown = "0".repeat(64);
    for (room, status) in [("lobby", 200), (private.as_str(), 200), (unknown.as_str(), 404)] {
        let path = format!("{}/history", room_path(room));
        let reply = request(node.address(), "GET", &path, &[("Origin", "http://n2.example")]).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{room}");
    }
}

#[tokio::test]
async fn the_table_shows_the_node_and_its_shards() {
    let mut node = Node::start().await;
    let _alice = Client::join(&node, "lobby", "alice").await;
    let url = format!("http://{}", node.address());
    let plan = Plan::bare();
    let ended = plan.run(&["status", "--url", &url]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = ended.stdout.lines().collect();
    let words: Vec<_> = lines[1].split_whitespace().collect();
    assert_eq!(words, ["n1", "*", "up", "yes", "16", "16", "1", "1", url.as_str()]);
    assert!(lines[0].starts_with("NODE") && lines[2].is_empty(), "{}", ended.stdout);
    assert_eq!(lines[3], "16 shards, 16 with a leader; copies of each: 1; lag: 0");
    assert_eq!(lines.len(), 4, "shards in order are not listed one by one:\n{}", ended.stdout);

    assert_eq!(node.stop().await, Some(0));
    let ended = plan.run(&["status", "--url", &url]).await;
    assert!(ended.expect_sentence(1).contains(&node.address().to_string()), "{ended:?}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_not_waited_for() {
    let node = Node::start().await;
    node.pause();
    let url = format!("http://{}", node.address());
    let ended = Plan::bare().run(&["status", "--url", &url]).await;
    let sentence = ended.expect_sentence(1);
    assert!(sentence.contains("did not answer"), "{sentence}");
    node.resume();
    until("it answers again", SOON, async || node.get("/healthz").await.status == 200).await;
}

#[tokio::test]
async fn what_is_no_node_is_told_in_one_sentence() {
    for answer in [
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
        "220 ready\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let ended = Plan::bare().run(&["status", "--url", &format!("http://{address}")]).await;
        assert!(ended.expect_sentence(1).contains(&address.to_string()), "{answer:?}: {ended:?}");
        other.join().unwrap();
    }
    for url in ["https://chat.example", "chat.example:80", "http://chat.example/path", ""] {
        assert_eq!(Plan::bare().run(&["status", "--url", url]).await.code, Some(2), "{url}");
    }
}
