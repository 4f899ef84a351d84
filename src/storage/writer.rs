//! The one writer: a thread that makes messages durable, as many as have arrived with one fsync.
//!
//! One, because fjall holds its journal's lock during the fsync: two writers would only wait for each other. A thread
//! of its own, because that wait must not hold up the sockets. While one batch is being written the next gathers in
//! the queue: under load batches grow by themselves, and an idle store answers at once.

use super::keys;
use super::record;
use super::store::Store;
use crate::metrics::Metrics;
use crate::protocol::message::Message;
use crate::protocol::names::RoomName;
use fjall::PersistMode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Messages in one batch; more wait for the next, so that no ack waits for an endless batch.
const BATCH_MESSAGES_MAX: usize = 2048;

/// Messages that may wait for the writer; beyond it rooms refuse more.
const QUEUED_MESSAGES_MAX: usize = 64 * 1024;

/// When an acknowledged message is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before its ack.
    Sync,
    /// At most this time after its ack.
    Interval(Duration),
}

/// The write did not happen, and none will any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store has failed")]
pub struct WriteFailed;

/// Called once the writer is done with something, on the writer's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<(), WriteFailed>) + Send>;

/// Called once, with the reason, when a write has failed.
pub type OnFailure = Box<dyn FnOnce(String) + Send>;

struct Append {
    room: RoomName,
    messages: Vec<Message>,
    done: Done,
}

/// The way to the writer's thread. It ends when the last clone is dropped.
#[derive(Clone)]
pub struct Writer {
    queue: Sender<Append>,
    queued_messages: Arc<AtomicUsize>,
}

impl Writer {
    /// Starts the thread that writes to `store`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        store: Store,
        durability: Durability,
        metrics: Arc<Metrics>,
        on_failure: OnFailure,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, appends) = channel();
        let queued_messages = Arc::new(AtomicUsize::new(0));
        let task = Task {
            store,
            durability,
            metrics,
            queued_messages: Arc::clone(&queued_messages),
            on_failure: Some(on_failure),
            unsynced_since: None,
        };
        let thread =
            std::thread::Builder::new().name("store-writer".into()).spawn(move || task.run(&appends))?;
        Ok((Self { queue, queued_messages }, thread))
    }

    /// Whether so much waits already that a room should refuse to take more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queued_messages.load(Ordering::Relaxed) >= QUEUED_MESSAGES_MAX
    }

    /// Makes `messages` of one room durable, in order and after everything appended before. Without messages it only
    /// waits for what came before.
    pub fn append(&self, room: RoomName, messages: Vec<Message>, done: Done) {
        self.queued_messages.fetch_add(messages.len(), Ordering::Relaxed);
        if let Err(unsent) = self.queue.send(Append { room, messages, done }) {
            (unsent.0.done)(Err(WriteFailed));
        }
    }
}

struct Task {
    store: Store,
    durability: Durability,
    metrics: Arc<Metrics>,
    queued_messages: Arc<AtomicUsize>,
    /// Taken by the first failure: from then on nothing is written.
    on_failure: Option<OnFailure>,
    /// When the oldest write that was not fsynced was made.
    unsynced_since: Option<Instant>,
}

impl Task {
    fn run(mut self, appends: &Receiver<Append>) {
        let mut group = Vec::new();
        while self.wait(appends, &mut group) {
            let messages: usize = group.iter().map(|append: &Append| append.messages.len()).sum();
            let outcome = self.write(&group, messages);
            self.queued_messages.fetch_sub(messages, Ordering::Relaxed);
            for append in group.drain(..) {
                (append.done)(outcome);
            }
        }
        self.sync();
    }

    /// Gathers what has arrived; false when nobody can append any more.
    fn wait(&mut self, appends: &Receiver<Append>, group: &mut Vec<Append>) -> bool {
        loop {
            let first = match self.sync_due_in() {
                None => appends.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => appends.recv_timeout(wait),
            };
            match first {
                Ok(append) => {
                    let mut messages = append.messages.len();
                    group.push(append);
                    while messages < BATCH_MESSAGES_MAX {
                        let Ok(append) = appends.try_recv() else { break };
                        messages += append.messages.len();
                        group.push(append);
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

    fn write(&mut self, group: &[Append], messages: usize) -> Result<(), WriteFailed> {
        if self.on_failure.is_none() {
            return Err(WriteFailed);
        }
        if messages == 0 {
            return Ok(());
        }
        let start = Instant::now();
        let mode = match self.durability {
            Durability::Sync => Some(PersistMode::SyncData),
            // Into the page cache at least: a killed process loses nothing then, only a power cut does.
            Durability::Interval(_) => Some(PersistMode::Buffer),
        };
        let mut batch = self.store.database.batch().durability(mode);
        for Append { room, messages, .. } in group {
            let shard = self.store.shard(room);
            for message in messages {
                let key = keys::message(shard, room, message.timestamp);
                batch.insert(&self.store.messages, key, record::encode(message));
                let id = keys::id(shard, room, &message.id);
                batch.insert(&self.store.ids, id, message.timestamp.to_be_bytes());
            }
        }
        match batch.commit() {
            Ok(()) => {
                self.metrics.fsync_seconds.observe(start.elapsed().as_secs_f64());
                self.metrics.append_batch_messages.observe(messages as f64);
                if self.durability != Durability::Sync {
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
        if self.unsynced_since.take().is_some()
            && let Err(error) = self.store.database.persist(PersistMode::SyncData)
        {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &fjall::Error) {
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(explain(error));
        }
    }
}

/// The error in words for a person; the database's own are for its programmers.
fn explain(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write in the background failed".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Timestamp;
    use crate::protocol::names::MessageId;
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

    fn append(writer: &Writer, room: &RoomName, messages: Vec<Message>) {
        let (done, outcome) = sync_channel(1);
        writer.append(room.clone(), messages, Box::new(move |result| done.send(result).unwrap()));
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
            append(&writer, &lobby, (1..=10).map(message).collect());
            append(&writer, &lob, vec![message(3)]);
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
    fn the_secret_of_private_ids_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let id = Store::open(folder.path(), 16).unwrap().secret().issue([1; 16]);
        assert!(Store::open(folder.path(), 16).unwrap().secret().verify(&id));
        let other = tempfile::tempdir().unwrap();
        assert!(!Store::open(other.path(), 16).unwrap().secret().verify(&id));
    }
}
