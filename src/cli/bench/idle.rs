//! `parley bench idle`: sessions that only stay.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::BenchError;
use super::board::{Board, FinishOnDrop, Look, Phase, Waited, collect, wait};
use super::client::{Client, Event, Invitation};
use super::common::{CommonArgs, room_name, run_id};
use super::crowd::CONNECTING_MAX;
use super::limits::{allow_sessions, sources};
use super::procfs::{self, ProcessReport};
use super::progress::Progress;
use super::report::{self, Table, bytes, grouped, plural};
use super::wire::{Incoming, describe_error};
use crate::cli::target::Resolved;

const TICK: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
Examples:
  A thousand sessions in a hundred rooms, held for ten seconds:
    parley bench idle --sessions 1000 --rooms 100 --pid $(pgrep -x parley)

Every session must get `ready` and hear of everyone in its room, and answer a ping when the time is over. The memory of a
session is what the server holds at the end of the hold beyond what it held before the first one came, divided by all:
measure a server that was just started, with thousands of sessions.";

/// Flags of `parley bench idle`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct IdleArgs {
    /// Sessions
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sessions: u32,

    /// Rooms they are spread over [default: one for every 10 sessions]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rooms: Option<u32>,

    /// How long to hold them
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    hold: u64,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Serialize)]
struct Parameters {
    urls: Vec<String>,
    sessions: u32,
    rooms: u32,
    hold_s: u64,
}

#[derive(Debug, Serialize)]
struct IdleReport {
    bench: &'static str,
    parameters: Parameters,
    connect_s: f64,
    hold_s: f64,
    /// Absent figures of the server are `null`: no `--pid` was given.
    rss_bytes_per_session: Option<i64>,
    rss_bytes_before: Option<u64>,
    rss_bytes_after: Option<u64>,
    rss_bytes_peak: Option<u64>,
    /// The server's CPU time while the sessions were held, as a share of one core.
    hold_cpu_percent: Option<f64>,
    hold_cpu_us_per_session_per_s: Option<f64>,
    processes: Vec<ProcessReport>,
    sessions_alive: u32,
}

impl IdleArgs {
    fn rooms(&self) -> u32 {
        self.rooms.unwrap_or_else(|| self.sessions.div_ceil(10))
    }

    fn validate(&self) -> Result<(), BenchError> {
        if self.rooms() > self.sessions {
            return Err(BenchError::Usage(format!(
                "--rooms {} is more than the {} sessions",
                self.rooms(),
                self.sessions
            )));
        }
        Ok(())
    }

    /// How many sessions a room has: as even as can be.
    fn members(&self, room: u32) -> u32 {
        self.sessions / self.rooms() + u32::from(room < self.sessions % self.rooms())
    }
}

/// One session to be held.
struct Seat {
    session: u32,
    room: String,
    index: u32,
    target: Resolved,
    source: Option<Ipv4Addr>,
    timeout: Duration,
}

/// Connects, stays, and answers the roll call.
async fn sit(board: Arc<Board>, doors: Arc<Semaphore>, seat: Seat) -> Result<(), String> {
    let label = |error| format!("room {}, session m{}: {error}", seat.room, seat.index);
    let door = doors.acquire().await.map_err(|error| label(error.to_string()))?;
    let invitation =
        Invitation { target: &seat.target, room: &seat.room, index: seat.index, source: seat.source };
    let (mut client, joined) = Client::admit(invitation, seat.timeout).await.map_err(label)?;
    drop(door);
    board.joined.fetch_add(u64::from(joined), Ordering::Relaxed);
    board.ready.fetch_add(1, Ordering::Relaxed);
    let mut called = false;
    loop {
        let event = std::future::poll_fn(|cx| {
            board.watch(seat.session, cx.waker());
            match board.phase() {
                Phase::Finish => return Poll::Ready(Ok(None)),
                Phase::Drain if !called => {
                    called = true;
                    if let Err(error) = client.queue_ping() {
                        return Poll::Ready(Err(error));
                    }
                }
                Phase::Gather | Phase::Warmup | Phase::Measure | Phase::Drain => {}
            }
            client.poll_event(cx).map_ok(Some)
        });
        match event.await.map_err(label)? {
            None => return Ok(()),
            Some(Event::Pong) => {
                board.done.fetch_add(1, Ordering::Relaxed);
            }
            Some(Event::Frame(frame)) => match Incoming::parse(&frame).map_err(label)? {
                Incoming::Joined => {
                    board.joined.fetch_add(1, Ordering::Relaxed);
                }
                Incoming::Error { text, retry_after_ms } => {
                    return Err(label(describe_error(text.as_ref(), retry_after_ms)));
                }
                // The one who left says why.
                Incoming::Quit(_) => {}
                Incoming::Said(_) | Incoming::Ack { .. } | Incoming::Ready => {
                    return Err(label(format!("got this though nobody spoke: {frame}")));
                }
            },
        }
    }
}

