//! Chaos: a cluster of real nodes to which everything happens that happens to machines, and the question whether a
//! single promise was broken.
//!
//! `scripts/chaos.sh` runs the mix for as long as one likes; here it runs for two minutes. See `docs/reliability.md`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test by panicking, like the test itself"
)]

#[path = "../support/cluster.rs"]
#[expect(dead_code, reason = "some of it is for the tests of one fault each")]
mod cluster;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "some of it is for the tests of one node alone")]
mod support;

mod arena;
mod checker;
mod copies;
mod faults;
mod ledger;
mod planted;
mod report;
mod run;
mod witness;

use std::time::Duration;

use crate::cluster::trial_alone;
use crate::faults::{Family, Strike};
use crate::run::{Config, run};
use crate::support::Seed;

/// What is drawn here unless somebody asks for something else: the same on every machine, with something of every family.
const SEED: u64 = 3;

/// One round is about so long: long enough for faults to meet each other's consequences.
const ROUND: Duration = Duration::from_secs(60);

/// What a variable says, or else a default.
fn setting<T>(name: &str, otherwise: T, read: impl FnOnce(&str) -> Result<T, String>) -> T {
    match std::env::var(name) {
        Err(_) => otherwise,
        Ok(text) => read(&text).unwrap_or_else(|why| panic!("{name}={text}: {why}")),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "not a number".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mix_of_everything_breaks_no_promise() {
    let minutes = setting("PARLEY_CHAOS_MINUTES", 2.0, number::<f64>);
    let config = Config {
        nodes: setting("PARLEY_CHAOS_NODES", 3, number),
        seed: setting("PARLEY_CHAOS_SEED", SEED, number),
        length: Duration::from_secs_f64(60.0 * minutes),
        round: ROUND,
        families: setting(
            "PARLEY_CHAOS_FAULTS",
            Family::ALL.map(|(family, _)| family).to_vec(),
            Family::parse_list,
        ),
        planted: None,
        script: None,
    };
    println!("PARLEY_CHAOS_SEED={} draws the same faults again", config.seed);
    trial_alone((60.0 * minutes * 2.0) as u64 + 300, async {
        let outcome = run(&config).await;
        println!("{outcome}");
        assert!(
            outcome.violations.is_empty(),
            "{} promises were broken; see above",
            outcome.violations.len()
        );
    })
    .await;
}

/// What a seed draws is what it drew before, whatever becomes of it.
#[test]
fn a_seed_draws_the_same_faults_again() {
    let families = Family::ALL.map(|(family, _)| family);
    let draw = |seed| {
        let mut seed = Seed::of(seed);
        (0..100).map(|_| Strike::draw(&mut seed, &families, 4)).collect::<Vec<_>>()
    };
    let drawn_here: std::collections::BTreeSet<Family> =
        draw(SEED).into_iter().take(20).flat_map(|strike| strike.faults).map(faults::Fault::family).collect();
    assert_eq!(drawn_here.len(), families.len(), "{drawn_here:?}");
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    let drawn: std::collections::BTreeSet<Family> =
        (0..20).flat_map(draw).flat_map(|strike| strike.faults).map(faults::Fault::family).collect();
    assert_eq!(drawn.len(), families.len(), "every family is drawn: {drawn:?}");
}
