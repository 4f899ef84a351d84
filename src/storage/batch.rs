//! Reads the batches of the database's journals.
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

use super::ledger::{self, Line};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::Xxh3;

const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;

/// What ends a batch.
pub(super) const TRAILER: &[u8] = b"FJL\x03";

/// Bytes of a start marker.
pub(super) const START_LEN: usize = 13;

/// A batch that reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// Its length in bytes.
    pub(super) len: usize,
    /// Its place in the order of all writes. No checksum covers it.
    pub(super) seqno: u64,
    /// Its line in the ledger; older programs wrote none.
    pub(super) line: Option<Line>,
}

/// Why a batch does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// What is at this offset, counted from the batch's beginning, is missing or zero where it cannot be.
    StopsAt(usize),
    /// A tag, count or checksum that does not fit.
    Wrong,
    /// Everything fits but the very end.
    WrongTrailer,
}

/// Reads the batch at the beginning of `bytes`, and adds the keyspaces it writes to.
pub(super) fn read(bytes: &[u8], keyspaces: &mut BTreeSet<u64>) -> Result<Batch, Unreadable> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.tag()? != TAG_START {
        return Err(Unreadable::Wrong);
    }
    let mut items = reader.u32()?;
    let seqno = reader.u64()?;
    let mut line = None;
    let mut written = BTreeSet::new();
    let mut hash = Xxh3::new();
    loop {
        let start = reader.at;
        match reader.tag()? {
            TAG_ITEM => {
                reader.take(1 + 1)?;
                written.insert(reader.u64()?);
                let key_len = usize::from(u16::from_le_bytes(reader.array()?));
                reader.take(4)?;
                let stored_len = reader.u32()? as usize;
                let key = reader.take(key_len)?;
                let value = reader.take(stored_len)?;
                // The ledger's line is always the first row, so that no other can be taken for it.
                if start == START_LEN && key == ledger::ROW.as_bytes() {
                    line = Line::decode(value);
                }
            }
            TAG_CLEAR => {
                written.insert(reader.u64()?);
            }
            TAG_END => {
                let checksum = reader.u64()?;
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
                if items != 0 || checksum != hash.digest() {
                    return Err(Unreadable::Wrong);
                }
                keyspaces.append(&mut written);
                return Ok(Batch { len: reader.at, seqno, line });
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

    fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
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
