//! Looks through the database's journals before the database does.
//!
//! Why: fjall takes what it cannot decode for the end of a journal, cuts the file there and goes on. Nearly always it
//! is right, because what cannot be decoded is a batch that was being written when the power went. But one flipped bit
//! in the middle of a journal reads the same, and then acknowledged messages are gone without a word, and the evidence
//! with them. So the journals are read here first, and a journal may end early only where that is explained by a
//! write that never finished. Anything else is damage, and the folder is refused untouched.
//!
//! What explains an early end, given that every batch is fsynced before the next one begins:
//! - The last batch has no end: the process was killed while it wrote, or the power went. What the disk returns for
//!   the rest of it does not matter.
//! - The last batch has a hole of zeros: the power went while its pages were on their way to the disk, and not all of
//!   them arrived. (The file's length is reserved ahead, so that a page which was never written reads as zeros.)
//!
//! Beyond that every batch must follow from the one before ([`ledger`](super::ledger)), and what was safe must be there.
//!
//! What was not safe yet is written again and fsynced before anything is believed: after an fsync that failed the
//! system keeps pages in memory which are not on the disk and which no later fsync would write.

use super::batch::{self, Batch, START_LEN, TRAILER, Unreadable};
use super::ledger::Line;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a disk writes at once, at the least.
const SECTOR_LEN: usize = 512;

/// Why the journals cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// The file system refuses.
    #[error("{path} cannot be read: {source}")]
    Io {
        /// The journal.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{path} is not what was written there, from byte {position} on")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where the first batch begins that does not read, or does not follow on the one before.
        position: usize,
    },
    /// Shorter than it was.
    #[error("the last {missing} writes that were safe on the disk are missing")]
    Lost {
        /// The folder.
        path: PathBuf,
        /// How many.
        missing: u64,
    },
}

/// What the journals of a folder hold.
#[derive(Debug, Default)]
pub(super) struct Journals {
    /// How many there are.
    pub(super) count: usize,
    /// The keyspaces that anything was written to.
    pub(super) keyspaces: BTreeSet<u64>,
    /// The first batch behind which no number is missing; what comes before it must be in tables.
    pub(super) first: Option<Line>,
    /// The newest number.
    newest: Option<u64>,
    seqno: Option<u64>,
    /// What is to be done to the newest journal.
    repair: Option<Repair>,
}

/// What an interrupted write makes necessary.
#[derive(Debug)]
struct Repair {
    path: PathBuf,
    /// Where a batch begins that was never finished.
    cut_at: Option<usize>,
    /// What may not be on the disk yet.
    save: Range<usize>,
}

impl Journals {
    /// Whether nothing was ever written to them.
    pub(super) fn is_empty(&self) -> bool {
        self.seqno.is_none()
    }

    /// Cuts off a last batch that was never finished, and makes everything else safe by writing it again as it is.
    pub(super) fn repair(&self) -> Result<(), JournalError> {
        let Some(Repair { path, cut_at, save }) = &self.repair else { return Ok(()) };
        if cut_at.is_none() && save.is_empty() {
            return Ok(());
        }
        let repair = || {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            if let Some(position) = cut_at {
                file.set_len(*position as u64)?;
            }
            let mut bytes = vec![0; save.len()];
            file.read_exact_at(&mut bytes, save.start as u64)?;
            file.write_all_at(&bytes, save.start as u64)?;
            file.sync_all()
        };
        repair().map_err(|source| JournalError::Io { path: path.clone(), source })
    }

    /// Whether this batch can follow on those before it; `in_journal` unless it is the first of its journal.
    fn follows(&mut self, batch: Batch, in_journal: bool) -> bool {
        let before = self.seqno.replace(batch.seqno);
        let rises = before.is_none_or(|before| before < batch.seqno);
        let Some(line) = batch.line else { return rises };
        let fits = line.above < batch.seqno && before.is_none_or(|before| before <= line.above);
        let follows = match self.newest.replace(line.number) {
            Some(newest) if newest + 1 == line.number => true,
            // A journal whose rows are all in tables was removed, and one before it came back with the power.
            Some(newest) => {
                self.first = Some(line);
                !in_journal && newest < line.number
            }
            None => {
                self.first = Some(line);
                true
            }
        };
        rises && fits && follows
    }
}

