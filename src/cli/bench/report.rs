//! How figures are shown to people: a table with units.

use std::fmt;

use super::procfs::ProcessReport;
use super::stats::Summary;

/// Rows of a name, a figure with its unit, and a note.
#[derive(Debug)]
pub(super) struct Table {
    title: String,
    rows: Vec<[String; 3]>,
}

impl Table {
    pub(super) fn new(title: String) -> Self {
        Self { title, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, name: &str, figure: String, note: impl Into<String>) -> &mut Self {
        self.rows.push([name.to_owned(), figure, note.into()]);
        self
    }

    /// Latency percentiles.
    pub(super) fn latency(&mut self, name: &str, latency: &Summary) -> &mut Self {
        self.row(
            &format!("{name} p50"),
            micros(latency.latency_us_p50),
            format!("of {} samples", grouped(latency.latency_samples)),
        )
        .row("    p99", micros(latency.latency_us_p99), "")
        .row("    p99.9", micros(latency.latency_us_p999), "")
        .row("    max", micros(latency.latency_us_max), "")
    }

    /// What the server's processes spent, on each of `count` things called `per`, and what they hold.
    pub(super) fn server(
        &mut self,
        processes: &[ProcessReport],
        per: &str,
        count: u64,
        window_s: f64,
    ) -> &mut Self {
        if processes.is_empty() {
            return self.row("server", "not measured".to_owned(), "give --pid");
        }
        let cpu_us: u64 = processes.iter().map(|process| process.cpu_us).sum();
        self.cpu("server CPU", cpu_us, per, count, window_s);
        if processes.len() > 1 {
            for process in processes {
                self.cpu(&format!("    process {}", process.pid), process.cpu_us, per, count, window_s);
            }
        }
        for process in processes {
            self.row(
                &if processes.len() > 1 {
                    format!("memory of {}", process.pid)
                } else {
                    "server memory".to_owned()
                },
                bytes(process.rss_bytes_after),
                format!(
                    "{} before, {} at most",
                    bytes(process.rss_bytes_before),
                    bytes(process.rss_bytes_peak)
                ),
            );
        }
        self
    }

    /// CPU time, on each of `count` things called `per`.
    pub(super) fn cpu(&mut self, name: &str, cpu_us: u64, per: &str, count: u64, window_s: f64) -> &mut Self {
        self.row(
            name,
            format!("{:.2} µs", each(cpu_us, count)),
            format!("per {per}; {:.0} % of a core", percent(cpu_us, window_s)),
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let widest =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (names, figures) = (widest(0), widest(1));
        for [name, figure, note] in &self.rows {
            let line = format!("  {name:<names$}  {figure:>figures$}  {note}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints a report the way it was asked for.
pub(super) fn print(
    json: bool,
    report: &impl serde::Serialize,
    table: &Table,
) -> Result<(), super::BenchError> {
    use std::io::Write;
    let text = if json {
        let mut text = serde_json::to_string(report).map_err(|error| {
            super::BenchError::Failed(format!("cannot write the report as JSON: {error}"))
        })?;
        text.push('\n');
        text
    } else {
        table.to_string()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| super::BenchError::Failed(format!("cannot print the report: {error}")))
}

/// A whole divided among many; 0 when there were none.
pub(super) fn each(total: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { total as f64 / count as f64 }
}

/// CPU time as a share of one core.
pub(super) fn percent(cpu_us: u64, window_s: f64) -> f64 {
    if window_s > 0.0 { cpu_us as f64 / (window_s * 1e6) * 100.0 } else { 0.0 }
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate, in things a second.
pub(super) fn rate(count: u64, window_s: f64) -> f64 {
    if window_s > 0.0 { count as f64 / window_s } else { 0.0 }
}

/// A rate for people.
pub(super) fn rate_text(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1} /s") } else { format!("{} /s", grouped(rate.round() as u64)) }
}

/// A duration in the unit that suits it.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A size in the unit that suits it.
pub(super) fn bytes(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{:.1} KiB", bytes as f64 / KIB as f64),
        _ => format!("{:.1} MiB", bytes as f64 / MIB as f64),
    }
}

/// `1 room`, `2 rooms`.
pub(super) fn plural(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{} {thing}s", grouped(count)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"].to_vec(),
            [0, 999, 1000, 1_234_567].map(grouped).to_vec()
        );
        assert_eq!([micros(999), micros(1_500), micros(2_000_000)], ["999 µs", "1.50 ms", "2.00 s"]);
        assert_eq!([bytes(1), bytes(1536), bytes(3 << 20)], ["1 B", "1.5 KiB", "3.0 MiB"]);
        assert_eq!([plural(1, "room"), plural(1000, "room")], ["1 room", "1,000 rooms"]);
        assert_eq!([rate_text(12.34), rate_text(1234.5)], ["12.3 /s", "1,235 /s"]);
    }

    #[test]
    fn nothing_divides_by_nothing() {
        assert_eq!((each(5, 0), rate(5, 0.0), percent(5, 0.0)), (0.0, 0.0, 0.0));
        assert_eq!((each(5, 2), rate(5, 2.0), percent(500_000, 2.0)), (2.5, 2.5, 25.0));
    }

    #[test]
    fn columns_line_up_and_several_processes_are_summed() {
        let process = |pid, cpu_us| ProcessReport {
            pid,
            cpu_us,
            rss_bytes_before: 0,
            rss_bytes_after: 1 << 20,
            rss_bytes_peak: 2 << 20,
        };
        let mut table = Table::new("title".into());
        table.server(&[process(7, 1_000), process(8, 3_000)], "delivery", 1_000, 1.0);
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "  server CPU     4.00 µs  per delivery; 0 % of a core");
        assert_eq!(lines[3], "      process 8  3.00 µs  per delivery; 0 % of a core");
        assert_eq!(lines[5], "  memory of 8    1.0 MiB  0 B before, 2.0 MiB at most");
    }
}
