//! Plays rooms full of sessions of which some speak: the common run of `fanout` and `append`.
//!
//! All sessions are let in and have learned of each other before the first one speaks; the load runs unmeasured for the
//! warm-up, then measured; then nothing new is said, all that is owed must arrive, and every session closes its account.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::BenchError;
use super::board::{Board, FinishOnDrop, Look, Phase, Waited, collect, wait};
use super::client::{Client, Invitation};
use super::limits::{allow_sessions, sources};
use super::member::{End, Member};
use super::pacer::{self, Pace};
use super::procfs::{self, ProcessReport, Usage};
use super::progress::Progress;
use super::room::{Counts, Room, counts};
use super::stats::{Latencies, Summary};
use crate::cli::target::Resolved;

/// Sessions that connect at the same time.
pub(super) const CONNECTING_MAX: usize = 64;

/// How often the coordinator looks.
const TICK: Duration = Duration::from_millis(20);
/// How often it looks when the moment of the end is measured.
const TICK_FINE: Duration = Duration::from_millis(1);

/// When a sender speaks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// As soon as its last message came back to it.
    Echo,
    /// At a given pace, whatever comes back: messages a second in each room, by its senders in turn.
    Paced { rate: f64 },
    /// While fewer than so many of its messages wait for their acknowledgement.
    Acked { in_flight: u32 },
}

/// When the measured part ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Time(Duration),
    /// So many messages from each sender.
    Messages(u32),
}

/// What is to be played.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) run_id: u32,
    pub(super) targets: Vec<Resolved>,
    /// Of each room: members, and how many of them speak.
    pub(super) rooms: Vec<(u32, u32)>,
    pub(super) load: Load,
    pub(super) until: Until,
    pub(super) warmup: Duration,
    /// Bytes of a message's text.
    pub(super) size: usize,
    /// How long the server may leave what it owes.
    pub(super) timeout: Duration,
    /// Processes of the server.
    pub(super) pids: Vec<u32>,
}

/// What all sessions of a run share.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) run_id: u32,
    pub(super) load: Load,
    pub(super) until: Until,
    pub(super) size: usize,
    pub(super) board: Board,
    pub(super) rooms: Vec<Room>,
    pub(super) pace: Option<Pace>,
    /// Sent (or due) to received; in an acked load, sent to acknowledged.
    pub(super) latencies: Latencies,
    /// Due to sent: how late the generator itself was.
    pub(super) lags: Latencies,
    /// What is sent at or after this counts…
    from_us: AtomicU64,
    /// …and before this.
    to_us: AtomicU64,
}

impl Crowd {
    /// Whether a message sent at this moment is one of the measured.
    pub(super) fn counts(&self, sent_us: u64) -> bool {
        (self.from_us.load(Ordering::Relaxed)..self.to_us.load(Ordering::Relaxed)).contains(&sent_us)
    }
}

/// What came of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) window: Duration,
    /// In the measured time.
    pub(super) messages: u64,
    pub(super) deliveries: u64,
    pub(super) acks: u64,
    pub(super) latency: Summary,
    pub(super) lag: Summary,
    pub(super) processes: Vec<ProcessReport>,
    /// The generator's own CPU time in the measured time.
    pub(super) own_cpu_us: u64,
    /// Over the whole run, warm-up included: each was checked.
    pub(super) deliveries_checked: u64,
    pub(super) sessions: u32,
    /// By room and writer: the timestamps its messages were acknowledged with.
    pub(super) acked: Vec<Vec<Vec<u64>>>,
    pub(super) room_names: Vec<String>,
}

/// The figures at one end of the measured time.
struct Mark {
    at_us: u64,
    counts: Counts,
    processes: Vec<Usage>,
    own: Usage,
}

impl Mark {
    fn take(crowd: &Crowd, pids: &[u32]) -> Result<Self, BenchError> {
        let processes = procfs::usages(pids).map_err(BenchError::Failed)?;
        let own = procfs::own_usage().map_err(BenchError::Failed)?;
        Ok(Self { at_us: crowd.board.now_us(), counts: counts(&crowd.rooms), processes, own })
    }
}

