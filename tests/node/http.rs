//! Every address that a node answers at, what it refuses, and whom it lets in.

use crate::support::{Client, Node, Opening, Plan, request, room_path};

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "AAECAwQFBgcICQoLDA0ODw=="),
];

#[tokio::test]
async fn the_page_is_html_and_asks_nobody_else() {
    let node = Node::start().await;
    let reply = node.get("/").await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/html"), "{reply:?}");
    assert!(reply.text().to_ascii_lowercase().starts_with("<!doctype html>"));
    assert_eq!(node.get("/?anything=1").await.status, 200);
}

#[tokio::test]
async fn a_private_room_is_64_fresh_hex_digits() {
    let node = Node::start().await;
    let mut known = std::collections::HashSet::new();
    for _ in 0..50 {
        let reply =
            request(node.address(), "POST", "/api/room", &[("Origin", "http://elsewhere.example")]).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        let id = reply.text();
        assert_eq!(id.len(), 64, "{id:?}");
        assert!(id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{id:?}");
        assert!(known.insert(id.to_owned()), "issued twice: {id}");
        assert!(
            known.iter().filter(|other| other[..32] == id[..32]).count() == 1,
            "16 bytes of it are random"
        );
    }
}

#[tokio::test]
async fn a_private_room_works_like_any_other_and_outlives_restarts() {
    let mut node = Node::start().await;
    let id = node.private_room().await;
    let mut alice = Client::join(&node, &id, "alice").await;
    let said = alice.say_and_settle("between us", "1").await;
    node.restart_after_kill().await;
    assert_eq!(node.history(&id).await, std::slice::from_ref(&said));
    let mut alice = Client::connect(&node, &id).await;
    assert_eq!(alice.enter("alice").await.backlog, [said]);
    // Hex digits mean the same in either case: this is the same room.
    let mut bob = Client::connect(&node, &id.to_uppercase()).await;
    assert_eq!(bob.enter("bob").await.roster, ["alice"]);
    assert_eq!(node.stop().await, Some(0));
    node.start_again().await;
    assert_eq!(node.history(&id).await.len(), 1, "also after a graceful stop");
}

#[tokio::test]
async fn a_private_id_that_was_not_issued_here_is_not_found() {
    let node = Node::start().await;
    let id = node.private_room().await;
    let elsewhere = Node::start().await.private_room().await;
    let mut forged = vec!["0".repeat(64), "f".repeat(64), "F".repeat(64), elsewhere];
    for place in 0..64 {
        // Each of the 256 bits, over the digits in turn.
        let digit = u8::from_str_radix(&id[place..=place], 16).unwrap() ^ (1 << (place % 4));
        forged.push(format!("{}{digit:x}{}", &id[..place], &id[place + 1..]));
    }
    forged.push(format!("{}{}", &id[32..], &id[..32]));
    for id in forged {
        expect_no_room(&node, &id, 404).await;
    }
    assert_eq!(node.get(&format!("{}/history", room_path(&id))).await.status, 200);
}

/// Checks that neither a session nor a history is to be had under this name, and returns the error's text.
async fn expect_no_room(node: &Node, room: &str, status: u16) -> String {
    let history = node.get(&format!("{}/history", room_path(room))).await;
    assert_eq!(history.status, status, "history of {room}: {history:?}");
    let upgrade = request(node.address(), "GET", &format!("{}/websocket", room_path(room)), &UPGRADE).await;
    assert_eq!(upgrade.status, status, "websocket of {room}: {upgrade:?}");
    assert_eq!(upgrade.error(), history.error());
    history.error()
}

#[tokio::test]
async fn a_room_name_has_up_to_32_utf16_units() {
    let node = Node::start().await;
    for name in ["x".repeat(32), "é".repeat(32), "漢".repeat(32), "😀".repeat(16), "%".repeat(32)] {
        assert_eq!(node.get(&format!("{}/history", room_path(&name))).await.status, 200, "{name}");
        Client::join(&node, &name, "alice").await.leave().await;
    }
    let too_long = [
        "x".repeat(33),
        "漢".repeat(33),
        "😀".repeat(17),
        format!("{}x", "😀".repeat(16)),
        "a".repeat(63),
        "a".repeat(65),
        "g".repeat(64),
        "x".repeat(5000),
    ];
    for name in too_long {
        assert_eq!(expect_no_room(&node, &name, 404).await, "Name too long", "{name}");
    }
}

#[tokio::test]
async fn a_room_name_is_percent_decoded() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "a/b c", "alice").await; // The client encodes all but letters and digits.
    alice.say_and_settle("hello", "1").await;
    let mut plain = Client::join(&node, "lobby", "alice").await;
    plain.say_and_settle("hello", "1").await;
    for (path, count) in [
        ("/api/room/a%2Fb%20c/history", 1),
        ("/api/room/a%2fb%20c/history", 1),
        ("/api/room/%61%2Fb%20c/history", 1),
        ("/api/room/lobb%79/history", 1),
        ("/api/room/lobby/history", 1),
        ("/api/room/a%252Fb%20c/history", 0),
    ] {
        let reply = node.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_eq!(reply.json()["messages"].as_array().unwrap().len(), count, "{path}");
    }
    let broken = node.get("/api/room/%ff%fe/history").await;
    assert!(matches!(broken.status, 400 | 404), "no text: {broken:?}");
    broken.error();
}

