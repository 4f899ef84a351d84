//! `parley bench append`: writers that wait for acknowledgements.

use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::client::{Client, Event, Invitation};
use super::common::{CommonArgs, room_name, run_id};
use super::crowd::{self, Load, Outcome, Plan, Until};
use super::history::{self, HistoryCheck};
use super::payload::{SIZE_MAX, SIZE_MIN};
use super::procfs::ProcessReport;
use super::progress::Progress;
use super::report::{self, Table, each, grouped, plural, rate, rate_text};
use super::stats::Summary;
use super::wire::{Incoming, describe_error};
use crate::cli::target::Resolved;

const EXAMPLES: &str = "\
Examples:
  64 writers, each in a room of its own, one message at a time:
    parley bench append --writers 64 --pid $(pgrep -x parley)
  256 writers in 16 rooms, each with 8 messages on the way:
    parley bench append --writers 256 --rooms 16 --in-flight 8 --duration 30

Writers of one room receive each other's messages, as members do. When the run is over, the history is read back: it
must hold every acknowledged message once.";

/// Flags of `parley bench append`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AppendArgs {
    /// Sessions that write
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    writers: u32,

    /// Rooms they are spread over [default: one for each writer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: Option<u32>,

    /// Messages of a writer that may wait for their acknowledgement; the protocol allows 64
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,

    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,

    /// Measure until every writer has sent this many messages, instead of for a time
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: Option<u32>,

    /// How long the load runs before it is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warmup: u64,

    /// Length of a message's text
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u64).range(SIZE_MIN as u64..=SIZE_MAX as u64))]
    size: u64,

    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Serialize)]
struct Parameters {
    urls: Vec<String>,
    writers: u32,
    rooms: u32,
    in_flight: u32,
    warmup_s: u64,
    duration_s: Option<u64>,
    messages_per_writer: Option<u32>,
    size_bytes: u64,
}

#[derive(Debug, Serialize)]
struct AppendReport {
    bench: &'static str,
    parameters: Parameters,
    window_s: f64,
    acks: u64,
    acks_per_s: f64,
    /// Sent to acknowledged.
    #[serde(flatten)]
    latency: Summary,
    /// Absent figures of the server are `null`: no `--pid` was given.
    cpu_us_per_ack: Option<f64>,
    cpu_percent: Option<f64>,
    rss_bytes_before: Option<u64>,
    rss_bytes_after: Option<u64>,
    rss_bytes_peak: Option<u64>,
    processes: Vec<ProcessReport>,
    generator_cpu_us_per_ack: f64,
    generator_cpu_percent: f64,
    deliveries_checked: u64,
    /// `null` when the server offers no history.
    history_messages_checked: Option<u64>,
}

impl AppendArgs {
    fn rooms(&self) -> u32 {
        self.rooms.unwrap_or(self.writers)
    }

    fn validate(&self) -> Result<(), BenchError> {
        if self.rooms() > self.writers {
            return Err(BenchError::Usage(format!(
                "--rooms {} is more than the {} writers",
                self.rooms(),
                self.writers
            )));
        }
        Ok(())
    }

    /// How many writers each room has: as even as can be.
    fn spread(&self) -> Vec<(u32, u32)> {
        let (each, more) = (self.writers / self.rooms(), self.writers % self.rooms());
        (0..self.rooms())
            .map(|room| each + u32::from(room < more))
            .map(|writers| (writers, writers))
            .collect()
    }

    fn parameters(&self) -> Parameters {
        Parameters {
            urls: self.common.urls_text(),
            writers: self.writers,
            rooms: self.rooms(),
            in_flight: self.in_flight,
            warmup_s: self.warmup,
            duration_s: self.messages.is_none().then_some(self.duration),
            messages_per_writer: self.messages,
            size_bytes: self.size,
        }
    }

    fn title(&self) -> String {
        format!(
            "append: {} in {}, {} in flight each, {}-byte messages",
            plural(self.writers.into(), "writer"),
            plural(self.rooms().into(), "room"),
            self.in_flight,
            self.size
        )
    }
}

/// Plays, reads the history back, and reports.
pub(super) async fn run(args: AppendArgs) -> Result<(), BenchError> {
    args.validate()?;
    let (run_id, timeout) = (run_id()?, args.common.timeout());
    let targets = args.common.resolve().await?;
    for (number, target) in (0..).zip(&targets) {
        // A room each: the nodes of a cluster share their rooms.
        let room = room_name(run_id, u32::MAX - number);
        probe(target, &room, timeout).await.map_err(BenchError::Failed)?;
    }
    let outcome = crowd::play(Plan {
        run_id,
        targets: targets.clone(),
        rooms: args.spread(),
        load: Load::Acked { in_flight: args.in_flight },
        until: args.messages.map_or(Until::Time(Duration::from_secs(args.duration)), Until::Messages),
        warmup: Duration::from_secs(args.warmup),
        size: args.size as usize,
        timeout,
        pids: args.common.pids.clone(),
    })
    .await?;
    let history = read_back(&targets, run_id, &outcome, timeout).await?;
    let report = figures(&args, &outcome, history);
    report::print(args.common.json, &report, &table(args.title(), &outcome, &report))
}