/// Plays a plan to its end.
///
/// # Errors
/// When a session's rules were broken, the server stopped answering, or a process of the server is gone.
pub(super) async fn play(plan: Plan) -> Result<Outcome, BenchError> {
    let sessions = plan.rooms.iter().map(|&(members, _)| members).sum();
    let sources = sources(sessions, &plan.targets)?;
    allow_sessions(sessions)?;
    let before = procfs::usages(&plan.pids).map_err(BenchError::Failed)?;
    let latencies = || Latencies::new().map_err(BenchError::Failed);
    let crowd = Arc::new(Crowd {
        run_id: plan.run_id,
        load: plan.load,
        until: plan.until,
        size: plan.size,
        board: Board::new(sessions),
        pace: match (plan.load, plan.rooms.first()) {
            (Load::Paced { rate }, Some(&(_, senders))) => {
                Some(Pace::new(rate, plan.rooms.len() as u32, senders))
            }
            _ => None,
        },
        rooms: Room::lay_out(plan.run_id, plan.rooms.iter().copied()),
        latencies: latencies()?,
        lags: latencies()?,
        from_us: AtomicU64::new(u64::MAX),
        to_us: AtomicU64::new(u64::MAX),
    });
    let _finish = FinishOnDrop(&crowd.board);
    let mut tasks = admit_all(&crowd, &plan, &sources);
    let mut run = Run { crowd: &crowd, plan: &plan, tasks: &mut tasks, progress: Progress::new() };
    run.gather(sessions).await?;
    let (from, to) = run.speak().await?;
    crowd.board.enter(Phase::Finish);
    drop(run);
    let ends = collect(&mut tasks).await?;
    Ok(Outcome {
        window: Duration::from_micros(to.at_us - from.at_us),
        messages: to.counts.sent - from.counts.sent,
        deliveries: to.counts.received - from.counts.received,
        acks: to.counts.acked - from.counts.acked,
        latency: crowd.latencies.summary(),
        lag: crowd.lags.summary(),
        processes: procfs::reports(&plan.pids, &before, &from.processes, &to.processes),
        own_cpu_us: to.own.cpu_us.saturating_sub(from.own.cpu_us),
        deliveries_checked: counts(&crowd.rooms).received,
        sessions,
        acked: by_room(&crowd.rooms, ends),
        room_names: crowd.rooms.iter().map(|room| room.name.clone()).collect(),
    })
}

/// Starts a task for every session; a few of them connect at a time.
fn admit_all(crowd: &Arc<Crowd>, plan: &Plan, sources: &[Option<Ipv4Addr>]) -> JoinSet<Result<End, String>> {
    let doors = Arc::new(Semaphore::new(CONNECTING_MAX));
    let mut tasks = JoinSet::new();
    for room in &crowd.rooms {
        for (index, session) in (0..).zip(room.sessions()) {
            let (crowd, doors, timeout) = (crowd.clone(), doors.clone(), plan.timeout);
            let target = plan.targets[session as usize % plan.targets.len()].clone();
            let source = sources[session as usize % sources.len()];
            let room = room.index as usize;
            tasks.spawn(async move {
                let name = crowd.rooms[room].name.clone();
                let label = |error| format!("room {name}, session m{index}: {error}");
                let door = doors.acquire().await.map_err(|error| label(error.to_string()))?;
                let invitation = Invitation { target: &target, room: &name, index, source };
                let (client, joined) = Client::admit(invitation, timeout).await.map_err(label)?;
                drop(door);
                crowd.board.joined.fetch_add(u64::from(joined), Ordering::Relaxed);
                crowd.board.ready.fetch_add(1, Ordering::Relaxed);
                Member::new(crowd, room, index, client, joined).stay().await.map_err(label)
            });
        }
    }
    tasks
}

/// The coordinator's side of a run.
struct Run<'a> {
    crowd: &'a Arc<Crowd>,
    plan: &'a Plan,
    tasks: &'a mut JoinSet<Result<End, String>>,
    progress: Progress,
}

