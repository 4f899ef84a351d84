//! A group's log in the node's database.
//!
//! The newest entries are also in memory: they must be readable before they are on disk, and followers that keep up
//! never ask the disk.

use super::types::{GroupId, Types, decode, encode};
use crate::storage::keys;
use crate::storage::store::Store;
use crate::storage::writer::{Change, Flush, Space, WriteFailed, Writer};
use futures_util::{Stream, TryStreamExt, stream};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Entries that are kept in memory once they are on disk, and their bytes as they are written there (in memory they
/// take two to three times as much): enough for a follower that keeps up, little beside sixteen groups.
const TAIL_DURABLE_MAX: usize = 512;
const TAIL_DURABLE_BYTES_MAX: usize = 256 * 1024;

/// Bytes of entries that are read for a follower at once. It is told again that its leader is there only between two
/// such parts.
const READ_BYTES_MAX: usize = 256 * 1024;

const ROW_VOTE: u8 = 0;
const ROW_PURGED: u8 = 1;

/// The log of one group. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    group: GroupId,
    store: Store,
    writer: Writer,
    log: Arc<Mutex<Log>>,
}

struct Log {
    vote: Option<VoteOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    /// The id of the newest entry, or of the newest that was purged.
    last: Option<LogIdOf<Types>>,
    /// The newest entries and their sizes on disk, without holes; the last of them is `last`.
    tail: VecDeque<(EntryOf<Types>, usize)>,
    /// The sum of the sizes.
    tail_bytes: usize,
    /// Entries below this index are on disk.
    durable_below: u64,
    /// How often the end was cut off: what was being written before says nothing of what stands there now.
    cuts: u64,
}

impl LogStore {
    /// The log of `group` as the database holds it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(group: GroupId, store: Store, writer: Writer) -> io::Result<Self> {
        let read = |kind| store.raft_row(group.0, kind).map_err(io::Error::other);
        let vote = read(ROW_VOTE)?.map(|row| decode(&row)).transpose()?;
        let purged: Option<LogIdOf<Types>> = read(ROW_PURGED)?.map(|row| decode(&row)).transpose()?;
        let newest = store.last_log_entry(group.0).map_err(io::Error::other)?;
        let newest = newest.map(|(_, row)| decode::<EntryOf<Types>>(&row)).transpose()?;
        let last = newest.map_or(purged, |entry| Some(entry.log_id()));
        let durable_below = last.map_or(0, |last| last.index + 1);
        let log = Log { vote, purged, last, tail: VecDeque::new(), tail_bytes: 0, durable_below, cuts: 0 };
        Ok(Self { group, store, writer, log: Arc::new(Mutex::new(log)) })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the group has ever heard of anything.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        let log = self.log();
        log.vote.is_none() && log.last.is_none()
    }

    /// Makes `changes` and waits until they are made.
    async fn write(&self, changes: Vec<Change>, flush: Flush) -> io::Result<()> {
        write(&self.writer, changes, flush).await
    }
}

/// Whether `group` has never heard of anything, by what the store holds.
pub(super) fn is_blank_in(group: GroupId, store: &Store) -> io::Result<bool> {
    let vote = store.raft_row(group.0, ROW_VOTE).map_err(io::Error::other)?;
    let purged = store.raft_row(group.0, ROW_PURGED).map_err(io::Error::other)?;
    let newest = store.last_log_entry(group.0).map_err(io::Error::other)?;
    Ok(vote.is_none() && purged.is_none() && newest.is_none())
}

/// Makes `changes` and waits until they are made.
pub(super) async fn write(writer: &Writer, changes: Vec<Change>, flush: Flush) -> io::Result<()> {
    let (done, outcome) = oneshot::channel();
    let done = Box::new(move |result: Result<(), WriteFailed>| {
        let _ = done.send(result);
    });
    writer.write(changes, flush, done);
    outcome.await.map_err(io::Error::other)?.map_err(io::Error::other)
}

