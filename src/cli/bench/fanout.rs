//! `parley bench fanout`: rooms full of members, a few of whom speak.

use std::time::Duration;

use serde::Serialize;

use super::BenchError;
use super::common::{CommonArgs, run_id};
use super::crowd::{self, Load, Outcome, Plan, Until};
use super::payload::{SIZE_MAX, SIZE_MIN};
use super::procfs::ProcessReport;
use super::report::{self, Table, each, grouped, micros, plural, rate, rate_text};
use super::stats::Summary;

const EXAMPLES: &str = "\
Examples:
  One room of 100, one of them speaking as soon as the last message came back to it:
    parley bench fanout --members 100 --pid $(pgrep -x parley)
  Ten rooms of 50, 20 messages a second in each, whatever the server makes of it:
    parley bench fanout --rooms 10 --members 50 --rate 20 --duration 30

Each message is counted once for every member that receives it. A sender receives its own messages too.";

/// Flags of `parley bench fanout`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct FanoutArgs {
    /// Rooms
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rooms: u32,

    /// Sessions in each room
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    members: u32,

    /// Members of each room who speak
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    senders: u32,

    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    duration: u64,

    /// Measure until every sender has sent this many messages, instead of for a time
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: Option<u32>,

    /// How long the load runs before it is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warmup: u64,

    /// Length of a message's text
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u64).range(SIZE_MIN as u64..=SIZE_MAX as u64))]
    size: u64,

    /// Closed loop: a sender speaks again once its own message came back to it (the default)
    #[arg(long, conflicts_with = "rate")]
    closed: bool,

    /// Open loop: so many messages a second in each room, come what may; a latency counts from the moment its message was due
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    rate: Option<f64>,

    #[command(flatten)]
    common: CommonArgs,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=100_000.0).contains(&rate) => Ok(rate),
        Ok(_) => Err("it must be from 0.01 to 100000".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, Serialize)]
struct Parameters {
    urls: Vec<String>,
    rooms: u32,
    members: u32,
    senders: u32,
    warmup_s: u64,
    duration_s: Option<u64>,
    messages_per_sender: Option<u32>,
    size_bytes: u64,
    /// `null` in a closed loop.
    rate_per_room_per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct FanoutReport {
    bench: &'static str,
    parameters: Parameters,
    window_s: f64,
    messages: u64,
    messages_per_s: f64,
    deliveries: u64,
    deliveries_per_s: f64,
    #[serde(flatten)]
    latency: Summary,
    /// Open loop only: how late the generator sent.
    send_lag_us_p99: Option<u64>,
    /// Absent figures of the server are `null`: no `--pid` was given.
    cpu_us_per_delivery: Option<f64>,
    cpu_percent: Option<f64>,
    rss_bytes_before: Option<u64>,
    rss_bytes_after: Option<u64>,
    rss_bytes_peak: Option<u64>,
    processes: Vec<ProcessReport>,
    generator_cpu_us_per_delivery: f64,
    generator_cpu_percent: f64,
    sessions: u32,
    deliveries_checked: u64,
}

impl FanoutArgs {
    fn validate(&self) -> Result<(), BenchError> {
        if self.senders > self.members {
            return Err(BenchError::Usage(format!(
                "--senders {} is more than the {} members of a room",
                self.senders, self.members
            )));
        }
        if u64::from(self.rooms) * u64::from(self.members) > 1_000_000 {
            return Err(BenchError::Usage("more than a million sessions are not offered".to_owned()));
        }
        Ok(())
    }

    fn parameters(&self) -> Parameters {
        Parameters {
            urls: self.common.urls_text(),
            rooms: self.rooms,
            members: self.members,
            senders: self.senders,
            warmup_s: self.warmup,
            duration_s: self.messages.is_none().then_some(self.duration),
            messages_per_sender: self.messages,
            size_bytes: self.size,
            rate_per_room_per_s: self.rate,
        }
    }

