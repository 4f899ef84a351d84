//! The one writer: a thread that makes changes durable, as many as have arrived with one fsync.
//!
//! One, because fjall holds its journal's lock during the fsync: two writers would only wait for each other. A thread
//! of its own, because that wait must not hold up the sockets. While one batch is being written the next gathers in
//! the queue: under load batches grow by themselves, and an idle store answers at once.
//!
//! Changes become visible and durable in the order in which they were handed in, whoever handed them in: what the
//! journal holds after a crash is a beginning of that order.

use super::ledger::{self, Ledger};
use super::store::Store;
use crate::metrics::Metrics;
use crate::planted::{Bug, is_planted};
use fjall::{OwnedWriteBatch, PersistMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Changes in one batch; more wait for the next, so that nobody waits for an endless batch.
const BATCH_CHANGES_MAX: usize = 4096;

/// How often the writer makes room, if it has to: seldom beside its batches, often beside what it makes room for.
const ROOM_EVERY: Duration = Duration::from_millis(5);

/// When an acknowledged message is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before its ack.
    Sync,
    /// At most this time after its ack.
    Interval(Duration),
}

/// A part of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Space {
    /// Messages, by room and timestamp.
    Messages,
    /// Timestamps of messages, by room and id.
    Ids,
    /// Entries of the consensus logs, by group and index.
    Log,
    /// What each consensus group must remember beside its log.
    Raft,
}

/// One change to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a row.
    Put(Space, Vec<u8>, Vec<u8>),
    /// Removes a row.
    Delete(Space, Vec<u8>),
}

/// How much a write promises once it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// It is on disk, as far as `history.durability` asks for that.
    Sync,
    /// It can be read. It is on disk before anything that is written later; for what can be made anew.
    Lazy,
}

/// The write did not happen, and none will any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store has failed")]
pub struct WriteFailed;

/// Called once the writer is done with something, on the writer's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), WriteFailed>) + Send>;

/// Called once, with the reason, when a write has failed.
pub type OnFailure = Box<dyn FnOnce(String) + Send>;

struct Write {
    changes: Vec<Change>,
    flush: Flush,
    done: Done,
}

/// The way to the writer's thread. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Writer {
    queue: Sender<Write>,
    queued_changes: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the thread that writes to `store`.
    ///
    /// # Errors
    /// When the system gives no thread, or the store's newest line cannot be read.
    pub fn start(
        store: Store,
        durability: Durability,
        metrics: Arc<Metrics>,
        on_failure: OnFailure,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, writes) = channel();
        let queued_changes = Arc::new(AtomicUsize::new(0));
        let task = Task {
            ledger: Ledger::resume(&store)?,
            store,
            durability,
            metrics,
            queued_changes: Arc::clone(&queued_changes),
            on_failure: Some(on_failure),
            unsynced_since: None,
            made_room_at: Instant::now(),
        };
        let thread =
            std::thread::Builder::new().name("store-writer".into()).spawn(move || task.run(&writes))?;
        Ok((Self { queue, queued_changes }, thread))
    }

    /// Changes that wait for the writer now.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.queued_changes.load(Ordering::Relaxed)
    }

    /// Makes `changes`, all or none of them, after everything that was handed in before.
    pub fn write(&self, changes: Vec<Change>, flush: Flush, done: Done) {
        let count = changes.len();
        self.queued_changes.fetch_add(count, Ordering::Relaxed);
        if let Err(unsent) = self.queue.send(Write { changes, flush, done }) {
            self.queued_changes.fetch_sub(count, Ordering::Relaxed);
            (unsent.0.done)(Err(WriteFailed));
        }
    }
}

struct Task {
    store: Store,
    ledger: Ledger,
    durability: Durability,
    metrics: Arc<Metrics>,
    queued_changes: Arc<AtomicUsize>,
    /// Taken by the first failure: from then on nothing is written.
    on_failure: Option<OnFailure>,
    /// When the oldest write that was not fsynced was made.
    unsynced_since: Option<Instant>,
    /// When the journal was left alone the last time.
    made_room_at: Instant,
}

