//! A wall clock that steps: timestamps follow it forward and never go back, across a restart as well.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Client, Disk, Plan};

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