/// Checks all journals in `folder`, and changes nothing. `safe` is what the mark says.
///
/// # Errors
/// When a journal cannot be read, or holds anything that an interrupted write does not explain, or less than is safe.
pub(super) fn check(folder: &Path, safe: Option<u64>) -> Result<Journals, JournalError> {
    let paths = journals(folder)?;
    let mut found = Journals { count: paths.len(), ..Journals::default() };
    for (index, path) in paths.iter().enumerate() {
        let bytes = read(path)?;
        let is_active = index + 1 == paths.len();
        let Scan { verdict, unsafe_from, whole } = scan(&bytes, safe, &mut found);
        match verdict {
            Verdict::Whole if is_active => {
                found.repair = Some(Repair { path: path.clone(), cut_at: None, save: unsafe_from..whole });
            }
            Verdict::Torn(position) if is_active => {
                let save = unsafe_from..whole;
                found.repair = Some(Repair { path: path.clone(), cut_at: Some(position), save });
            }
            // Sealed journals were full, and fsynced as a whole.
            Verdict::Whole if whole > 0 => {}
            Verdict::Whole => return Err(JournalError::Damaged { path: path.clone(), position: 0 }),
            Verdict::Torn(position) | Verdict::Damaged(position) => {
                return Err(JournalError::Damaged { path: path.clone(), position });
            }
        }
    }
    // Where no journal has a number, tables may have it.
    if let (Some(newest), Some(safe)) = (found.newest, safe)
        && newest < safe
    {
        return Err(JournalError::Lost { path: folder.to_owned(), missing: safe - newest });
    }
    Ok(found)
}

/// Removes the journals of a folder that was never finished, so that it can be made anew.
pub(super) fn remove_unused(folder: &Path) -> io::Result<()> {
    let paths = journals(folder).map_err(|error| io::Error::other(error.to_string()))?;
    paths.into_iter().try_for_each(fs::remove_file)
}

/// The journals' paths, oldest first.
fn journals(folder: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let fail = |source| JournalError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|ending| ending == "jnl")) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, JournalError> {
    fs::read(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })
}

/// What a journal's bytes amount to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Whole batches, then nothing but zeros.
    Whole,
    /// Whole batches up to here, then one that was never finished.
    Torn(usize),
    /// Whole batches up to here, then something else.
    Damaged(usize),
}

/// What a journal turned out to be.
struct Scan {
    verdict: Verdict,
    /// Batches behind this may not be on the disk yet.
    unsafe_from: usize,
    /// The end of its last whole batch.
    whole: usize,
}

/// Reads a journal, and adds what it holds to `found`.
fn scan(bytes: &[u8], safe: Option<u64>, found: &mut Journals) -> Scan {
    // Zeros at the end are space that was reserved and not used yet, or not written.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut scan = Scan { verdict: Verdict::Whole, unsafe_from: 0, whole: 0 };
    while scan.whole < end {
        let position = scan.whole;
        match batch::read(&bytes[position..], &mut found.keyspaces) {
            Ok(batch) if found.follows(batch, position > 0) => {
                scan.whole += batch.len;
                if batch.line.is_some_and(|line| safe.is_some_and(|safe| line.number <= safe)) {
                    scan.unsafe_from = scan.whole;
                }
            }
            Ok(_) => {
                scan.verdict = Verdict::Damaged(position);
                break;
            }
            Err(reason) => {
                let explained = explains(reason, bytes, position, end);
                scan.verdict = if explained { Verdict::Torn(position) } else { Verdict::Damaged(position) };
                break;
            }
        }
    }
    scan
}

/// Whether an interrupted write explains that the batch at `position` does not read, in a journal whose last byte
/// that is not zero lies before `end`.
fn explains(reason: Unreadable, bytes: &[u8], position: usize, end: usize) -> bool {
    let rest = &bytes[position..end];
    let trailers = rest.windows(TRAILER.len()).filter(|window| *window == TRAILER).count();
    match reason {
        // It would go on behind everything that was ever written here: it stops short, unless its end is there after
        // all and a length is wrong.
        Unreadable::StopsAt(at) if position + at >= end => trailers == 0,
        // It reads up to its end, and that is not one: it was whole once, unless a page with the end never arrived.
        Unreadable::WrongTrailer => trailers == 0 && has_hole(bytes, position, end),
        // Something is wrong in its midst. Without an end anywhere, no batch was ever finished here, whatever the disk
        // returns for it. With its own end behind, it is a page that never arrived, if there is a hole.
        Unreadable::StopsAt(_) | Unreadable::Wrong => {
            let is_last = trailers == 1 && rest.ends_with(TRAILER);
            trailers == 0 || (is_last && has_hole(bytes, position, end))
        }
    }
}

