//! The history over HTTP: paged in both directions, and the same as what was seen live.

use crate::support::{Client, Node, Said};

async fn filled(node: &Node, count: usize) -> Vec<Said> {
    let mut alice = Client::join(node, "lobby", "alice").await;
    let lines: Vec<_> = (0..count).map(|n| (format!("m{n}"), format!("id-{n}"))).collect();
    let (said, _) = alice.say_all(&lines, 60).await;
    alice.leave().await;
    said
}

#[tokio::test]
async fn a_room_where_nothing_was_said_has_an_empty_history() {
    let node = Node::start().await;
    assert_eq!(node.page("nowhere", "").await, (vec![], false));
    assert_eq!(node.page("nowhere", "after=5&before=9&limit=1").await, (vec![], false));
    assert_eq!(node.metric("parley_rooms").await, 0.0, "reading wakes no room");
}

#[tokio::test]
async fn without_a_direction_it_is_the_newest_and_a_hundred_by_default() {
    let node = Node::start().await;
    let said = filled(&node, 250).await;
    assert_eq!(node.page("lobby", "").await, (said[150..].to_vec(), true));
    assert_eq!(node.page("lobby", "limit=1").await, (said[249..].to_vec(), true));
    assert_eq!(node.page("lobby", "limit=249").await, (said[1..].to_vec(), true));
    assert_eq!(node.page("lobby", "limit=250").await, (said.clone(), false));
    assert_eq!(node.page("lobby", "limit=1000").await, (said, false));
}

#[tokio::test]
async fn before_pages_back_to_the_beginning() {
    let node = Node::start().await;
    let said = filled(&node, 250).await;
    let mut pages = Vec::new();
    let mut cursor = u64::MAX >> 12;
    loop {
        let (page, more) = node.page("lobby", &format!("before={cursor}&limit=60")).await;
        assert!(page.len() == 60 || !more, "a page with more behind it is full");
        cursor = page[0].timestamp;
        pages.splice(0..0, page);
        if !more {
            break;
        }
    }
    assert_eq!(pages, said);
    assert_eq!(node.page("lobby", &format!("before={cursor}")).await, (vec![], false));
    assert_eq!(node.page("lobby", "before=0").await, (vec![], false));
}

#[tokio::test]
async fn after_pages_forward_to_the_end() {
    let node = Node::start().await;
    let said = filled(&node, 250).await;
    let mut pages: Vec<Said> = Vec::new();
    loop {
        let cursor = pages.last().map_or(0, |said| said.timestamp);
        let (page, more) = node.page("lobby", &format!("after={cursor}&limit=60")).await;
        assert!(page.len() == 60 || !more, "a page with more behind it is full");
        pages.extend(page);
        if !more {
            break;
        }
    }
    assert_eq!(pages, said);
    let last = said[249].timestamp;
    assert_eq!(node.page("lobby", &format!("after={last}")).await, (vec![], false));
}

#[tokio::test]
async fn after_and_before_together_are_a_range_without_its_ends() {
    let node = Node::start().await;
    let said = filled(&node, 50).await;
    let range = format!("after={}&before={}", said[10].timestamp, said[20].timestamp);
    assert_eq!(node.page("lobby", &range).await, (said[11..20].to_vec(), false));
    assert_eq!(node.page("lobby", &format!("{range}&limit=9")).await, (said[11..20].to_vec(), false));
    assert_eq!(node.page("lobby", &format!("{range}&limit=4")).await, (said[11..15].to_vec(), true));
    let turned = format!("after={}&before={}", said[20].timestamp, said[10].timestamp);
    assert_eq!(node.page("lobby", &turned).await, (vec![], false));
}

#[tokio::test]
async fn a_cursor_or_limit_that_makes_no_sense_is_refused() {
    let node = Node::start().await;
    filled(&node, 3).await;
    let wrong = [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=99999999999999999999999",
        "before=soon",
        "before=-5",
        "after=1.5",
        "after=",
        "after=99999999999999999999999",
    ];
    for query in wrong {
        let reply = node.get(&format!("/api/room/lobby/history?{query}")).await;
        assert_eq!(reply.status, 400, "{query}: {reply:?}");
        reply.error();
    }
    assert_eq!(node.page("lobby", "limit=1000&unknown=1").await.0.len(), 3);
}

#[tokio::test]
async fn neighbours_by_name_do_not_leak_into_each_other() {
    let node = Node::start().await;
    let rooms = ["a", "a\u{0}", "a\u{0}b", "ab", "A", "aa", "é", "e\u{301}", "a/b", "a b", "a+b", "😀"];
    for room in rooms {
        let mut client = Client::join(&node, room, "alice").await;
        client.say_and_settle(&format!("in {room}"), "1").await;
        client.leave().await;
    }
    for room in rooms {
        let texts: Vec<_> = node.history(room).await.into_iter().map(|said| said.text).collect();
        assert_eq!(texts, [format!("in {room}")]);
    }
}