impl Task {
    fn run(mut self, writes: &Receiver<Write>) {
        let mut group = Vec::new();
        while self.wait(writes, &mut group) {
            let changes: usize = group.iter().map(|write: &Write| write.changes.len()).sum();
            let outcome = self.write(&mut group, changes);
            self.queued_changes.fetch_sub(changes, Ordering::Relaxed);
            for write in group.drain(..) {
                (write.done)(outcome);
            }
            if self.durability == Durability::Sync {
                // Nobody waits for this one, but the next batch does: a journal can then have holes in its last batch
                // only, wherever the power goes, and whatever else does not read is known to be damage.
                self.sync();
            }
            self.make_room();
        }
        self.sync();
    }

    /// Leaves the journal alone for a moment, if the store asks for it.
    fn make_room(&mut self) {
        if self.made_room_at.elapsed() >= ROOM_EVERY
            && let Some(pause) = self.store.needs_room()
        {
            std::thread::sleep(pause);
            self.made_room_at = Instant::now();
        }
    }

    /// Gathers what has arrived; false when nobody can write any more.
    fn wait(&mut self, writes: &Receiver<Write>, group: &mut Vec<Write>) -> bool {
        loop {
            let first = match self.sync_due_in() {
                None => writes.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => writes.recv_timeout(wait),
            };
            match first {
                Ok(write) => {
                    let mut changes = write.changes.len();
                    group.push(write);
                    while changes < BATCH_CHANGES_MAX {
                        let Ok(write) = writes.try_recv() else { break };
                        changes += write.changes.len();
                        group.push(write);
                    }
                    return true;
                }
                Err(RecvTimeoutError::Timeout) => self.sync(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn sync_due_in(&self) -> Option<Duration> {
        let (Durability::Interval(interval), Some(since)) = (self.durability, self.unsynced_since) else {
            return None;
        };
        Some(interval.saturating_sub(since.elapsed()))
    }

    fn write(&mut self, group: &mut [Write], changes: usize) -> Result<(), WriteFailed> {
        if self.on_failure.is_none() {
            return Err(WriteFailed);
        }
        if changes == 0 {
            return Ok(());
        }
        let start = Instant::now();
        let asked = group.iter().any(|write| write.flush == Flush::Sync && !write.changes.is_empty());
        let mode = match (asked, self.durability) {
            (false, _) => None,
            (true, Durability::Sync) if is_planted(Bug::NoFsync) => Some(PersistMode::Buffer),
            (true, Durability::Sync) => Some(PersistMode::SyncData),
            // Into the page cache at least: a killed process loses nothing then, only a power cut does.
            (true, Durability::Interval(_)) => Some(PersistMode::Buffer),
        };
        let line = self.ledger.next();
        let mut batch = self.store.database.batch().durability(mode);
        batch.insert(&self.store.meta, ledger::ROW, line.encode());
        for change in group.iter_mut().flat_map(|write| std::mem::take(&mut write.changes)) {
            self.store.stage(&mut batch, change);
        }
        match batch.commit() {
            Ok(()) => {
                self.ledger.written(line, &self.store);
                if mode == Some(PersistMode::SyncData) {
                    self.ledger.mark();
                    self.metrics.fsync_seconds.observe(start.elapsed().as_secs_f64());
                    self.metrics.fsync_batch_writes.observe(group.len() as f64);
                } else {
                    self.unsynced_since.get_or_insert(start);
                    if self.sync_due_in() == Some(Duration::ZERO) {
                        self.sync();
                    }
                }
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(WriteFailed)
            }
        }
    }

    fn sync(&mut self) {
        if self.unsynced_since.take().is_none() || is_planted(Bug::NoFsync) {
            return;
        }
        match self.store.database.persist(PersistMode::SyncData) {
            Ok(()) => self.ledger.mark(),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &fjall::Error) {
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(explain(error));
        }
    }
}

impl Store {
    fn stage(&self, batch: &mut OwnedWriteBatch, change: Change) {
        match change {
            Change::Put(space, key, value) => batch.insert(self.keyspace(space), key, value),
            Change::Delete(space, key) => batch.remove(self.keyspace(space), key),
        }
    }
}

/// The database does not say what became of the work that it does in the background.
const POISONED: &str = "work in the background failed, or met damage (if it does so again, move the data folder away in a cluster, or restore it from a copy)";

/// The error in words for a person; the database's own are for its programmers.
fn explain(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Poisoned => POISONED.to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Timestamp;
    use crate::protocol::message::Message;
    use crate::protocol::names::{MessageId, RoomName};
    use crate::storage::rows;
    use crate::storage::store::Range;
    use std::sync::mpsc::sync_channel;

    fn message(timestamp: Timestamp) -> Message {
        let id = MessageId::Client(format!("id-{timestamp}").into());
        Message { timestamp, name: "alice".into(), text: format!("text {timestamp}").into(), id }
    }

    fn start(store: &Store, durability: Durability) -> (Writer, JoinHandle<()>) {
        let metrics = Arc::new(Metrics::new().unwrap());
        Writer::start(store.clone(), durability, metrics, Box::new(|reason| panic!("{reason}"))).unwrap()
    }

    fn append(writer: &Writer, room: &RoomName, messages: &[Message]) {
        let (done, outcome) = sync_channel(1);
        let mut changes = Vec::new();
        rows::of_messages(room.shard(16), room, messages, &mut changes);
        writer.write(changes, Flush::Sync, Box::new(move |result| done.send(result).unwrap()));
        outcome.recv().unwrap().unwrap();
    }

    fn timestamps(store: &Store, room: &RoomName, range: Range) -> (Vec<Timestamp>, bool) {
        let found = store.read(room, range).unwrap();
        (found.messages.iter().map(|message| message.timestamp).collect(), found.more)
    }

    #[test]
    fn what_is_appended_is_found_again_also_after_opening_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (lobby, lob) = (RoomName::parse("lobby").unwrap(), RoomName::parse("lob").unwrap());
        for durability in [Durability::Sync, Durability::Interval(Duration::from_millis(5))] {
            let store = Store::open(folder.path(), 16).unwrap();
            let (writer, thread) = start(&store, durability);
            append(&writer, &lobby, &(1..=10).map(message).collect::<Vec<_>>());
            append(&writer, &lob, &[message(3)]);
            drop(writer);
            thread.join().unwrap();
        }
        let store = Store::open(folder.path(), 16).unwrap();
        let all = Range { after: 0, before: Timestamp::MAX, newest: true, limit: 100 };
        assert_eq!(timestamps(&store, &lobby, all), ((1..=10).collect(), false));
        assert_eq!(timestamps(&store, &lob, all), (vec![3], false));
        assert_eq!(timestamps(&store, &lobby, Range { limit: 3, ..all }), (vec![8, 9, 10], true));
        let oldest = Range { newest: false, limit: 3, ..all };
        assert_eq!(timestamps(&store, &lobby, oldest), (vec![1, 2, 3], true));
        assert_eq!(
            timestamps(&store, &lobby, Range { after: 3, before: 7, ..oldest }),
            (vec![4, 5, 6], false)
        );
        assert_eq!(timestamps(&store, &lobby, Range { after: 3, before: 4, ..all }), (vec![], false));
        assert_eq!(timestamps(&store, &lobby, Range { after: u64::MAX, ..all }), (vec![], false));
        assert_eq!(store.read(&lobby, all).unwrap().messages[0], message(1));
        assert_eq!(store.find(&lobby, &message(4).id).unwrap(), Some(4));
        assert_eq!(store.find(&lob, &message(4).id).unwrap(), None);
    }

    #[test]
    fn a_folder_is_opened_once_and_only_with_its_own_shard_count() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 16).unwrap();
        let refusal = Store::open(folder.path(), 16).err().unwrap().to_string();
        assert!(refusal.contains("in use by another process"), "{refusal}");
        drop(store);
        let refusal = Store::open(folder.path(), 8).err().unwrap().to_string();
        assert!(refusal.contains("cluster.shards = 16, not 8"), "{refusal}");
    }

    #[test]
    fn a_folder_keeps_its_incarnation_and_secret_and_shares_them_with_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let identity = |path| {
            let store = Store::open(path, 16).unwrap();
            (store.incarnation(), store.secret_to_propose().to_owned())
        };
        let first = identity(folder.path());
        assert_eq!(identity(folder.path()), first);
        let other = tempfile::tempdir().unwrap();
        let other = identity(other.path());
        assert!(other.0 != first.0 && other.1 != first.1);
    }
}