#[tokio::test]
async fn a_websocket_needs_an_upgrade() {
    let node = Node::start().await;
    let reply = node.get("/api/room/lobby/websocket").await;
    assert_eq!((reply.status, reply.error().as_str()), (400, "expected websocket"));
    let mut broken = UPGRADE.to_vec();
    broken.pop();
    let reply = request(node.address(), "GET", "/api/room/lobby/websocket", &broken).await;
    assert_eq!(reply.status, 400, "without a key: {reply:?}");
    reply.error();
    let mut other = UPGRADE.to_vec();
    other[2].1 = "8";
    let reply = request(node.address(), "GET", "/api/room/lobby/websocket", &other).await;
    assert!(matches!(reply.status, 400 | 426), "another version of the protocol: {reply:?}");
    reply.error();
    assert_eq!(node.metric("parley_sessions").await, 0.0);
}

#[tokio::test]
async fn what_is_not_there_is_404_and_a_wrong_method_405() {
    let node = Node::start().await;
    for path in ["/nowhere", "/index.html", "/room", "/healthz/x", "/..%2f..%2fetc/passwd", "/metricsx"] {
        let reply = node.get(path).await;
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
    }
    let missing = [
        "/api",
        "/api/",
        "/api/nowhere",
        "/api/room/lobby",
        "/api/room/lobby/",
        "/api/room/lobby/nowhere",
        "/api/room/lobby/history/x",
        "/api/room/lobby/websocket/x",
        "/api/room//history",
        "/api/rooms",
    ];
    for path in missing {
        let reply = node.get(path).await;
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
        reply.error();
    }
    let room = node.get("/api/room").await;
    assert_eq!(room.status, 405);
    room.error();
    for (method, path) in [
        ("DELETE", "/api/room"),
        ("PUT", "/api/room"),
        ("POST", "/api/room/lobby/history"),
        ("DELETE", "/api/room/lobby/history"),
        ("POST", "/api/room/lobby/websocket"),
    ] {
        let reply = request(node.address(), method, path, &[]).await;
        assert_eq!(reply.status, 405, "{method} {path}: {reply:?}");
        reply.error();
    }
    for path in ["/", "/healthz", "/readyz", "/metrics"] {
        let reply = request(node.address(), "POST", path, &[]).await;
        assert_eq!(reply.status, 405, "POST {path}: {reply:?}");
    }
}

