//! What a process has spent and holds, as `/proc` tells it.

use std::path::Path;

use serde::Serialize;

/// The kernel counts CPU time for user space in ticks of 10 ms, on every architecture this is built for.
const TICK_US: u64 = 10_000;

/// The figures of one process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// User and system time of all its threads since it began.
    pub(super) cpu_us: u64,
    /// What it holds in memory now.
    pub(super) rss_bytes: u64,
    /// The most it ever held.
    pub(super) rss_bytes_peak: u64,
}

/// One process of the server over the measured time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ProcessReport {
    pub(super) pid: u32,
    pub(super) cpu_us: u64,
    pub(super) rss_bytes_before: u64,
    pub(super) rss_bytes_after: u64,
    pub(super) rss_bytes_peak: u64,
}

/// Reads the figures of a process.
///
/// # Errors
/// A sentence, when there is no such process or `/proc` does not tell.
pub(super) fn usage(pid: u32) -> Result<Usage, String> {
    read(format!("/proc/{pid}").as_ref())
        .map_err(|error| format!("cannot read the figures of process {pid}: {error}"))
}

/// Reads the figures of this process.
pub(super) fn own_usage() -> Result<Usage, String> {
    read("/proc/self".as_ref()).map_err(|error| format!("cannot read this process's figures: {error}"))
}

/// Reads the figures of several processes.
pub(super) fn usages(pids: &[u32]) -> Result<Vec<Usage>, String> {
    pids.iter().map(|&pid| usage(pid)).collect()
}

/// Puts the figures of each process at three moments together: before the sessions came, and at the beginning and end
/// of the measured time.
pub(super) fn reports(pids: &[u32], before: &[Usage], from: &[Usage], to: &[Usage]) -> Vec<ProcessReport> {
    pids.iter()
        .zip(before)
        .zip(from.iter().zip(to))
        .map(|((&pid, before), (from, to))| ProcessReport {
            pid,
            cpu_us: to.cpu_us.saturating_sub(from.cpu_us),
            rss_bytes_before: before.rss_bytes,
            rss_bytes_after: to.rss_bytes,
            rss_bytes_peak: to.rss_bytes_peak,
        })
        .collect()
}

fn read(folder: &Path) -> Result<Usage, String> {
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).map_err(|error| error.to_string());
    let cpu_us = parse_stat(&file("stat")?).ok_or("its stat file is not understood")?;
    let status = file("status")?;
    let rss_bytes = parse_status(&status, "VmRSS:").ok_or("it has no memory: is it a zombie?")?;
    let rss_bytes_peak = parse_status(&status, "VmHWM:").ok_or("its status file is not understood")?;
    Ok(Usage { cpu_us, rss_bytes, rss_bytes_peak })
}

/// User plus system time out of `/proc/PID/stat`, in microseconds.
fn parse_stat(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, which may itself hold spaces and brackets.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_US)
}

/// A size out of `/proc/PID/status`, in bytes.
fn parse_status(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_after_any_program_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 12345 1000 200 18446744073709551615";
        assert_eq!(parse_stat(stat), Some(3_000_000));
        assert_eq!(parse_stat("42 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn reads_sizes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status, "VmRSS:"), Some(1024 * 1024));
        assert_eq!(parse_status(status, "VmHWM:"), Some(2048 * 1024));
        assert_eq!(parse_status(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_has_figures_and_a_strange_one_has_none() {
        let own = own_usage().unwrap();
        assert!(own.rss_bytes > 0 && own.rss_bytes_peak >= own.rss_bytes);
        assert!(usage(u32::MAX).unwrap_err().contains(&u32::MAX.to_string()));
    }
}
