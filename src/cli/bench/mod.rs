//! `parley bench`: a load generator for any server that speaks the chat protocol.
//!
//! - `fanout`: rooms full of members, a few of whom speak; deliveries, their latency and what the server spends on each.
//! - `idle`: sessions that only stay; memory and CPU of holding them.
//! - `append`: writers that wait for acknowledgements; then the history is read back.
//!
//! Every figure is of a run that was checked: each session got every message of its room exactly once and in the one
//! order of that room, and nothing acknowledged is missing from the history. A violation fails the run and names the
//! room, the session and the message.
//!
//! `crowd` plays `fanout` and `append` (they differ in when a sender speaks again), `idle` stands alone. `check` holds the
//! rules, `member` is one session, `client` its socket, `board` how the coordinator and the sessions see each other.

mod append;
mod board;
mod check;
mod client;
mod common;
mod crowd;
mod fanout;
mod history;
mod idle;
mod limits;
mod member;
mod pacer;
mod payload;
mod procfs;
mod progress;
mod report;
mod room;
mod stats;
mod wire;

use clap::{Args, Subcommand};

/// What `parley bench` is asked to do.
#[derive(Debug, Args)]
#[command(
    after_help = "Start the server with `limits.interval_ms = 0`: its limiter would refuse most of this load."
)]
pub struct BenchArgs {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Rooms full of members: deliveries a second, their latency, and what the server spends on each
    Fanout(fanout::FanoutArgs),
    /// Sessions that only stay: the memory and CPU of holding them
    Idle(idle::IdleArgs),
    /// Writers that wait for acknowledgements: how many a second, how soon, and whether all is in the history
    Append(append::AppendArgs),
}

/// Why a run gave no figures. Shown as one plain sentence.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The flags do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The server failed the run, or the run could not be made.
    #[error("{0}")]
    Failed(String),
}

impl BenchError {
    /// The exit code of the process: 2 for bad flags, 1 for a failed run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

/// Runs one benchmark to its end, on a runtime of its own, and prints its report to standard output.
///
/// # Errors
/// `Usage` when the flags contradict each other, `Failed` when the server broke a promise, stopped answering, or could not
/// be reached.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Failed(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(async {
        match args.mode {
            Mode::Fanout(args) => fanout::run(args).await,
            Mode::Idle(args) => idle::run(args).await,
            Mode::Append(args) => append::run(args).await,
        }
    });
    // Sessions that a failed run left behind must not delay the end.
    runtime.shutdown_background();
    result
}
