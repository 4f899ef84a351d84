//! How much may be on its way to a peer.
//!
//! The queues below are unbounded, so what is put in is counted here. A link is one TCP stream, so a beat that was
//! answered proves that what was sent before it has arrived: what counts is the bytes since the newest such beat.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most bytes on their way to one peer.
pub const CREDIT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a message costs beside its bytes: the queues hold it in a few small allocations.
const MESSAGE_OVERHEAD_BYTES: u64 = 256;

/// A beat goes out early once so much was sent since the last one, so that a busy link's credit is renewed at the
/// pace of the link and not of the clock.
const EARLY_BEAT_BYTES: u64 = 2 * 1024 * 1024;

/// Beats remembered at most. One that is answered after it was forgotten renews nothing; a later one will.
const BEATS_MAX: usize = 64;

/// What is on its way on one link. A new link starts with a new account.
#[derive(Debug, Default)]
pub(super) struct Credit {
    sent_bytes: AtomicU64,
    arrived_bytes: AtomicU64,
    beaten_bytes: AtomicU64,
    beats: Mutex<Beats>,
}

#[derive(Debug, Default)]
struct Beats {
    last_seq: u64,
    unanswered: VecDeque<Beat>,
}

#[derive(Debug)]
struct Beat {
    seq: u64,
    sent_bytes: u64,
    at: Duration,
}

/// Whether something may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charge {
    /// It may, and is counted.
    Taken,
    /// It may, is counted, and a beat should follow it.
    BeatDue,
    /// It must not.
    Full,
}

impl Credit {
    /// An account of the link with this number. The numbers of its beats are no other link's, so that an answer
    /// that outlived its link is known for what it is.
    pub(super) fn of_link(number: u64) -> Self {
        let beats = Beats { last_seq: number << 32, ..Beats::default() };
        Self { beats: Mutex::new(beats), ..Self::default() }
    }

    /// Counts a message of so many bytes, unless too much is on its way already.
    pub(super) fn charge(&self, bytes: usize) -> Charge {
        let cost = bytes as u64 + MESSAGE_OVERHEAD_BYTES;
        let arrived = self.arrived_bytes.load(Ordering::Relaxed);
        let before = self.sent_bytes.fetch_add(cost, Ordering::Relaxed);
        if before.saturating_sub(arrived) + cost > CREDIT_BYTES_MAX {
            self.sent_bytes.fetch_sub(cost, Ordering::Relaxed);
            return Charge::Full;
        }
        let beaten = self.beaten_bytes.load(Ordering::Relaxed);
        if (before + cost).saturating_sub(beaten) < EARLY_BEAT_BYTES {
            return Charge::Taken;
        }
        // Of several senders that pass the mark together one sends the beat.
        let due =
            self.beaten_bytes.compare_exchange(beaten, before + cost, Ordering::Relaxed, Ordering::Relaxed);
        if due.is_ok() { Charge::BeatDue } else { Charge::Taken }
    }

    /// Numbers a beat that is about to be sent. `now` is any clock that never steps back.
    pub(super) fn beat(&self, now: Duration) -> u64 {
        let sent_bytes = self.sent_bytes.load(Ordering::Relaxed);
        self.beaten_bytes.store(sent_bytes, Ordering::Relaxed);
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.last_seq += 1;
        let seq = beats.last_seq;
        if beats.unanswered.len() == BEATS_MAX {
            // Not the newest: under a flood the oldest are about to be answered, and an answer to any renews.
            beats.unanswered.pop_front();
        }
        beats.unanswered.push_back(Beat { seq, sent_bytes, at: now });
        seq
    }

    /// Takes the answer to a beat; how long it took, if the beat is known.
    pub(super) fn beaten(&self, seq: u64, now: Duration) -> Option<Duration> {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = beats.unanswered.iter().position(|beat| beat.seq == seq)?;
        let beat = beats.unanswered.drain(..=answered).next_back()?;
        self.arrived_bytes.fetch_max(beat.sent_bytes, Ordering::Relaxed);
        Some(now.saturating_sub(beat.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn fill(credit: &Credit) -> usize {
        (0..).take_while(|_| credit.charge(MIB) != Charge::Full).count()
    }

    #[test]
    fn what_is_on_its_way_is_bounded_until_a_beat_is_answered() {
        let credit = Credit::default();
        assert_eq!(fill(&credit), 15, "each mebibyte costs a little more than itself");
        let beat = credit.beat(Duration::ZERO);
        assert_eq!(fill(&credit), 0);
        assert_eq!(credit.beaten(beat, Duration::from_millis(3)), Some(Duration::from_millis(3)));
        assert_eq!(fill(&credit), 15);
    }

    #[test]
    fn a_beat_proves_only_what_was_sent_before_it() {
        let credit = Credit::default();
        let beat = credit.beat(Duration::ZERO);
        assert_eq!(fill(&credit), 15);
        assert!(credit.beaten(beat, Duration::ZERO).is_some());
        assert_eq!(fill(&credit), 0);
    }

    #[test]
    fn an_answer_to_no_beat_renews_nothing() {
        let credit = Credit::default();
        assert_eq!(fill(&credit), 15);
        let first = credit.beat(Duration::ZERO);
        let second = credit.beat(Duration::ZERO);
        assert_eq!(credit.beaten(77, Duration::ZERO), None);
        assert!(credit.beaten(second, Duration::ZERO).is_some());
        assert_eq!(credit.beaten(first, Duration::ZERO), None, "the second answered for it");
        assert_eq!(fill(&credit), 15);
    }

    #[test]
    fn small_messages_are_counted_with_what_they_cost() {
        let credit = Credit::default();
        let sent = (0..200_000).filter(|_| credit.charge(10) != Charge::Full).count();
        assert!(sent < 70_000, "{sent}");
    }

    #[test]
    fn a_busy_link_beats_early() {
        let credit = Credit::default();
        let due = (0..8).filter(|_| credit.charge(MIB) == Charge::BeatDue).count();
        assert_eq!(due, 4);
    }

    #[test]
    fn beats_that_nobody_answers_are_forgotten() {
        let credit = Credit::default();
        let first = credit.beat(Duration::ZERO);
        for _ in 0..BEATS_MAX {
            credit.beat(Duration::ZERO);
        }
        assert_eq!(credit.beaten(first, Duration::ZERO), None);
    }
}