#[tokio::test]
async fn a_node_that_serves_is_healthy_and_ready() {
    let node = Node::start().await;
    assert_eq!(node.get("/healthz").await.status, 200);
    assert_eq!(node.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn metrics_count_and_name_nobody() {
    let node = Node::start().await;
    let mut alice = Client::join(&node, "secretroom", "secretname").await;
    let _bob = Client::join(&node, "secretroom", "bob").await;
    alice.expect_joined("bob").await;
    alice.say_and_settle("secrettext", "secretid").await;
    alice.say_with_id("secrettext", "secretid").await;
    alice.expect_ack("secretid").await;
    let reply = node.get("/metrics").await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"), "{reply:?}");
    assert_eq!(node.metric("parley_sessions").await, 2.0);
    assert_eq!(node.metric("parley_rooms").await, 1.0);
    assert_eq!(node.metric("parley_messages_total").await, 1.0, "a repetition is not a message");
    assert_eq!(node.metric("parley_acks_total").await, 2.0, "but it is acked");
    for histogram in ["parley_ack_seconds", "parley_fsync_seconds", "parley_fsync_batch_writes"] {
        assert!(node.metric(&format!("{histogram}_count")).await >= 1.0, "{histogram}");
        assert!(reply.text().contains(&format!("# TYPE {histogram} histogram")), "{histogram}");
    }
    assert!(node.metric("parley_ack_seconds_sum").await < 20.0, "seconds, not milliseconds");
    for (name, kind) in [
        ("parley_sessions", "gauge"),
        ("parley_rooms", "gauge"),
        ("parley_limiters", "gauge"),
        ("parley_messages_total", "counter"),
        ("parley_acks_total", "counter"),
        ("parley_deliveries_total", "counter"),
        ("parley_limiter_refusals_total", "counter"),
    ] {
        assert!(reply.text().contains(&format!("# TYPE {name} {kind}")), "{name} {kind}:\n{}", reply.text());
        assert!(reply.text().contains(&format!("# HELP {name} ")), "{name} says what it is");
    }
    for secret in ["secret", "127.0.0.1", "bob"] {
        assert!(!reply.text().contains(secret), "a metric names {secret:?}");
    }
    alice.leave().await;
    let closed = async || node.metric("parley_sessions").await == 1.0;
    crate::support::until("the session is gone from the gauge", crate::support::SOON, closed).await;
}

async fn knock(node: &Node, origin: &str) -> Result<(), u16> {
    let opening = Opening { headers: vec![("Origin", origin)], ..Opening::default() };
    Client::open(node.address(), "/api/room/lobby", &opening).await.map(drop).map_err(|(status, body)| {
        let error: serde_json::Value = serde_json::from_str(&body).expect("an error on /api is JSON");
        assert!(error["error"].is_string(), "{body}");
        status
    })
}

#[tokio::test]
async fn only_the_nodes_own_pages_open_websockets() {
    let node = Node::start().await;
    let port = node.address().port();
    for foreign in [
        "http://evil.example".to_owned(),
        "null".to_owned(),
        "http://127.0.0.1".to_owned(),
        format!("http://127.0.0.1:{}", port.wrapping_add(1)),
        format!("http://127.0.0.1:{port}.evil.example"),
        format!("http://evil.example/http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}@evil.example"),
        "nonsense".to_owned(),
        String::new(),
    ] {
        assert_eq!(knock(&node, &foreign).await, Err(403), "{foreign:?}");
    }
    assert_eq!(node.metric("parley_rooms").await, 0.0, "a stranger's page opens no room");
    assert_eq!(knock(&node, &format!("http://127.0.0.1:{port}")).await, Ok(()));
}

#[tokio::test]
async fn a_browser_that_came_by_localhost_is_at_home() {
    let node = Node::start().await;
    let port = node.address().port();
    let (origin, host) = (format!("http://localhost:{port}"), format!("localhost:{port}"));
    let mut headers = UPGRADE.to_vec();
    headers.extend([("Host", host.as_str()), ("Origin", origin.as_str())]);
    let reply = request(node.address(), "GET", "/api/room/lobby/websocket", &headers).await;
    assert_eq!(reply.status, 101, "{reply:?}");
}

#[tokio::test]
async fn further_origins_are_let_in_by_the_config() {
    let node = Plan::bare()
        .arg("--http")
        .arg("127.0.0.1:0")
        .arg("--advertise")
        .arg("https://chat.example")
        .env("PARLEY_HTTP_ALLOWED_ORIGINS", "https://one.example,http://two.example:8080")
        .start()
        .await;
    for origin in ["https://chat.example", "https://one.example", "http://two.example:8080"] {
        assert_eq!(knock(&node, origin).await, Ok(()), "{origin}");
    }
    for origin in
        ["http://one.example", "http://two.example", "https://three.example", "https://one.example.evil"]
    {
        assert_eq!(knock(&node, origin).await, Err(403), "{origin}");
    }
}
