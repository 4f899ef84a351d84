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
//! The format is that of fjall 3 (its `journal/entry.rs`); its version is pinned, and a test writes with fjall what is
//! read here.
//!
//! ```text
//! start  1  item_count:u32  seqno:u64
//! item   2  value_type:u8  compression:u8  keyspace:u64  key_len:u16  value_len:u32  stored_len:u32  key  value
//! clear  4  keyspace:u64
//! end    3  xxh3 of all items and clears:u64  "FJL" 3              (numbers are little-endian)
//! ```

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;

const TRAILER: &[u8] = b"FJL\x03";

/// Bytes of a start marker.
const START_LEN: usize = 13;

/// What a disk writes at once, at the least.
const SECTOR_LEN: usize = 512;

/// Why the journals cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
        /// Where the first batch begins that does not read.
        position: usize,
    },
}

/// Checks all journals in `folder`, and cuts off a last batch that was never finished.
///
/// # Errors
/// When a journal cannot be read, or holds anything that an interrupted write does not explain. Nothing was changed
/// then.
pub fn check(folder: &Path) -> Result<(), JournalError> {
    let mut journals = journals(folder)?;
    let newest = journals.pop();
    for path in journals {
        // Sealed journals were fsynced as a whole.
        let bytes = read(&path)?;
        if let Verdict::Torn(position) | Verdict::Damaged(position) = judge(&bytes) {
            return Err(JournalError::Damaged { path, position });
        }
    }
    let Some(path) = newest else { return Ok(()) };
    match judge(&read(&path)?) {
        Verdict::Whole => Ok(()),
        Verdict::Damaged(position) => Err(JournalError::Damaged { path, position }),
        Verdict::Torn(position) => cut(&path, position).map_err(|source| JournalError::Io { path, source }),
    }
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

fn cut(path: &Path, position: usize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(position as u64)?;
    file.sync_all()
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

fn judge(bytes: &[u8]) -> Verdict {
    // Zeros at the end are space that was reserved and not used yet, or not written.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut position = 0;
    while position < end {
        match batch_len(&bytes[position..]) {
            Ok(len) => position += len,
            Err(reason) => {
                return if explains(reason, bytes, position, end) {
                    Verdict::Torn(position)
                } else {
                    Verdict::Damaged(position)
                };
            }
        }
    }
    Verdict::Whole
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

/// Why a batch does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// What is at this offset, counted from the batch's beginning, is missing or zero where it cannot be.
    StopsAt(usize),
    /// A tag, count or checksum that does not fit.
    Wrong,
    /// Everything fits but the very end.
    WrongTrailer,
}

/// The length of the batch at the beginning of `bytes`.
fn batch_len(bytes: &[u8]) -> Result<usize, Unreadable> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.tag()? != TAG_START {
        return Err(Unreadable::Wrong);
    }
    let mut items = reader.u32()?;
    reader.take(8)?;
    let mut hash = Xxh3::new();
    loop {
        let start = reader.at;
        match reader.tag()? {
            TAG_ITEM => {
                reader.take(1 + 1 + 8)?;
                let key_len = usize::from(u16::from_le_bytes(reader.array()?));
                reader.take(4)?;
                let stored_len = reader.u32()? as usize;
                reader.take(key_len)?;
                reader.take(stored_len)?;
            }
            TAG_CLEAR => {
                reader.take(8)?;
            }
            TAG_END => {
                let checksum = u64::from_le_bytes(reader.array()?);
                let at = reader.at;
                let trailer = reader.take(TRAILER.len())?;
                if trailer != TRAILER {
                    // A trailer of which only the beginning was written ends in zeros.
                    let written = trailer.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                    let is_beginning = trailer[..written] == TRAILER[..written];
                    return Err(if is_beginning {
                        Unreadable::StopsAt(at + written)
                    } else {
                        Unreadable::WrongTrailer
                    });
                }
                return if items == 0 && checksum == hash.digest() {
                    Ok(reader.at)
                } else {
                    Err(Unreadable::Wrong)
                };
            }
            _ => return Err(Unreadable::Wrong),
        }
        items = items.checked_sub(1).ok_or(Unreadable::Wrong)?;
        hash.update(&bytes[start..reader.at]);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Unreadable> {
        let end = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..end).ok_or(Unreadable::StopsAt(self.bytes.len()))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], Unreadable> {
        self.take(LEN)?.try_into().map_err(|_| Unreadable::Wrong)
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next tag. None is zero: where one is, nothing was written (yet).
    fn tag(&mut self) -> Result<u8, Unreadable> {
        match self.take(1)? {
            [0] => Err(Unreadable::StopsAt(self.at - 1)),
            [tag, ..] => Ok(*tag),
            [] => Err(Unreadable::Wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
    use proptest::prelude::*;

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
        while let Ok(len) = batch_len(&bytes[starts[starts.len() - 1]..]) {
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