/// Holds the sessions and reports.
pub(super) async fn run(args: IdleArgs) -> Result<(), BenchError> {
    args.validate()?;
    let (run_id, timeout, pids) = (run_id()?, args.common.timeout(), &args.common.pids);
    let targets = args.common.resolve().await?;
    let sources = sources(args.sessions, &targets)?;
    allow_sessions(args.sessions)?;
    let usages = || procfs::usages(pids).map_err(BenchError::Failed);
    let before = usages()?;

    let board = Arc::new(Board::new(args.sessions));
    let _finish = FinishOnDrop(&board);
    let mut tasks = JoinSet::new();
    let doors = Arc::new(Semaphore::new(CONNECTING_MAX));
    let rooms = args.rooms();
    for session in 0..args.sessions {
        let seat = Seat {
            session,
            room: room_name(run_id, session % rooms),
            index: session / rooms,
            target: targets[session as usize % targets.len()].clone(),
            source: sources[session as usize % sources.len()],
            timeout,
        };
        tasks.spawn(sit(board.clone(), doors.clone(), seat));
    }

    let mut progress = Progress::new();
    let connecting = Instant::now();
    gather(&args, &board, &mut tasks, timeout, &mut progress).await?;
    let connect_s = connecting.elapsed().as_secs_f64();

    board.enter(Phase::Measure);
    let (from, held) = (usages()?, Instant::now());
    wait(&mut tasks, timeout, TICK, || {
        progress.show(|| format!("holding: {} of {} s", held.elapsed().as_secs(), args.hold));
        if held.elapsed().as_secs() >= args.hold { Look::Done } else { Look::Quiet }
    })
    .await?;
    let (to, hold_s) = (usages()?, held.elapsed().as_secs_f64());

    board.enter(Phase::Drain);
    let alive = || board.done.load(Ordering::Relaxed);
    let called = wait(&mut tasks, timeout, TICK, || {
        progress.show(|| format!("{} of {} sessions answer", alive(), args.sessions));
        if alive() == args.sessions { Look::Done } else { Look::Owed(alive().into()) }
    });
    if called.await? == Waited::Stalled {
        return Err(BenchError::Failed(format!(
            "only {} of {} sessions answered a ping, then none for {} s",
            alive(),
            args.sessions,
            timeout.as_secs()
        )));
    }
    board.enter(Phase::Finish);
    collect(&mut tasks).await?;
    drop(progress);
    let report = figures(&args, procfs::reports(pids, &before, &from, &to), connect_s, hold_s);
    report::print(args.common.json, &report, &table(&args, &report))
}

/// Waits until everyone is in and knows everyone of their room.
async fn gather(
    args: &IdleArgs,
    board: &Board,
    tasks: &mut JoinSet<Result<(), String>>,
    timeout: Duration,
    progress: &mut Progress,
) -> Result<(), BenchError> {
    let introductions: u64 = (0..args.rooms()).map(|room| u64::from(args.members(room)).pow(2)).sum();
    let counts = || (board.ready.load(Ordering::Relaxed), board.joined.load(Ordering::Relaxed));
    let waited = wait(tasks, timeout, TICK, || {
        let (ready, joined) = counts();
        progress.show(|| {
            format!("{ready} of {} sessions, {joined} of {introductions} introductions", args.sessions)
        });
        if (ready, joined) == (args.sessions, introductions) {
            Look::Done
        } else {
            Look::Owed(u64::from(ready) + joined)
        }
    });
    if waited.await? == Waited::Stalled {
        let (ready, joined) = counts();
        return Err(BenchError::Failed(format!(
            "{ready} of {} sessions were let in and {joined} of {introductions} `joined` frames came, then nothing for {} s",
            args.sessions,
            timeout.as_secs()
        )));
    }
    Ok(())
}

