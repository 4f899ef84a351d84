//! Parley's command line: arguments in; a node or a tool out.

use clap::Parser;
use parley::cli::{Cli, Command, LogFormat, ServeArgs, bench, status};
use parley::node;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Exit code for bad flags or a bad configuration.
const EXIT_USAGE: u8 = 2;

/// What is logged unless `RUST_LOG` says otherwise. The libraries speak of every actor and file at `info`; what the
/// store's journal complains of is said by us, once and in words.
const LOG_DEFAULT: &str = "info,openraft=error,ractor=warn,ractor_cluster=error,fjall=warn,fjall::journal=off,fjall::batch=off,lsm_tree=warn";

/// How long threads that are still reading may hold up the end.
const RUNTIME_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(args)) => serve(&args),
        Some(Command::Status(args)) => match status::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &error),
        },
        Some(Command::Bench(args)) => match bench::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(error.exit_code(), &error),
        },
    }
}

fn serve(args: &ServeArgs) -> ExitCode {
    let config = match args.load() {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, &error),
    };
    start_logs(args.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &error),
    };
    let outcome = runtime.block_on(node::run(config));
    runtime.shutdown_timeout(RUNTIME_TIMEOUT);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

/// One sentence on standard error.
fn fail(code: u8, error: &impl std::fmt::Display) -> ExitCode {
    eprintln!("parley: {error}");
    ExitCode::from(code)
}

fn start_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().init(),
    }
    // A failed actor is one more log line, also where lines are JSON.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic: {}", panic.payload_as_str().unwrap_or("without a message"));
    }));
}
