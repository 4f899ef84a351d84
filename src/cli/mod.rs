//! The command line: what can be asked for, and how it is refused.

pub mod bench;
mod http;
pub mod status;
mod target;

use crate::config::{Config, ConfigError, Flag};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Chat for a group of people, on machines of their own.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    args_conflicts_with_subcommands = true,
    after_help = "Without a command, parley runs a node: open http://127.0.0.1:8080 and chat."
)]
pub struct Cli {
    /// What to do; without it, run a node.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node (what happens without a command, too)
    Serve(ServeArgs),
    /// Show a cluster as one of its nodes sees it
    Status(status::StatusArgs),
    /// Measure a server: the load generator
    Bench(bench::BenchArgs),
}

/// Flags of `serve`. Each is also a key of the file and a variable `PARLEY_SECTION_KEY`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A TOML file with settings
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name, unique in the cluster [default: n1]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The folder that holds the history [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where to serve pages, API and WebSockets; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<String>,
    /// The base URL at which browsers reach this node [default: from --http]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Where to listen for other nodes [default: off, a single node]
    #[arg(long, value_name = "ADDR")]
    cluster: Option<String>,
    /// Another initial member and where to dial it; repeat for each
    #[arg(long = "peer", value_name = "NAME=ADDR")]
    peers: Vec<String>,
    /// How logs look on standard error; RUST_LOG says what is logged
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

impl ServeArgs {
    /// The configuration from all sources.
    ///
    /// # Errors
    /// When one of them does not make sense.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let one = |key: &'static str, value: &Option<String>| value.clone().map(|value| (key, vec![value]));
        let mut flags: Vec<Flag> = [
            one("node.name", &self.name),
            one("node.data", &self.data),
            one("http.listen", &self.http),
            one("http.advertise", &self.advertise),
            one("cluster.listen", &self.cluster),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !self.peers.is_empty() {
            flags.push(("cluster.peers", self.peers.clone()));
        }
        Config::load(self.config.as_deref(), |name| std::env::var(name).ok(), flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_work_with_and_without_the_command() {
        for line in [&["parley", "--name", "x"][..], &["parley", "serve", "--name", "x"]] {
            let cli = Cli::parse_from(line);
            let serve = match cli.command {
                Some(Command::Serve(serve)) => serve,
                Some(Command::Bench(_) | Command::Status(_)) => unreachable!("{line:?}"),
                None => cli.serve,
            };
            assert_eq!(serve.name.as_deref(), Some("x"));
        }
    }
}
