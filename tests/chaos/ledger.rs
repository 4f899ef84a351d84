//! What was done to whom and when: the checker excuses nothing that is not written here.

use std::fmt;
use std::time::{Duration, Instant};

/// A moment of a run, as time since its beginning.
pub(crate) type Moment = Duration;

/// The time of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Moment {
        self.0.elapsed()
    }
}

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not running, or about to end.
    Down,
    /// It is frozen.
    Frozen,
    /// It reaches no majority of the nodes.
    CutOff,
    /// It reaches nobody: no majority of any shard's copies either.
    Alone,
    /// It does not reach everyone, or late.
    Strained,
    /// All its links come and go, or carry little or late: again and again it is as good as cut off.
    Shaky,
}

/// An entry: a node was in trouble from then on.
#[derive(Clone, Debug)]
struct Entry {
    node: usize,
    trouble: Trouble,
    from: Moment,
    /// When it was put right; a node takes a while to notice.
    until: Option<Moment>,
}

/// Something that was done, in words.
#[derive(Clone, Debug)]
struct Deed {
    at: Moment,
    words: String,
}

/// The whole account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
    deeds: Vec<Deed>,
}

impl Ledger {
    /// Writes down what is done.
    pub(crate) fn note(&mut self, at: Moment, words: impl Into<String>) {
        self.deeds.push(Deed { at, words: words.into() });
    }

    /// From now on the node is in trouble.
    pub(crate) fn begin(&mut self, at: Moment, node: usize, trouble: Trouble) {
        self.entries.push(Entry { node, trouble, from: at, until: None });
    }

    /// The node is in this trouble no more.
    pub(crate) fn end(&mut self, at: Moment, node: usize, troubles: &[Trouble]) {
        for entry in &mut self.entries {
            if entry.node == node && entry.until.is_none() && troubles.contains(&entry.trouble) {
                entry.until = Some(at);
            }
        }
    }

    /// Whether the node was in one of these troubles at any time in a span.
    pub(crate) fn was(&self, node: usize, troubles: &[Trouble], from: Moment, to: Moment) -> bool {
        self.spans(node, troubles).any(|(begin, end)| begin <= to && end >= from)
    }

    /// Whether the node was in one of these troubles all the time in a span.
    pub(crate) fn was_throughout(&self, node: usize, troubles: &[Trouble], from: Moment, to: Moment) -> bool {
        self.spans(node, troubles).any(|(begin, end)| begin <= from && end >= to)
    }

    /// When one of these troubles began on the node.
    pub(crate) fn beginnings(&self, node: usize, troubles: &[Trouble]) -> impl Iterator<Item = Moment> {
        self.spans(node, troubles).map(|(begin, _)| begin)
    }

    fn spans(&self, node: usize, troubles: &[Trouble]) -> impl Iterator<Item = (Moment, Moment)> {
        let own =
            self.entries.iter().filter(move |entry| entry.node == node && troubles.contains(&entry.trouble));
        own.map(|entry| (entry.from, entry.until.unwrap_or(Moment::MAX)))
    }

    /// What was done around a moment, in words.
    pub(crate) fn around(&self, at: Moment) -> Around<'_> {
        Around { ledger: self, at }
    }
}

/// A part of the ledger that can be printed.
pub(crate) struct Around<'a> {
    ledger: &'a Ledger,
    at: Moment,
}

impl fmt::Display for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.at.saturating_sub(Duration::from_secs(30));
        let after = self.at + Duration::from_secs(10);
        for deed in self.ledger.deeds.iter().filter(|deed| (before..=after).contains(&deed.at)) {
            writeln!(f, "      {:8.3} s  {}", deed.at.as_secs_f64(), deed.words)?;
        }
        Ok(())
    }
}
