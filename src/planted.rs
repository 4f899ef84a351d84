//! Bugs that can be planted on purpose, each of which breaks one promise: so that the tests can show that they would
//! notice. Only builds with the feature `fault-injection` have them, and none unless `PARLEY_PLANTED_BUG` names it.

/// Something that must never be left out, and is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// `ack-before-commit`: a message is acknowledged when it is proposed.
    AckBeforeCommit,
    /// `no-fsync`: nothing is fsynced.
    NoFsync,
    /// `stale-term`: what a leader of an earlier term says is shown all the same.
    StaleTerm,
    /// `no-dedupe`: an id that is known is taken for a new one.
    NoDedupe,
    /// `no-lease`: a leader speaks whether a majority confirms it or not.
    NoLease,
    /// `clock-only`: a message's timestamp is the clock's, whatever came before.
    ClockOnly,
}

/// Whether this bug was planted.
#[cfg(not(feature = "fault-injection"))]
pub(crate) const fn is_planted(_: Bug) -> bool {
    false
}

/// Whether this bug was planted.
#[cfg(feature = "fault-injection")]
pub(crate) fn is_planted(bug: Bug) -> bool {
    use std::sync::LazyLock;

    static PLANTED: LazyLock<Option<Bug>> = LazyLock::new(|| {
        let name = std::env::var("PARLEY_PLANTED_BUG").ok()?;
        let found = match name.as_str() {
            "ack-before-commit" => Bug::AckBeforeCommit,
            "no-fsync" => Bug::NoFsync,
            "stale-term" => Bug::StaleTerm,
            "no-dedupe" => Bug::NoDedupe,
            "no-lease" => Bug::NoLease,
            "clock-only" => Bug::ClockOnly,
            _ => return None,
        };
        Some(found)
    });
    *PLANTED == Some(bug)
}
