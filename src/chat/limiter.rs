//! How often an address may speak: one action per interval after a burst.
//!
//! Invariant: over any stretch of `t` ms at most `t / interval + grace / interval + 1` actions find no cooldown.
//! The arithmetic is that of the edge-chat demo's `RateLimiter`: a time that moves one interval ahead with every
//! action, and a cooldown once it is more than the grace ahead of now.

/// The two numbers of the limit, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// One action per this time; 0 turns the limiter off.
    pub interval_ms: u64,
    /// How far ahead actions may run.
    pub grace_ms: u64,
}

impl Limits {
    /// Whether anything is limited at all.
    #[must_use]
    pub fn enabled(self) -> bool {
        self.interval_ms > 0
    }
}

/// One address's account.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    next_allowed_ms: u64,
}

impl Limiter {
    /// Counts `actions` at `now_ms`, possibly none, and tells how long to wait before the next, in ms.
    pub fn act(&mut self, limits: Limits, actions: u64, now_ms: u64) -> u64 {
        let moved_ms = limits.interval_ms.saturating_mul(actions);
        self.next_allowed_ms = self.next_allowed_ms.max(now_ms).saturating_add(moved_ms);
        (self.next_allowed_ms - now_ms).saturating_sub(limits.grace_ms)
    }

    /// When this account has nothing left to remember: from then on it equals a new one.
    #[must_use]
    pub fn forgotten_at_ms(&self) -> u64 {
        self.next_allowed_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { interval_ms: 5000, grace_ms: 20_000 };

    #[test]
    fn a_burst_is_free_and_then_one_interval_apart() {
        let mut limiter = Limiter::default();
        let cooldowns: Vec<u64> = (0..6).map(|_| limiter.act(LIMITS, 1, 1_000)).collect();
        assert_eq!(cooldowns, [0, 0, 0, 0, 5_000, 10_000]);
    }

    #[test]
    fn asking_counts_nothing() {
        let mut limiter = Limiter::default();
        assert_eq!(limiter.act(LIMITS, 6, 0), 10_000);
        assert_eq!(limiter.act(LIMITS, 0, 4_000), 6_000);
        assert_eq!(limiter.act(LIMITS, 0, 10_000), 0);
    }

    #[test]
    fn waiting_gives_the_burst_back() {
        let mut limiter = Limiter::default();
        for _ in 0..5 {
            limiter.act(LIMITS, 1, 0);
        }
        assert_eq!(limiter.forgotten_at_ms(), 25_000);
        assert_eq!(limiter.act(LIMITS, 1, 25_000), 0);
        assert_eq!(limiter.forgotten_at_ms(), 30_000);
    }

    proptest! {
        /// Whoever waits for every cooldown never exceeds the rate, over any window.
        #[test]
        fn the_obedient_never_exceed_the_rate(
            waits in prop::collection::vec(0_u64..30_000, 1..200),
            interval_ms in 1_u64..10_000,
            grace_ms in 0_u64..60_000,
        ) {
            let limits = Limits { interval_ms, grace_ms };
            let mut limiter = Limiter::default();
            let mut now = 0;
            let mut times = Vec::new();
            for wait in waits {
                now += wait;
                times.push(now);
                now += limiter.act(limits, 1, now);
            }
            for (first, start) in times.iter().enumerate() {
                for (count, end) in times[first..].iter().enumerate() {
                    let allowed = (end - start + grace_ms) / interval_ms + 1;
                    prop_assert!(count as u64 <= allowed, "{count} actions in {} ms", end - start);
                }
            }
        }

        /// A forgotten account and a new one cannot be told apart.
        #[test]
        fn forgetting_is_harmless(actions in prop::collection::vec(0_u64..4_000, 1..50), later in 0_u64..100_000) {
            let mut limiter = Limiter::default();
            let mut now = 0;
            for wait in actions {
                now += wait;
                limiter.act(LIMITS, 1, now);
            }
            let now = limiter.forgotten_at_ms() + later;
            prop_assert_eq!(limiter.act(LIMITS, 1, now), Limiter::default().act(LIMITS, 1, now));
        }
    }
}