/// Finds out whether the server acknowledges at all.
async fn probe(target: &Resolved, room: &str, timeout: Duration) -> Result<(), String> {
    let invitation = Invitation { target, room, index: 0, source: None };
    let (mut client, _) = Client::admit(invitation, timeout).await?;
    client.queue(r#"{"message":"probe","id":"probe"}"#)?;
    let without =
        || format!("{} sends no acknowledgements (`id`, `ack`), which append measures", target.authority);
    let answer = async {
        loop {
            let Event::Frame(frame) = client.next().await? else { continue };
            match Incoming::parse(&frame)? {
                Incoming::Ack { .. } => return Ok(()),
                // A server that knows ids gives them back.
                Incoming::Said(said) if said.id.is_none() => return Err(without()),
                Incoming::Error { text, retry_after_ms } => {
                    return Err(describe_error(text.as_ref(), retry_after_ms));
                }
                Incoming::Said(_) | Incoming::Joined | Incoming::Quit(_) | Incoming::Ready => {}
            }
        }
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| Err(without()))
}

async fn read_back(
    targets: &[Resolved],
    run_id: u32,
    outcome: &Outcome,
    timeout: Duration,
) -> Result<Option<u64>, BenchError> {
    let mut progress = Progress::new();
    let (mut checked, mut first_session) = (0, 0);
    let rooms = outcome.acked.len();
    for (room, (acked, name)) in outcome.acked.iter().zip(&outcome.room_names).enumerate() {
        progress.show(|| format!("reading the history of room {room} of {rooms}"));
        let check = HistoryCheck::new(run_id, room as u32, first_session, acked);
        match history::verify(&targets[room % targets.len()], name, check, timeout).await {
            Ok(Some(messages)) => checked += messages,
            Ok(None) => return Ok(None),
            Err(trouble) => return Err(BenchError::Failed(format!("room {name}: {trouble}"))),
        }
        first_session += acked.len() as u32;
    }
    Ok(Some(checked))
}

fn figures(args: &AppendArgs, outcome: &Outcome, history: Option<u64>) -> AppendReport {
    let window_s = outcome.window.as_secs_f64();
    let measured = !outcome.processes.is_empty();
    let sum = |figure: fn(&ProcessReport) -> u64| -> u64 { outcome.processes.iter().map(figure).sum() };
    let total = |figure| measured.then(|| sum(figure));
    let cpu_us = total(|process| process.cpu_us);
    AppendReport {
        bench: "append",
        parameters: args.parameters(),
        window_s,
        acks: outcome.acks,
        acks_per_s: rate(outcome.acks, window_s),
        latency: outcome.latency,
        cpu_us_per_ack: cpu_us.map(|cpu_us| each(cpu_us, outcome.acks)),
        cpu_percent: cpu_us.map(|cpu_us| report::percent(cpu_us, window_s)),
        rss_bytes_before: total(|process| process.rss_bytes_before),
        rss_bytes_after: total(|process| process.rss_bytes_after),
        rss_bytes_peak: total(|process| process.rss_bytes_peak),
        processes: outcome.processes.clone(),
        generator_cpu_us_per_ack: each(outcome.own_cpu_us, outcome.acks),
        generator_cpu_percent: report::percent(outcome.own_cpu_us, window_s),
        deliveries_checked: outcome.deliveries_checked,
        history_messages_checked: history,
    }
}

fn table(title: String, outcome: &Outcome, report: &AppendReport) -> Table {
    let window_s = report.window_s;
    let mut table = Table::new(title);
    table
        .row(
            "acknowledged",
            rate_text(report.acks_per_s),
            format!("{} in {window_s:.1} s", grouped(report.acks)),
        )
        .latency("ack latency", &report.latency)
        .server(&outcome.processes, "ack", outcome.acks, window_s)
        .cpu("generator CPU", outcome.own_cpu_us, "ack", outcome.acks, window_s)
        .row("checked", grouped(report.deliveries_checked), "deliveries: each message once, in one order");
    match report.history_messages_checked {
        Some(messages) => {
            table.row("history", grouped(messages), "messages: all that was acknowledged, once")
        }
        None => table.row("history", "not checked".to_owned(), "this server offers none"),
    };
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: AppendArgs,
    }

    fn parse(line: &str) -> Result<AppendArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("append").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn writers_are_spread_evenly() {
        assert_eq!(parse("--writers 3").unwrap().spread(), vec![(1, 1); 3]);
        assert_eq!(parse("--writers 5 --rooms 2").unwrap().spread(), vec![(3, 3), (2, 2)]);
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for line in
            ["--writers 0", "--in-flight 65", "--in-flight 0", "--size 10", "--messages 1 --duration 1"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(matches!(parse("--writers 2 --rooms 3").unwrap().validate(), Err(BenchError::Usage(_))));
    }
}