impl Run<'_> {
    /// Waits until everyone is in and knows everyone of their room.
    async fn gather(&mut self, sessions: u32) -> Result<(), BenchError> {
        let board = &self.crowd.board;
        let introductions: u64 = self.crowd.rooms.iter().map(|room| u64::from(room.members).pow(2)).sum();
        let progress = &mut self.progress;
        let waited = wait(self.tasks, self.plan.timeout, TICK, || {
            let (ready, joined) = (board.ready.load(Ordering::Relaxed), board.joined.load(Ordering::Relaxed));
            progress.show(|| {
                format!("{ready} of {sessions} sessions, {joined} of {introductions} introductions")
            });
            if ready == sessions && joined == introductions {
                Look::Done
            } else {
                Look::Owed(u64::from(ready) + joined)
            }
        })
        .await?;
        if waited == Waited::Stalled {
            return Err(BenchError::Failed(format!(
                "{} of {sessions} sessions were let in and {} of {introductions} `joined` frames came, then nothing for {} s",
                board.ready.load(Ordering::Relaxed),
                board.joined.load(Ordering::Relaxed),
                self.plan.timeout.as_secs()
            )));
        }
        Ok(())
    }

    /// Warms up, measures, and lets everything arrive. Gives the marks at both ends of the measured time.
    async fn speak(&mut self) -> Result<(Mark, Mark), BenchError> {
        let crowd = self.crowd;
        pacer::start(crowd.clone()).map_err(BenchError::Failed)?;
        if !self.plan.warmup.is_zero() {
            crowd.board.enter(Phase::Warmup);
            self.wait_for("warming up", TICK, elapsed(self.plan.warmup)).await?;
        }

        let from = Mark::take(crowd, &self.plan.pids)?;
        crowd.from_us.store(from.at_us, Ordering::Relaxed);
        crowd.board.enter(Phase::Measure);
        match self.plan.until {
            Until::Time(duration) => self.wait_for("measuring", TICK, elapsed(duration)).await?,
            Until::Messages(_) => self.wait_for("measuring", TICK_FINE, || all_arrived(crowd)).await?,
        }
        let to = Mark::take(crowd, &self.plan.pids)?;
        crowd.to_us.store(to.at_us, Ordering::Relaxed);
        crowd.board.enter(Phase::Drain);
        self.wait_for("waiting for the last messages", TICK, || all_arrived(crowd)).await?;
        Ok((from, to))
    }

    /// Waits for a condition while the server keeps delivering what it owes. If it stops, the sessions close their
    /// accounts, which tells what is missing where.
    async fn wait_for(
        &mut self,
        what: &str,
        tick: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), BenchError> {
        let (crowd, progress) = (self.crowd, &mut self.progress);
        let waited = wait(self.tasks, self.plan.timeout, tick, || {
            if done() {
                return Look::Done;
            }
            let counts = counts(&crowd.rooms);
            progress.show(|| format!("{what}: {} messages sent, {} received", counts.sent, counts.received));
            if owes(crowd, counts) { Look::Owed(counts.received + counts.acked) } else { Look::Quiet }
        })
        .await?;
        if waited == Waited::Done {
            return Ok(());
        }
        crowd.board.enter(Phase::Finish);
        let silence = format!("the server delivered nothing for {} s", self.plan.timeout.as_secs());
        Err(BenchError::Failed(match collect(self.tasks).await {
            Err(complaint) => format!("{complaint}; {silence}"),
            Ok(_) => silence,
        }))
    }
}

fn elapsed(duration: Duration) -> impl FnMut() -> bool {
    let start = std::time::Instant::now();
    move || start.elapsed() >= duration
}

fn owes(crowd: &Crowd, counts: Counts) -> bool {
    counts.received < counts.expected
        || (matches!(crowd.load, Load::Acked { .. }) && counts.acked < counts.sent)
}

/// Whether all senders have stopped and all they said has arrived.
fn all_arrived(crowd: &Crowd) -> bool {
    let senders: u32 = crowd.rooms.iter().map(|room| room.senders).sum();
    crowd.board.done.load(Ordering::Acquire) == senders && !owes(crowd, counts(&crowd.rooms))
}

fn by_room(rooms: &[Room], ends: Vec<End>) -> Vec<Vec<Vec<u64>>> {
    let mut acked: Vec<Vec<Vec<u64>>> =
        rooms.iter().map(|room| vec![Vec::new(); room.members as usize]).collect();
    for end in ends {
        acked[end.room as usize][end.index as usize] = end.acked;
    }
    acked
}
