//! The proof that the checker would notice: nodes with a planted bug each, and what must be found.

use std::time::Duration;

use crate::checker::Kind;
use crate::cluster::trial;
use crate::faults::{Fault, Strike, Way, Whom};
use crate::run::{Config, run};

/// A bug that is not found in this time is not found.
const FOUND_WITHIN: Duration = Duration::from_secs(100);

/// Long enough for one strike, so that what it shows is found soon.
const ROUND: Duration = Duration::from_millis(1);

fn strike(calm_ms: u64, lasts_ms: u64, fault: Fault) -> Strike {
    let ms = Duration::from_millis;
    Strike { calm: ms(calm_ms), faults: vec![fault], lasts: ms(lasts_ms) }
}

/// Runs nodes with a bug under these faults, and checks that one of these broken promises is found; and that none is
/// found when the same happens to nodes without it.
async fn is_found(nodes: usize, bug: &'static str, script: Vec<Strike>, expected: &[Kind]) {
    trial(240, async {
        let with = |planted, length| Config {
            nodes,
            seed: 1,
            length,
            round: ROUND,
            families: Vec::new(),
            planted,
            script: Some(script.clone()),
        };
        let sound = run(&with(None, ROUND)).await;
        assert!(sound.violations.is_empty(), "without {bug}: {sound}");
        let outcome = run(&with(Some(bug), FOUND_WITHIN)).await;
        println!("{outcome}");
        let found = expected.iter().any(|kind| outcome.kinds.contains(kind));
        assert!(found, "{bug}: expected one of {expected:?}, found {:?}", outcome.kinds);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_before_the_commit_is_noticed() {
    let cut_off = strike(500, 6_000, Fault::Isolate(Whom::Host(0), Way::Reset));
    is_found(3, "ack-before-commit", vec![cut_off], &[Kind::Lost, Kind::MinorityAck]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_fsync_is_noticed_after_a_loss_of_power() {
    is_found(3, "no-fsync", vec![strike(1_000, 100, Fault::PowerLoss)], &[Kind::Lost, Kind::Died]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_of_a_replaced_leader_is_noticed() {
    // It is still on its way to a node that keeps no copy when the next leader speaks there.
    let kill = Strike {
        calm: Duration::from_millis(500),
        faults: vec![Fault::LateWords(0, 1_350), Fault::Kill(Whom::Host(0))],
        lasts: Duration::from_millis(8_000),
    };
    is_found(5, "stale-term", vec![kill], &[Kind::ShownTwice, Kind::ShownDisordered]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_id_is_noticed() {
    is_found(3, "no-dedupe", vec![strike(500, 500, Fault::Kill(Whom::Host(0)))], &[Kind::Twice]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_speaks_without_a_lease_is_noticed() {
    // A leader that is cut off soon finds its appends refused. One that was frozen has no time to.
    let freeze = strike(1_500, 3_000, Fault::Freeze(Whom::Host(0)));
    is_found(3, "no-lease", vec![freeze], &[Kind::Ghost, Kind::ShownTwice, Kind::ShownDisordered]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timestamp_from_the_clock_alone_is_noticed() {
    let back = strike(500, 2_000, Fault::Clock(Whom::Host(0), -60));
    is_found(3, "clock-only", vec![back], &[Kind::ShownDisordered, Kind::Lost, Kind::ShownTwice]).await;
}