impl Log {
    /// The index of the oldest entry in memory.
    fn tail_from(&self) -> Option<u64> {
        self.tail.front().map(|(oldest, _)| oldest.index())
    }

    /// The entries `from..=upto`, or the first of them, about `bytes`; if memory holds all that there are from `from` on.
    fn in_memory(&self, from: u64, upto: u64, bytes: usize) -> Option<Vec<EntryOf<Types>>> {
        // Without a tail only what lies beyond the end is known without the disk.
        let first = self.tail_from().unwrap_or_else(|| self.last.map_or(0, |last| last.index + 1));
        (from >= first).then(|| {
            let skip = (from - first) as usize;
            let wanted = (upto.saturating_sub(from) as usize).saturating_add(1);
            let mut taken: usize = 0;
            let fits = |(_, size): &&(EntryOf<Types>, usize)| {
                let is_first = taken == 0;
                taken = taken.saturating_add(*size);
                is_first || taken <= bytes
            };
            self.tail
                .iter()
                .skip(skip)
                .take(wanted)
                .take_while(fits)
                .map(|(entry, _)| entry.clone())
                .collect()
        })
    }

    fn push(&mut self, entry: EntryOf<Types>, size: usize) {
        self.last = Some(entry.log_id());
        self.tail.push_back((entry, size));
        self.tail_bytes += size;
    }

    fn pop_oldest(&mut self) {
        self.tail_bytes -= self.tail.pop_front().map_or(0, |(_, size)| size);
    }

    fn pop_newest(&mut self) {
        self.tail_bytes -= self.tail.pop_back().map_or(0, |(_, size)| size);
    }

    fn forget_durable(&mut self) {
        while (self.tail.len() > TAIL_DURABLE_MAX || self.tail_bytes > TAIL_DURABLE_BYTES_MAX)
            && self.tail_from().is_some_and(|oldest| oldest < self.durable_below)
        {
            self.pop_oldest();
        }
    }
}

impl LogStore {
    /// The entries `from..=upto`, or the first of them: about `bytes`, or as many as either the disk or memory has.
    async fn read(&self, from: u64, upto: u64, bytes: usize) -> io::Result<Vec<EntryOf<Types>>> {
        let tail_from = {
            let log = self.log();
            if let Some(entries) = log.in_memory(from, upto, bytes) {
                return Ok(entries);
            }
            log.tail_from()
        };
        // What the disk lacks of the end, memory has.
        let on_disk = tail_from.map_or(upto, |tail_from| upto.min(tail_from.saturating_sub(1)));
        let (store, group) = (self.store.clone(), self.group.0);
        let read = tokio::task::spawn_blocking(move || store.log_entries(group, from, on_disk, bytes));
        let rows = read.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        match tail_from {
            // The beginning was purged.
            Some(tail_from) if rows.is_empty() && tail_from <= upto => {
                Ok(self.log().in_memory(tail_from, upto, bytes).unwrap_or_default())
            }
            _ => rows.iter().map(|(_, row)| decode(row)).collect(),
        }
    }
}