    fn title(&self) -> String {
        let load = match self.rate {
            Some(rate) => format!("open loop at {rate} messages a second in each room"),
            None => "closed loop".to_owned(),
        };
        format!(
            "fanout: {} of {}, {} in each, {load}, {}-byte messages",
            plural(self.rooms.into(), "room"),
            plural(self.members.into(), "member"),
            plural(self.senders.into(), "sender"),
            self.size
        )
    }
}

/// Plays and reports.
pub(super) async fn run(args: FanoutArgs) -> Result<(), BenchError> {
    args.validate()?;
    let outcome = crowd::play(Plan {
        run_id: run_id()?,
        targets: args.common.resolve().await?,
        rooms: vec![(args.members, args.senders); args.rooms as usize],
        load: args.rate.map_or(Load::Echo, |rate| Load::Paced { rate }),
        until: args.messages.map_or(Until::Time(Duration::from_secs(args.duration)), Until::Messages),
        warmup: Duration::from_secs(args.warmup),
        size: args.size as usize,
        timeout: args.common.timeout(),
        pids: args.common.pids.clone(),
    })
    .await?;
    let report = figures(&args, &outcome);
    report::print(args.common.json, &report, &table(args.title(), &outcome, &report))
}

fn figures(args: &FanoutArgs, outcome: &Outcome) -> FanoutReport {
    let window_s = outcome.window.as_secs_f64();
    let measured = !outcome.processes.is_empty();
    let sum = |figure: fn(&ProcessReport) -> u64| -> u64 { outcome.processes.iter().map(figure).sum() };
    let total = |figure| measured.then(|| sum(figure));
    let cpu_us = total(|process| process.cpu_us);
    FanoutReport {
        bench: "fanout",
        parameters: args.parameters(),
        window_s,
        messages: outcome.messages,
        messages_per_s: rate(outcome.messages, window_s),
        deliveries: outcome.deliveries,
        deliveries_per_s: rate(outcome.deliveries, window_s),
        latency: outcome.latency,
        send_lag_us_p99: args.rate.map(|_| outcome.lag.latency_us_p99),
        cpu_us_per_delivery: cpu_us.map(|cpu_us| each(cpu_us, outcome.deliveries)),
        cpu_percent: cpu_us.map(|cpu_us| report::percent(cpu_us, window_s)),
        rss_bytes_before: total(|process| process.rss_bytes_before),
        rss_bytes_after: total(|process| process.rss_bytes_after),
        rss_bytes_peak: total(|process| process.rss_bytes_peak),
        processes: outcome.processes.clone(),
        generator_cpu_us_per_delivery: each(outcome.own_cpu_us, outcome.deliveries),
        generator_cpu_percent: report::percent(outcome.own_cpu_us, window_s),
        sessions: outcome.sessions,
        deliveries_checked: outcome.deliveries_checked,
    }
}

fn table(title: String, outcome: &Outcome, report: &FanoutReport) -> Table {
    let window_s = report.window_s;
    let mut table = Table::new(title);
    table
        .row(
            "messages",
            rate_text(report.messages_per_s),
            format!("{} in {window_s:.1} s", grouped(report.messages)),
        )
        .row("deliveries", rate_text(report.deliveries_per_s), grouped(report.deliveries))
        .latency("latency", &report.latency);
    if let Some(lag_us) = report.send_lag_us_p99 {
        table.row("sent late p99", micros(lag_us), "by the generator; part of the latency");
    }
    table
        .server(&outcome.processes, "delivery", outcome.deliveries, window_s)
        .cpu("generator CPU", outcome.own_cpu_us, "delivery", outcome.deliveries, window_s)
        .row(
            "checked",
            grouped(report.deliveries_checked),
            format!(
                "deliveries to {}: each message once, in one order",
                plural(report.sessions.into(), "session")
            ),
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
        args: FanoutArgs,
    }

    fn parse(line: &str) -> Result<FanoutArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("fanout").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn defaults_are_a_closed_loop_in_one_room() {
        let args = parse("").unwrap();
        args.validate().unwrap();
        assert_eq!((args.rooms, args.members, args.senders, args.size, args.rate), (1, 100, 1, 100, None));
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for line in [
            "--rooms 0",
            "--members 0",
            "--senders 0",
            "--size 63",
            "--size 257",
            "--rate 0",
            "--rate nan",
            "--rate -1",
            "--closed --rate 5",
            "--messages 5 --duration 5",
            "--duration 0",
            "--url nowhere",
            "--pid x",
            "--timeout 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["--members 3 --senders 4", "--rooms 1001 --members 1000"] {
            assert!(matches!(parse(line).unwrap().validate(), Err(BenchError::Usage(_))), "{line}");
        }
    }

    #[test]
    fn several_urls_and_pids_add_up() {
        let args = parse("--url ws://a:1 --url ws://b:2 --pid 3 --pid 4 --closed").unwrap();
        assert_eq!((args.common.urls.len(), args.common.pids), (2, vec![3, 4]));
    }
}
