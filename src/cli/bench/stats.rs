//! Latencies, in microseconds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longer waits count as this long: the run would have failed by then.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// How many latencies a session keeps before it hands them over, so that the lock is rarely taken.
const BATCH: usize = 64;

/// The latencies of all sessions.
#[derive(Debug)]
pub(super) struct Latencies {
    histogram: Mutex<Histogram<u64>>,
}

/// What is reported of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) latency_us_p50: u64,
    pub(super) latency_us_p99: u64,
    pub(super) latency_us_p999: u64,
    pub(super) latency_us_max: u64,
    pub(super) latency_samples: u64,
}

impl Latencies {
    /// # Errors
    /// When the histogram cannot be made, as text.
    pub(super) fn new() -> Result<Self, String> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .map_err(|error| format!("no histogram: {error}"))?;
        Ok(Self { histogram: Mutex::new(histogram) })
    }

    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.histogram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn summary(&self) -> Summary {
        let histogram = self.lock();
        Summary {
            latency_us_p50: histogram.value_at_quantile(0.5),
            latency_us_p99: histogram.value_at_quantile(0.99),
            latency_us_p999: histogram.value_at_quantile(0.999),
            latency_us_max: histogram.max(),
            latency_samples: histogram.len(),
        }
    }
}

/// One session's latencies on their way to [`Latencies`].
#[derive(Debug, Default)]
pub(super) struct Sampler {
    kept: Vec<u64>,
}

impl Sampler {
    pub(super) fn record(&mut self, into: &Latencies, latency_us: u64) {
        self.kept.push(latency_us);
        if self.kept.len() >= BATCH {
            self.flush(into);
        }
    }

    pub(super) fn flush(&mut self, into: &Latencies) {
        if self.kept.is_empty() {
            return;
        }
        let mut histogram = into.lock();
        for latency_us in self.kept.drain(..) {
            histogram.saturating_record(latency_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_counts_once() {
        let all = Latencies::new().unwrap();
        let mut sampler = Sampler::default();
        for latency_us in 1..=1000 {
            sampler.record(&all, latency_us);
        }
        assert!(all.summary().latency_samples < 1000, "the last batch is still with the session");
        sampler.flush(&all);
        sampler.flush(&all);
        let summary = all.summary();
        assert_eq!(summary.latency_samples, 1000);
        assert_eq!(
            (summary.latency_us_p50, summary.latency_us_p99, summary.latency_us_max),
            (500, 990, 1000)
        );
    }

    #[test]
    fn no_samples_and_absurd_ones_are_no_trouble() {
        let all = Latencies::new().unwrap();
        assert_eq!(all.summary(), Summary::default());
        let mut sampler = Sampler::default();
        sampler.record(&all, u64::MAX);
        sampler.flush(&all);
        assert!(all.summary().latency_us_max >= LATENCY_US_MAX);
    }
}
