//! A group's log in the node's database.
//!
//! The newest entries are also in memory: they must be readable before they are on disk, and followers that keep up
//! never ask the disk.

use super::types::{GroupId, Types, decode, encode};
use crate::storage::keys;
use crate::storage::store::Store;
use crate::storage::writer::{Change, Flush, Space, WriteFailed, Writer};
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

/// Entries that are kept in memory once they are on disk.
const TAIL_DURABLE_MAX: usize = 512;

/// Bytes of entries that are read for a follower at once.
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
    /// The newest entries, without holes; the last of them is `last`.
    tail: VecDeque<EntryOf<Types>>,
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
        let log = Log { vote, purged, last, tail: VecDeque::new(), durable_below, cuts: 0 };
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
    /// The entries `from..=upto`, if memory holds all of them that there are from `from` on.
    fn in_memory(&self, from: u64, upto: u64) -> Option<Vec<EntryOf<Types>>> {
        let first = match self.tail.front() {
            Some(oldest) => oldest.index(),
            // Nothing was appended since the start: only what lies beyond the end is known without the disk.
            None => self.last.map_or(0, |last| last.index + 1),
        };
        (from >= first).then(|| {
            let skip = (from - first) as usize;
            let wanted = (upto.saturating_sub(from) as usize).saturating_add(1);
            self.tail.iter().skip(skip).take(wanted).cloned().collect()
        })
    }

    fn forget_durable(&mut self) {
        while self.tail.len() > TAIL_DURABLE_MAX
            && self.tail.front().is_some_and(|oldest| oldest.index() < self.durable_below)
        {
            self.tail.pop_front();
        }
    }
}

impl LogStore {
    /// The entries `from..=upto`, or the first of them: about `bytes`, or as many as either the disk or memory has.
    async fn read(&self, from: u64, upto: u64, bytes: usize) -> io::Result<Vec<EntryOf<Types>>> {
        let tail_from = {
            let log = self.log();
            if let Some(entries) = log.in_memory(from, upto) {
                return Ok(entries);
            }
            log.tail.front().map(RaftEntry::index)
        };
        // What the disk lacks of the end, memory has.
        let on_disk = tail_from.map_or(upto, |tail_from| upto.min(tail_from.saturating_sub(1)));
        let (store, group) = (self.store.clone(), self.group.0);
        let read = tokio::task::spawn_blocking(move || store.log_entries(group, from, on_disk, bytes));
        let rows = read.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        match tail_from {
            // The beginning was purged.
            Some(tail_from) if rows.is_empty() && tail_from <= upto => {
                Ok(self.log().in_memory(tail_from, upto).unwrap_or_default())
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
                rows.push(Change::Put(Space::Log, key, encode(&entry)));
                log.last = Some(entry.log_id());
                log.tail.push_back(entry);
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
            while log.tail.back().is_some_and(|newest| newest.index() >= first_gone) {
                log.tail.pop_back();
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
            while log.tail.front().is_some_and(|oldest| oldest.index() <= log_id.index) {
                log.tail.pop_front();
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
