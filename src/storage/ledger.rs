//! How much was written, in two places: if they disagree, something is missing.
//!
//! - Every batch has a number, and says so in a row of its own: a [`Line`]. The numbers have no holes, and each line says
//!   between which sequence numbers the database must have put its batch, because no checksum of the database's own covers
//!   those.
//! - The mark, a small file beside the journals, says which number is safe: it is written after the fsync. It needs no
//!   fsync itself. A killed process leaves it as it was; after a loss of power it may be older, which proves less and
//!   nothing wrong.
//!
//! Without them a journal that lost its end would read like one whose last writes never finished, and the node would open
//! it: a voter that has forgotten what it voted and what it acknowledged.
//!
//! ```text
//! row   number:u64  above:u64  above_before:u64     (big-endian)
//! mark  number:u64  xxh3 of it:u64                  (big-endian)
//! ```

use super::store::{ReadError, Store};
use fjall::Keyspace;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The key of the line, among the settings.
pub(super) const ROW: &str = "written";

const MARK: &str = "mark";

/// Tells a mark from any other 16 bytes.
const MARK_SEED: u64 = 0x7061_726c_6579_6d6b;

/// What a batch says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number. The first is 1.
    pub(super) number: u64,
    /// Its sequence number is above this, and that of the batch before it is not.
    pub(super) above: u64,
    /// What the batch before it said.
    pub(super) above_before: u64,
}

impl Line {
    pub(super) fn encode(self) -> Vec<u8> {
        [self.number, self.above, self.above_before].iter().flat_map(|part| part.to_be_bytes()).collect()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (parts, []) = bytes.as_chunks::<8>() else { return None };
        let [number, above, above_before] = <[[u8; 8]; 3]>::try_from(parts).ok()?.map(u64::from_be_bytes);
        Some(Self { number, above, above_before })
    }
}

/// What the mark in `folder` says: batches up to this one are safe. A torn mark says nothing.
pub(super) fn safe(folder: &Path) -> io::Result<Option<u64>> {
    let bytes = match fs::read(folder.join(MARK)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let ([number, sum], []) = bytes.as_chunks::<8>() else { return Ok(None) };
    Ok((u64::from_be_bytes(*sum) == xxh3_64_with_seed(number, MARK_SEED))
        .then(|| u64::from_be_bytes(*number)))
}

/// Where the writer counts.
pub(super) struct Ledger {
    newest: Line,
    /// The highest sequence number the database may have given to the newest batch.
    upto: u64,
    mark: File,
}

impl Ledger {
    /// Goes on where the store ends, all of which is safe: opening has seen to that.
    pub(super) fn resume(store: &Store) -> io::Result<Self> {
        let newest = newest(&store.meta).map_err(io::Error::other)?.unwrap_or_default();
        let mut options = OpenOptions::new();
        let mark = options.create(true).truncate(false).write(true).open(store.path().join(MARK))?;
        let mut ledger = Self { newest, upto: 0, mark };
        ledger.look(store);
        ledger.mark();
        Ok(ledger)
    }

    /// The line of the batch that is written next.
    pub(super) fn next(&self) -> Line {
        Line { number: self.newest.number + 1, above: self.upto, above_before: self.newest.above }
    }

    /// The batch with this line was written.
    pub(super) fn written(&mut self, line: Line, store: &Store) {
        self.newest = line;
        self.look(store);
    }

    fn look(&mut self, store: &Store) {
        self.upto = store.database.visible_seqno().saturating_sub(1);
    }

    /// Everything that was written is safe.
    pub(super) fn mark(&self) {
        let number = self.newest.number.to_be_bytes();
        let sum = xxh3_64_with_seed(&number, MARK_SEED).to_be_bytes();
        let mark = [number, sum];
        // An older mark proves less, and nothing wrong. A disk that refuses this will refuse what matters.
        let _ = self.mark.write_all_at(mark.as_flattened(), 0);
    }
}

/// The line of the newest batch that the database has.
pub(super) fn newest(settings: &Keyspace) -> Result<Option<Line>, ReadError> {
    Ok(settings.get(ROW)?.and_then(|row| Line::decode(&row)))
}
