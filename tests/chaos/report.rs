//! What came of a run, for people to read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::checker::Kind;
use crate::faults::Fault;
use crate::run::Config;
use crate::witness::{Event, Record};

/// Steps of the histogram, in ms.
const STEPS: [u64; 8] = [100, 200, 500, 1_000, 2_000, 5_000, 10_000, u64::MAX];

/// The longest bar of the histogram.
const BAR: usize = 50;

/// How long somebody who talked was without an ack while something was wrong.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    pub(crate) fault: &'static str,
    /// Whether nothing was done to the node that this person was on.
    pub(crate) elsewhere: bool,
    pub(crate) length: Duration,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) nodes: usize,
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) silences: Vec<Silence>,
    /// The most memory that a node was seen to take, in bytes.
    pub(crate) memory: u64,
    pub(crate) refused_starts: usize,
    /// In words, each with what was done around it.
    pub(crate) violations: Vec<String>,
    pub(crate) kinds: BTreeSet<Kind>,
    injected: BTreeMap<&'static str, usize>,
    said: usize,
    acked: usize,
    shown: usize,
    ended: usize,
}

impl Outcome {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            nodes: config.nodes,
            seed: config.seed,
            length: Duration::ZERO,
            silences: Vec::new(),
            memory: 0,
            refused_starts: 0,
            violations: Vec::new(),
            kinds: BTreeSet::new(),
            injected: BTreeMap::new(),
            said: 0,
            acked: 0,
            shown: 0,
            ended: 0,
        }
    }

    /// Something went wrong on purpose.
    pub(crate) fn count(&mut self, fault: Fault) {
        *self.injected.entry(fault.name()).or_default() += 1;
    }

    /// What people wrote down in a round.
    pub(crate) fn add(&mut self, records: &[Record]) {
        for record in records {
            self.said += record.said.len();
            self.acked += record.acked;
            for (_, event) in &record.events {
                self.shown += usize::from(matches!(event, Event::Shown(_)));
                self.ended += usize::from(matches!(event, Event::Ended(_)));
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} nodes, seed {}, {:.0} s", self.nodes, self.seed, self.length.as_secs_f64())?;
        writeln!(
            f,
            "  {} messages said, {} acknowledged, {} shown; {} sessions ended and came back; a node took {} MB at most",
            self.said,
            self.acked,
            self.shown,
            self.ended,
            self.memory >> 20
        )?;
        if self.refused_starts > 0 {
            writeln!(
                f,
                "  {} times a node refused its damaged folder and was taught again",
                self.refused_starts
            )?;
        }
        writeln!(
            f,
            "\n  {:26} {:>5}   without an ack, on other nodes      on the nodes hit",
            "what went wrong", "times"
        )?;
        writeln!(
            f,
            "  {:26} {:>5}   {:>10} {:>10}       {:>10} {:>10}",
            "", "", "median", "worst", "median", "worst"
        )?;
        for (fault, times) in &self.injected {
            let column = |elsewhere| {
                let mut lengths: Vec<Duration> = self
                    .silences
                    .iter()
                    .filter(|silence| silence.fault == *fault && silence.elsewhere == elsewhere)
                    .map(|silence| silence.length)
                    .collect();
                lengths.sort_unstable();
                let seconds = |length: Option<&Duration>| {
                    length.map_or_else(|| "-".to_owned(), |length| format!("{:.2} s", length.as_secs_f64()))
                };
                (seconds(lengths.get(lengths.len() / 2)), seconds(lengths.last()))
            };
            let ((median, worst), (hit_median, hit_worst)) = (column(true), column(false));
            writeln!(
                f,
                "  {fault:26} {times:>5}   {median:>10} {worst:>10}       {hit_median:>10} {hit_worst:>10}"
            )?;
        }
        writeln!(f, "\n  longest time without an ack, of each who talked on a node not hit, in each fault")?;
        let mut counts = [0_usize; STEPS.len()];
        for silence in self.silences.iter().filter(|silence| silence.elsewhere) {
            let step = STEPS.iter().position(|step| silence.length.as_millis() < u128::from(*step));
            counts[step.unwrap_or(STEPS.len() - 1)] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or_default().max(1);
        for (step, count) in STEPS.iter().zip(counts) {
            let name = if *step == u64::MAX {
                "longer".to_owned()
            } else {
                format!("below {} s", *step as f64 / 1_000.0)
            };
            writeln!(f, "  {name:>12} {count:>6} {}", "#".repeat((count * BAR).div_ceil(most)))?;
        }
        if self.violations.is_empty() {
            return writeln!(f, "\n  every promise held");
        }
        writeln!(f, "\n  {} broken promises; the first:", self.violations.len())?;
        self.violations.iter().take(5).try_for_each(|violation| writeln!(f, "  - {violation}"))
    }
}
