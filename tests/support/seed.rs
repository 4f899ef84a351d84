//! Random choices that can be repeated: the seed is printed, and `PARLEY_TEST_SEED` sets it.

/// A splitmix64 generator. Not for secrets; only for choosing what a test does next.
#[derive(Debug)]
pub(crate) struct Seed(u64);

impl Seed {
    /// Takes the seed from `PARLEY_TEST_SEED`, or a fresh one, and prints how to repeat it (shown when a test fails).
    pub(crate) fn new(test: &str) -> Self {
        let seed = match std::env::var("PARLEY_TEST_SEED") {
            Ok(text) => text.parse().expect("PARLEY_TEST_SEED is a number"),
            Err(_) => getrandom::u64().expect("the system gives random numbers"),
        };
        println!("{test}: PARLEY_TEST_SEED={seed} repeats the choices of this run");
        Self(seed)
    }

    /// The choices of this number.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` up to but without `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.next().to_le_bytes()).flatten().take(count).collect()
    }
}