/// Whether zeros stand in a batch as only a page that never arrived leaves them: from its beginning on, or a sector.
fn has_hole(bytes: &[u8], position: usize, end: usize) -> bool {
    let zeros = bytes[position..end].iter().take_while(|byte| **byte == 0).count();
    let to_next_sector = SECTOR_LEN - position % SECTOR_LEN;
    if zeros >= START_LEN || (zeros >= 2 && zeros >= to_next_sector) {
        return true;
    }
    let first_sector = position.div_ceil(SECTOR_LEN) * SECTOR_LEN;
    let inside = bytes.get(first_sector..end).unwrap_or_default();
    inside.chunks_exact(SECTOR_LEN).any(|sector| sector.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
    use proptest::prelude::*;

    fn judge(bytes: &[u8]) -> Verdict {
        scan(bytes, None, &mut Journals::default()).verdict
    }

    /// A journal as fjall writes it, and where each of its batches begins.
    fn written(batches: usize, items: usize) -> (Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::builder(folder.path()).open().unwrap();
        let keyspace = database.keyspace("messages", KeyspaceCreateOptions::default).unwrap();
        for count in 0..batches {
            let mut batch = database.batch().durability(Some(PersistMode::SyncData));
            for item in 0..items {
                batch.insert(
                    &keyspace,
                    format!("key {count} {item}"),
                    "a value that is not short ".repeat(4),
                );
            }
            batch.commit().unwrap();
        }
        drop((keyspace, database));
        let bytes = fs::read(&journals(folder.path()).unwrap()[0]).unwrap();
        let mut starts = vec![0];
        while let Ok(Batch { len, .. }) =
            batch::read(&bytes[starts[starts.len() - 1]..], &mut BTreeSet::new())
        {
            starts.push(starts[starts.len() - 1] + len);
        }
        (bytes, starts)
    }

    /// The journal without its reserved space, with `reserved` zeros behind.
    fn trimmed(bytes: &[u8], starts: &[usize], reserved: usize) -> Vec<u8> {
        let mut bytes = bytes[..starts[starts.len() - 1]].to_vec();
        bytes.resize(bytes.len() + reserved, 0);
        bytes
    }

    #[test]
    fn what_the_database_writes_is_whole() {
        let (bytes, starts) = written(20, 3);
        assert!(starts.len() > 20, "all batches are recognised");
        assert_eq!(judge(&bytes), Verdict::Whole);
        assert_eq!(judge(&[]), Verdict::Whole);
    }

    #[test]
    fn a_batch_that_stops_short_is_cut_off_wherever_it_stops() {
        let (bytes, starts) = written(3, 2);
        let (start, end) = (starts[starts.len() - 2], starts[starts.len() - 1]);
        for stop in start + 1..end {
            for reserved in [0, 5000] {
                let mut torn = bytes[..stop].to_vec();
                torn.resize(stop + reserved, 0);
                assert_eq!(judge(&torn), Verdict::Torn(start), "stopped at {stop} of {start}..{end}");
            }
        }
    }

    #[test]
    fn what_has_no_end_was_never_finished() {
        let (bytes, starts) = written(3, 2);
        let mut garbage = trimmed(&bytes, &starts, 0);
        let whole = garbage.len();
        garbage.extend((0..2000_u32).map(|count| (count.wrapping_mul(2_654_435_761) >> 24) as u8 | 1));
        assert_eq!(judge(&garbage), Verdict::Torn(whole));
    }

    #[test]
    fn a_last_batch_with_a_missing_page_is_cut_off() {
        let (bytes, starts) = written(2, 200);
        let (start, end) = (starts[starts.len() - 2], starts[starts.len() - 1]);
        let pages: Vec<usize> = (0..end).step_by(4096).filter(|page| page + 4096 > start).collect();
        assert!(pages.len() > 3);
        for page in pages {
            let mut torn = trimmed(&bytes, &starts, 8192);
            // The page as it was before this batch, whose first bytes may share it with the one before.
            torn[page.max(start)..(page + 4096).min(end)].fill(0);
            assert_eq!(judge(&torn), Verdict::Torn(start), "page at {page} is missing");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// Wherever a bit flips, also in the last batch: the journal is refused, never cut.
        #[test]
        fn a_flipped_bit_is_damage(place in any::<prop::sample::Index>(), bit in 0..8_u8, reserved in prop::sample::select(vec![0_usize, 4096])) {
            thread_local! {
                static JOURNAL: (Vec<u8>, Vec<usize>) = {
                    let (bytes, starts) = written(5, 3);
                    (trimmed(&bytes, &starts, 0), starts)
                };
            }
            let (mut bytes, starts) = JOURNAL.with(Clone::clone);
            bytes.resize(bytes.len() + reserved, 0);
            let place = place.index(starts[starts.len() - 1]);
            bytes[place] ^= 1 << bit;
            let damaged = matches!(judge(&bytes), Verdict::Damaged(_));
            // A start marker's sequence number is covered by no checksum; its order is the database's affair.
            let in_seqno = starts.iter().any(|start| (start + 5..start + 13).contains(&place));
            prop_assert!(damaged || in_seqno, "bit {bit} of byte {place} went unnoticed");
        }

        #[test]
        fn any_bytes_are_judged(bytes in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 3, 4, 255]), 0..300)) {
            judge(&bytes);
        }
    }
}
