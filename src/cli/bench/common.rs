//! What all modes are told alike.

use std::time::Duration;

use super::BenchError;
use crate::cli::target::{Resolved, Target};

/// Flags of every mode.
#[derive(Debug, clap::Args)]
pub(super) struct CommonArgs {
    /// Where the server listens; repeat it to spread the sessions evenly over several nodes
    #[arg(long = "url", value_name = "URL", default_value = "ws://127.0.0.1:8080")]
    pub(super) urls: Vec<Target>,

    /// A process of the server on this machine, whose CPU time and memory are reported; repeat it for several
    #[arg(long = "pid", value_name = "PID")]
    pub(super) pids: Vec<u32>,

    /// How long the server may leave anything owed without an answer before the run fails
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(super) timeout: u64,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(super) json: bool,
}

impl CommonArgs {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Looks up every `--url`.
    pub(super) async fn resolve(&self) -> Result<Vec<Resolved>, BenchError> {
        let mut resolved = Vec::with_capacity(self.urls.len());
        for target in &self.urls {
            resolved.push(target.resolve().await.map_err(BenchError::Failed)?);
        }
        Ok(resolved)
    }

    pub(super) fn urls_text(&self) -> Vec<String> {
        self.urls.iter().map(ToString::to_string).collect()
    }
}

/// A random number that keeps this run's rooms and messages apart from every other's.
pub(super) fn run_id() -> Result<u32, BenchError> {
    getrandom::u32()
        .map_err(|error| BenchError::Failed(format!("no random numbers from the system: {error}")))
}

/// The name of a run's room: at most 22 characters, well below the protocol's 32.
pub(super) fn room_name(run_id: u32, room: u32) -> String {
    format!("bench-{run_id:08x}-{room}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_names_fit_the_protocol() {
        assert_eq!(room_name(0xab, 7), "bench-000000ab-7");
        assert!(room_name(u32::MAX, u32::MAX).len() <= 32);
    }
}
