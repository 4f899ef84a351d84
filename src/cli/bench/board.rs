//! How the coordinator of a run and its sessions see each other: a phase that all watch, and counters that all add to.
//! No channels: a session that is asleep is woken through its slot and looks at the board.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::BenchError;

/// How far a run is. It only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Sessions connect and learn who is there.
    Gather,
    /// The load runs, nothing counts yet.
    Warmup,
    /// What is sent now counts.
    Measure,
    /// Nothing new is sent; what is owed still comes.
    Drain,
    /// Sessions close their accounts and leave.
    Finish,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Gather, Self::Warmup, Self::Measure, Self::Drain, Self::Finish];
}

/// What the coordinator and all sessions of a run share.
#[derive(Debug)]
pub(super) struct Board {
    epoch: Instant,
    phase: AtomicU8,
    sessions: Box<[AtomicWaker]>,
    /// Sessions that were let in.
    pub(super) ready: AtomicU32,
    /// `joined` frames that arrived, over all sessions.
    pub(super) joined: AtomicU64,
    /// Sessions that have done what the phase asks of them.
    pub(super) done: AtomicU32,
}

impl Board {
    pub(super) fn new(sessions: u32) -> Self {
        Self {
            epoch: Instant::now(),
            phase: AtomicU8::new(0),
            sessions: (0..sessions).map(|_| AtomicWaker::new()).collect(),
            ready: AtomicU32::new(0),
            joined: AtomicU64::new(0),
            done: AtomicU32::new(0),
        }
    }

    /// Microseconds since the run began.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Begins a phase and wakes every session to see it.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        for session in &self.sessions {
            session.wake();
        }
    }

    /// To be called by a session before it looks at the board, so that no change is missed.
    pub(super) fn watch(&self, session: u32, waker: &Waker) {
        if let Some(slot) = self.sessions.get(session as usize) {
            slot.register(waker);
        }
    }

    pub(super) fn wake(&self, session: u32) {
        if let Some(slot) = self.sessions.get(session as usize) {
            slot.wake();
        }
    }
}

/// Sends everyone home when the coordinator leaves, however it does.
#[derive(Debug)]
pub(super) struct FinishOnDrop<'a>(pub(super) &'a Board);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.enter(Phase::Finish);
    }
}

/// What the coordinator looks at while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// What was waited for is here.
    Done,
    /// Not yet; the number grows with everything that arrives.
    Owed(u64),
    /// Not yet, and the server owes nothing: time passes.
    Quiet,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Done,
    /// Something was owed and nothing came for the whole timeout.
    Stalled,
}

/// Looks every `tick` until it is done, something owed did not come for `timeout`, or a session failed.
///
/// # Errors
/// The sentence of the session that failed first.
pub(super) async fn wait<T: 'static>(
    sessions: &mut JoinSet<Result<T, String>>,
    timeout: Duration,
    tick: Duration,
    mut look: impl FnMut() -> Look,
) -> Result<Waited, BenchError> {
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = (Look::Quiet, Instant::now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(ended) = sessions.join_next() => {
                ended.map_err(|error| BenchError::Failed(format!("a session ended badly: {error}")))?
                    .map_err(BenchError::Failed)?;
            }
        }
        let seen = look();
        if seen == Look::Done {
            return Ok(Waited::Done);
        }
        if seen != last.0 || seen == Look::Quiet {
            last = (seen, Instant::now());
        } else if last.1.elapsed() >= timeout {
            return Ok(Waited::Stalled);
        }
    }
}

/// Waits until all sessions have left, and gives what they brought home.
///
/// # Errors
/// What the first in order had to complain of, and how many others there were.
pub(super) async fn collect<T: 'static>(
    sessions: &mut JoinSet<Result<T, String>>,
) -> Result<Vec<T>, BenchError> {
    let mut ends = Vec::with_capacity(sessions.len());
    let mut complaints = Vec::new();
    while let Some(ended) = sessions.join_next().await {
        match ended {
            Ok(Ok(end)) => ends.push(end),
            Ok(Err(complaint)) => complaints.push(complaint),
            Err(error) => complaints.push(format!("a session ended badly: {error}")),
        }
    }
    complaints.sort_unstable();
    match complaints.as_slice() {
        [] => Ok(ends),
        [one] => Err(BenchError::Failed(one.clone())),
        [first, others @ ..] => {
            Err(BenchError::Failed(format!("{first} (and {} other sessions have complaints)", others.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    fn staying() -> JoinSet<Result<(), String>> {
        let mut sessions = JoinSet::new();
        sessions.spawn(std::future::pending());
        sessions
    }

    #[test]
    fn phases_only_go_forward() {
        let board = Board::new(1);
        board.enter(Phase::Finish);
        board.enter(Phase::Drain);
        assert_eq!(board.phase(), Phase::Finish);
    }

    #[tokio::test]
    async fn what_is_owed_and_stays_away_is_a_stall() {
        let waited = wait(&mut staying(), SOON * 20, SOON, || Look::Owed(3)).await;
        assert_eq!(waited.unwrap(), Waited::Stalled);
    }

    #[tokio::test]
    async fn quiet_and_progress_are_no_stall() {
        let mut looks = 0;
        let mut sessions = staying();
        let waited = wait(&mut sessions, SOON * 5, SOON, || {
            looks += 1;
            match looks {
                ..20 => Look::Quiet,
                20..40 => Look::Owed(looks),
                _ => Look::Done,
            }
        });
        assert_eq!(waited.await.unwrap(), Waited::Done);
    }

    #[tokio::test]
    async fn a_session_that_fails_ends_the_wait() {
        let mut sessions = staying();
        sessions.spawn(async { Err("session m3: gone".to_owned()) });
        let failed = wait(&mut sessions, Duration::from_secs(60), SOON, || Look::Quiet).await;
        assert_eq!(failed.unwrap_err().to_string(), "session m3: gone");
    }

    #[tokio::test]
    async fn complaints_are_told_in_order_and_counted() {
        let mut sessions = JoinSet::new();
        for complaint in ["c", "a", "b"] {
            sessions.spawn(async move { Err::<(), _>(complaint.to_owned()) });
        }
        sessions.spawn(async { Ok(()) });
        let failed = collect(&mut sessions).await.unwrap_err().to_string();
        assert!(failed.starts_with("a (and 2 other"), "{failed}");
    }
}
