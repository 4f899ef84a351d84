//! A wall clock that steps: timestamps follow it forward and never go back, across a restart as well.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Client, Disk, Plan, SOON, Said, until};

const HOUR_MS: i64 = 3_600_000;

/// How far a timestamp is ahead of the real time, in whole hours.
fn hours_ahead(timestamp: u64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    (timestamp as i64 - now + HOUR_MS / 2).div_euclid(HOUR_MS)
}

#[tokio::test]
async fn timestamps_follow_the_clock_forward_and_never_go_back() {
    let disk = Disk::new();
    let mut node = disk.plan(Plan::new()).start().await;
    let mut newest = 0;
    for (round, (offset, ahead)) in [(0, 0), (2, 2), (-3, 2), (1, 2), (4, 4)].into_iter().enumerate() {
        disk.set_clock(offset * HOUR_MS);
        for restarted in [false, true] {
            if restarted {
                node.restart_after_kill().await;
            }
            let mut alice = Client::join(&node, "lobby", "alice").await;
            let said = alice.say_and_settle("tick", &format!("{round} {restarted}")).await;
            assert_eq!(hours_ahead(said.timestamp), ahead, "the clock is {offset} hours ahead");
            assert!(said.timestamp > newest);
            newest = said.timestamp;
        }
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_turn_time_around() {
    let disk = Disk::new();
    let mut node = disk.plan(Plan::new()).start().await;
    let mut said = Vec::new();
    for offset_ms in [0, -HOUR_MS, 24 * HOUR_MS, 0, -30 * 24 * HOUR_MS] {
        node.kill9();
        disk.set_clock(offset_ms);
        node.start_again().await;
        let since = said.last().map_or(0, |said: &Said| said.timestamp);
        let (mut alice, welcome) = Client::rejoin(&node, "lobby", "alice", since).await;
        assert!(welcome.backlog.is_empty(), "the cursor still points to the end: {welcome:?}");
        for n in 0..20 {
            let next =
                alice.say_and_settle(&format!("{n}"), &format!("{offset_ms} {n} {}", said.len())).await;
            assert!(
                next.timestamp > since,
                "{} after {since} with the clock at {offset_ms} ms",
                next.timestamp
            );
            if let Some(last) = said.last() {
                assert!(next.timestamp > last.timestamp);
            }
            said.push(next);
        }
        assert_eq!(node.history("lobby").await, said, "the order of the history is the order of speaking");
        if offset_ms == 24 * HOUR_MS {
            let ahead = said.last().unwrap().timestamp - said[0].timestamp;
            assert!(ahead > 23 * HOUR_MS as u64, "the offset works, or this test shows nothing: {ahead}");
        }
    }
    // A room that never spoke in the future follows the clock as it is now.
    let mut bob = Client::join(&node, "garden", "bob").await;
    let fresh = bob.say_and_settle("hello", "1").await;
    assert!(fresh.timestamp < said[0].timestamp, "the clock is back by a month");
    until("the rooms are counted", SOON, async || node.metric("parley_rooms").await == 2.0).await;
}
