//! The proof that the checker would notice: nodes with a planted bug each, and what must be found.

use std::time::Duration;

use crate::checker::Kind;
use crate::cluster::trial;
use crate::faults::{Fault, Strike, Way, Whom};
use crate::run::{Config, run};

/// A bug that is not found in this time is not found.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

fn strike(calm_ms: u64, lasts_ms: u64, fault: Fault) -> Strike {
    let ms = Duration::from_millis;
    Strike { calm: ms(calm_ms), faults: vec![fault], lasts: ms(lasts_ms) }
}

/// Runs nodes with a bug under these faults, and checks that one of these broken promises is found.
async fn is_found(bug: &'static str, script: Vec<Strike>, expected: &[Kind]) {
    trial(180, async {
        let outcome = run(&Config {
            nodes: 3,
            seed: 1,
            length: FOUND_WITHIN,
            families: Vec::new(),
            planted: Some(bug),
            script: Some(script),
        })
        .await;
        println!("{outcome}");
        let found = expected.iter().any(|kind| outcome.kinds.contains(kind));
        assert!(found, "{bug}: expected one of {expected:?}, found {:?}", outcome.kinds);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_before_the_commit_is_noticed() {
    let cut_off = strike(500, 6_000, Fault::Isolate(Whom::Host(0), Way::Reset));
    is_found("ack-before-commit", vec![cut_off], &[Kind::Lost, Kind::MinorityAck]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_fsync_is_noticed_after_a_loss_of_power() {
    is_found("no-fsync", vec![strike(1_000, 100, Fault::PowerLoss)], &[Kind::Lost, Kind::Died]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_of_a_replaced_leader_is_noticed() {
    let kill = Strike {
        calm: Duration::from_millis(500),
        faults: vec![Fault::Delay(Whom::Host(0), 1_300), Fault::Kill(Whom::Host(0))],
        lasts: Duration::from_millis(4_000),
    };
    is_found("stale-term", vec![kill], &[Kind::ShownTwice, Kind::ShownDisordered, Kind::Ghost]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_id_is_noticed() {
    is_found("no-dedupe", vec![strike(500, 500, Fault::Kill(Whom::Host(0)))], &[Kind::Twice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_speaks_without_a_lease_is_noticed() {
    let cut_off = strike(500, 6_000, Fault::Isolate(Whom::Host(0), Way::Hold));
    is_found("no-lease", vec![cut_off], &[Kind::Ghost, Kind::ShownTwice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_from_the_clock_alone_is_noticed() {
    let back = strike(500, 2_000, Fault::Clock(Whom::Host(0), -60));
    is_found("clock-only", vec![back], &[Kind::ShownDisordered, Kind::Lost, Kind::ShownTwice]).await;
}