/// The ends of `range`, inclusive.
fn ends(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let upto = match range.end_bound() {
        Bound::Included(upto) => Some(*upto),
        Bound::Excluded(behind) => behind.checked_sub(1),
        Bound::Unbounded => Some(u64::MAX),
    };
    // An empty range at zero: one whose end lies before its beginning.
    upto.map_or((1, 0), |upto| (from, upto))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<EntryOf<Types>>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, upto) = ends(&range);
        let mut entries = Vec::new();
        while from <= upto {
            let read = self.read(from, upto, usize::MAX).await?;
            let Some(last) = read.last() else { break };
            from = last.index() + 1;
            entries.extend(read);
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<Types>, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In parts: what is to be applied after a long absence need not fit into memory.
        let (from, upto) = ends(&range);
        let log = self.clone();
        let parts = stream::try_unfold(from, move |from| {
            let log = log.clone();
            async move {
                if from > upto {
                    return Ok(None);
                }
                let part = log.read(from, upto, READ_BYTES_MAX).await?;
                let next = part.last().map(|last| last.index() + 1);
                Ok::<_, io::Error>(next.map(|next| (stream::iter(part.into_iter().map(Ok)), next)))
            }
        });
        Box::pin(parts.try_flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.log().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.read(start, end - 1, READ_BYTES_MAX).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let log = self.log();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        let row = Change::Put(Space::Raft, keys::raft(self.group.0, ROW_VOTE), encode(vote));
        self.write(vec![row], Flush::Sync).await?;
        self.log().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        let (durable_below, cuts) = {
            let mut log = self.log();
            for entry in entries {
                let key = keys::log(self.group.0, entry.index());
                let row = encode(&entry);
                log.push(entry, row.len());
                rows.push(Change::Put(Space::Log, key, row));
            }
            (log.last.map_or(0, |last| last.index + 1), log.cuts)
        };
        let log = Arc::clone(&self.log);
        let done = Box::new(move |outcome: Result<(), WriteFailed>| {
            if outcome.is_ok() {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.cuts == cuts {
                    log.durable_below = log.durable_below.max(durable_below);
                }
                log.forget_durable();
            }
            callback.io_completed(outcome.map_err(io::Error::other));
        });
        self.writer.write(rows, Flush::Sync, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let first_gone = last_log_id.map_or(0, |last| last.index + 1);
        let rows = {
            let mut log = self.log();
            let end = log.last.map_or(0, |last| last.index + 1);
            if first_gone >= end {
                return Ok(());
            }
            while log.tail.back().is_some_and(|(newest, _)| newest.index() >= first_gone) {
                log.pop_newest();
            }
            log.last = last_log_id;
            log.durable_below = log.durable_below.min(first_gone);
            log.cuts += 1;
            (first_gone..end)
                .map(|index| Change::Delete(Space::Log, keys::log(self.group.0, index)))
                .collect()
        };
        self.write(rows, Flush::Sync).await
    }

    async fn purge(&mut self, log_id: LogIdOf<Types>) -> Result<(), io::Error> {
        let first = {
            let mut log = self.log();
            let first = log.purged.map_or(0, |purged| purged.index + 1);
            log.purged = Some(log_id);
            while log.tail_from().is_some_and(|oldest| oldest <= log_id.index) {
                log.pop_oldest();
            }
            if log.last.is_none_or(|last| last.index < log_id.index) {
                log.last = Some(log_id);
                log.durable_below = log.durable_below.max(log_id.index + 1);
            }
            first
        };
        let mut rows = vec![Change::Put(Space::Raft, keys::raft(self.group.0, ROW_PURGED), encode(&log_id))];
        let end = log_id.index;
        let (store, group) = (self.store.clone(), self.group.0);
        let there = tokio::task::spawn_blocking(move || store.log_indexes(group, first, end));
        let there = there.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        rows.extend(there.into_iter().map(|index| Change::Delete(Space::Log, keys::log(group, index))));
        // If this is lost the entries are purged again; nobody reads them meanwhile.
        self.write(rows, Flush::Lazy).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::machine::StateMachine;
    use crate::metrics::Metrics;
    use crate::storage::writer::Durability;
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tokio::sync::watch;

    struct Builder;

    impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for Builder {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<Types>> {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path(), 16).unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let on_failure = Box::new(|reason| panic!("{reason}"));
            let (writer, _thread) =
                Writer::start(store.clone(), Durability::Sync, metrics, on_failure).unwrap();
            let group = GroupId(3);
            let charter = Arc::new(watch::channel(None).0);
            let machine = StateMachine::open(group, &store, writer.clone(), charter).unwrap();
            let log = LogStore::open(group, store, writer).unwrap();
            Ok((folder, log, machine))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_library_s_own_storage_suite_passes() {
        Suite::test_all(Builder).await.unwrap();
    }
}