fn figures(args: &IdleArgs, processes: Vec<ProcessReport>, connect_s: f64, hold_s: f64) -> IdleReport {
    let measured = !processes.is_empty();
    let sum = |figure: fn(&ProcessReport) -> u64| -> u64 { processes.iter().map(figure).sum() };
    let total = |figure| measured.then(|| sum(figure));
    let (before, after) =
        (total(|process| process.rss_bytes_before), total(|process| process.rss_bytes_after));
    let cpu_us = total(|process| process.cpu_us);
    IdleReport {
        bench: "idle",
        parameters: Parameters {
            urls: args.common.urls_text(),
            sessions: args.sessions,
            rooms: args.rooms(),
            hold_s: args.hold,
        },
        connect_s,
        hold_s,
        rss_bytes_per_session: before
            .zip(after)
            .map(|(before, after)| (after as i64 - before as i64) / i64::from(args.sessions)),
        rss_bytes_before: before,
        rss_bytes_after: after,
        rss_bytes_peak: total(|process| process.rss_bytes_peak),
        hold_cpu_percent: cpu_us.map(|cpu_us| report::percent(cpu_us, hold_s)),
        hold_cpu_us_per_session_per_s: cpu_us.map(|cpu_us| cpu_us as f64 / f64::from(args.sessions) / hold_s),
        processes,
        sessions_alive: args.sessions,
    }
}

fn table(args: &IdleArgs, report: &IdleReport) -> Table {
    let mut table = Table::new(format!(
        "idle: {} in {}, held for {:.0} s",
        plural(args.sessions.into(), "session"),
        plural(args.rooms().into(), "room"),
        report.hold_s
    ));
    let a_second = f64::from(args.sessions) / report.connect_s;
    table.row("let in", format!("{:.1} s", report.connect_s), format!("{a_second:.0} sessions a second"));
    match (report.rss_bytes_per_session, report.hold_cpu_percent) {
        (Some(per_session), Some(cpu_percent)) => {
            let sign = if per_session < 0 { "-" } else { "" };
            table
                .row("server memory", format!("{sign}{}", bytes(per_session.unsigned_abs())), "per session")
                .row("server CPU", format!("{cpu_percent:.2} %"), "of a core while they were held");
            for process in &report.processes {
                table.row(
                    &format!("process {}", process.pid),
                    bytes(process.rss_bytes_after),
                    format!(
                        "{} before, {} at most",
                        bytes(process.rss_bytes_before),
                        bytes(process.rss_bytes_peak)
                    ),
                );
            }
        }
        _ => {
            table.row("server", "not measured".to_owned(), "give --pid");
        }
    }
    table.row(
        "checked",
        grouped(report.sessions_alive.into()),
        "sessions: ready, whole roster, alive at the end",
    );
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: IdleArgs,
    }

    fn parse(line: &str) -> Result<IdleArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("idle").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn rooms_hold_all_sessions_evenly() {
        for line in ["--sessions 1000", "--sessions 7 --rooms 3", "--sessions 3 --rooms 3", "--sessions 1"] {
            let args = parse(line).unwrap();
            args.validate().unwrap();
            let members: Vec<u32> = (0..args.rooms()).map(|room| args.members(room)).collect();
            assert_eq!(members.iter().sum::<u32>(), args.sessions, "{line}");
            // The same count as the sessions take their seats.
            for room in 0..args.rooms() {
                let seats = (0..args.sessions).filter(|session| session % args.rooms() == room).count();
                assert_eq!(seats, members[room as usize] as usize, "{line}, room {room}");
            }
        }
    }

    #[test]
    fn more_rooms_than_sessions_are_refused() {
        assert!(matches!(parse("--sessions 2 --rooms 3").unwrap().validate(), Err(BenchError::Usage(_))));
        assert!(parse("--sessions 0").is_err());
    }

    #[test]
    fn memory_that_shrank_is_told_as_such() {
        let args = parse("--sessions 2 --rooms 1").unwrap();
        let process = ProcessReport {
            pid: 1,
            cpu_us: 0,
            rss_bytes_before: 5000,
            rss_bytes_after: 1000,
            rss_bytes_peak: 5000,
        };
        let report = figures(&args, vec![process], 1.0, 1.0);
        assert_eq!(report.rss_bytes_per_session, Some(-2000));
        assert!(table(&args, &report).to_string().contains("-2.0 KiB"));
    }
}
