//! Opens the data folder and reads from it. Calls may block on the disk: none belongs on an async thread, but for
//! [`Store::find`], which a bloom filter in memory answers unless the id is really there.

use super::folder;
use super::keys;
use super::record::{self, RecordError};
use super::writer::Space;
use crate::protocol::message::Message;
use crate::protocol::names::{MessageId, RoomName, ShardId};
use crate::protocol::{BACKLOG_DEFAULT, Timestamp};
use fjall::compaction::Leveled;
use fjall::config::{FilterPolicy, PinningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The layout of keyspaces and keys. A folder of another format is refused, not guessed at.
///
/// Format 1 had neither the log nor an incarnation: whatever it held was one node's alone. It is brought up to date on
/// opening.
const FORMAT: u32 = 2;

/// The oldest format that is brought up to date.
const FORMAT_OLDEST: u32 = 1;

/// Memory for blocks read from disk, in bytes.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// Rows that a keyspace gathers in memory before they are to become a table on disk, in bytes. In memory they take about
/// twice as much.
const GATHERED_BYTES: u64 = 6 * 1024 * 1024;

/// What all keyspaces may have gathered before the writer makes room for the thread that makes tables: a little more
/// than what the three busy ones may have.
const ROOM_FROM_BYTES: u64 = 4 * GATHERED_BYTES;

/// The least room: about what it takes to wake a thread. A millisecond more for each [`GATHERED_BYTES`] beyond.
const ROOM: Duration = Duration::from_micros(200);

/// So many tables of newest rows are merged at once into what lies below them. The fewer, the more often that is written
/// again.
const NEWEST_TABLES: u8 = 8;

/// The size of a table below. A merge takes several of them at once, and while it runs no other table is made.
const TABLE_BYTES: u64 = 8 * 1024 * 1024;

const META_FORMAT: &str = "format";
const META_SHARDS: &str = "shards";
const META_SECRET: &str = "private_id_secret";
const META_INCARNATION: &str = "incarnation";

/// The part of a shard's state at which a copy goes on: the last row that was copied, or the beginning.
pub type Position = Option<(Space, Vec<u8>)>;

/// A row as it is copied from node to node.
pub type Row = (Space, Vec<u8>, Vec<u8>);

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "data folder {0} is in use by another process; stop that one or choose another folder with --data"
    )]
    Locked(PathBuf),
    /// The file system refuses.
    #[error("data folder {path} cannot be used: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
    /// What is in it is damaged.
    #[error(
        "data folder {path} is damaged: {detail}; in a cluster move it away, and the other nodes teach this one anew; otherwise restore it from a copy, or move it away to start with an empty history"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// Written by a program with another format.
    #[error(
        "data folder {path} has format {found}, this version reads formats {FORMAT_OLDEST} to {FORMAT}; use the version that wrote it"
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Made with another number of shards.
    #[error(
        "data folder {path} was made with cluster.shards = {found}, not {wanted}; the number cannot be changed"
    )]
    Shards {
        /// The folder.
        path: PathBuf,
        /// The number it was made with.
        found: u16,
        /// The number asked for.
        wanted: u16,
    },
    /// No randomness for the secret.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Why something stored cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database's own error.
    #[error("the store cannot be read: {0}")]
    Store(#[from] fjall::Error),
    /// A row that is not what was written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Which messages of a room to read.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Exclusive lower end.
    pub after: Timestamp,
    /// Exclusive upper end.
    pub before: Timestamp,
    /// Which end matters when there are too many.
    pub newest: bool,
    /// Most messages to return.
    pub limit: usize,
}

/// Messages in order, and whether the range holds more.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Whether `limit` left any out.
    pub more: bool,
}

/// Called with the reason when something stored cannot be read.
pub type OnDamage = Box<dyn Fn(String) + Send + Sync>;

/// An open data folder. Clones share it.
#[derive(Clone)]
pub struct Store {
    path: Arc<Path>,
    pub(super) database: Database,
    pub(super) meta: Keyspace,
    pub(super) messages: Keyspace,
    pub(super) ids: Keyspace,
    log: Keyspace,
    raft: Keyspace,
    shards: u16,
    secret: [u8; 32],
    incarnation: u64,
    on_damage: Arc<OnceLock<OnDamage>>,
}

impl Store {
    /// Opens the folder at `path`, or makes it.
    ///
    /// # Errors
    /// When the folder is in use, cannot be written, is damaged, or was made with other settings.
    pub fn open(path: &Path, shards: u16) -> Result<Self, OpenError> {
        let explain = |error| explain(path, error);
        std::fs::create_dir_all(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        let checked = folder::check(path)?;
        let database =
            Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1).open().map_err(explain)?;
        let meta = database.keyspace("meta", KeyspaceCreateOptions::default).map_err(explain)?;
        checked.check_opened(path, &meta)?;
        if meta.get(META_FORMAT).map_err(explain)?.is_none() {
            // The settings are durable before any other row can be: without them, messages are what is left of a
            // folder that lost some of its files.
            if database.keyspace_exists("messages") {
                let detail = "it holds messages but not its settings".to_owned();
                return Err(OpenError::Damaged { path: path.to_owned(), detail });
            }
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(OpenError::Random)?;
            let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&meta, META_FORMAT, FORMAT.to_be_bytes());
            batch.insert(&meta, META_SHARDS, shards.to_be_bytes());
            batch.insert(&meta, META_SECRET, secret);
            batch.insert(&meta, META_INCARNATION, new_incarnation()?.to_be_bytes());
            batch.commit().map_err(explain)?;
        }
        let found = u32::from_be_bytes(setting(&meta, META_FORMAT, path)?);
        if !(FORMAT_OLDEST..=FORMAT).contains(&found) {
            return Err(OpenError::Format { path: path.to_owned(), found });
        }
        if found < FORMAT {
            let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&meta, META_FORMAT, FORMAT.to_be_bytes());
            batch.insert(&meta, META_INCARNATION, new_incarnation()?.to_be_bytes());
            batch.commit().map_err(explain)?;
        }
        let found = u16::from_be_bytes(setting(&meta, META_SHARDS, path)?);
        if found != shards {
            return Err(OpenError::Shards { path: path.to_owned(), found, wanted: shards });
        }
        let secret = setting(&meta, META_SECRET, path)?;
        let incarnation = u64::from_be_bytes(setting(&meta, META_INCARNATION, path)?);
        let parts = ["messages", "ids", "log", "raft"];
        if let Some(name) =
            parts.into_iter().find(|name| checked.is_used() && !database.keyspace_exists(name))
        {
            let detail = format!("its part \"{name}\" is missing");
            return Err(OpenError::Damaged { path: path.to_owned(), detail });
        }
        let messages = database.keyspace("messages", options).map_err(explain)?;
        let ids = database.keyspace("ids", id_options).map_err(explain)?;
        let log = database.keyspace("log", options).map_err(explain)?;
        let raft = database.keyspace("raft", options).map_err(explain)?;
        folder::keep_names(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        let on_damage = Arc::default();
        let path = path.into();
        Ok(Self { path, database, meta, messages, ids, log, raft, shards, secret, incarnation, on_damage })
    }

    /// Calls `on_damage` whenever something cannot be read from now on. The first that is given stays.
    pub fn watch(&self, on_damage: OnDamage) {
        let _ = self.on_damage.set(on_damage);
    }

    /// Hands on what `read` returns; whoever watches is told of an error, whatever the reader makes of it.
    fn watched<T>(&self, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        read().inspect_err(|error| {
            if let Some(on_damage) = self.on_damage.get() {
                on_damage(folder::explain(error));
            }
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this folder from every other, for ever: random, made with the folder, never 0.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The key of private ids that this node proposes, should it found a cluster.
    #[must_use]
    pub fn secret_to_propose(&self) -> &[u8; 32] {
        &self.secret
    }

    /// How many shards the folder was made with.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// How long the writer should leave the journal alone before its next batch, if at all.
    ///
    /// The thread that makes tables of gathered rows needs the journal for a moment, and a writer that takes it again as
    /// soon as it lets go of it would keep it waiting for seconds, in which rows gather in memory without bound. The
    /// further behind that thread is, the longer: what is written meanwhile waits in front of its ack.
    pub(super) fn needs_room(&self) -> Option<Duration> {
        let behind = self.database.write_buffer_size().checked_sub(ROOM_FROM_BYTES)?;
        Some(ROOM + Duration::from_micros(behind * 1000 / GATHERED_BYTES))
    }

    pub(super) fn keyspace(&self, space: Space) -> &Keyspace {
        match space {
            Space::Messages => &self.messages,
            Space::Ids => &self.ids,
            Space::Log => &self.log,
            Space::Raft => &self.raft,
        }
    }

    /// What a consensus group remembers under `kind`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn raft_row(&self, group: u16, kind: u8) -> Result<Option<Vec<u8>>, ReadError> {
        self.watched(|| Ok(self.raft.get(keys::raft(group, kind))?.map(|row| row.to_vec())))
    }

    /// The log entries `from..=upto` of a group that are there, oldest first; stops once `bytes` were read, but never
    /// before the first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn log_entries(
        &self,
        group: u16,
        from: u64,
        upto: u64,
        bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, ReadError> {
        self.watched(|| {
            let mut entries = Vec::new();
            if from > upto {
                return Ok(entries);
            }
            let mut read = 0;
            for row in self.log.range(keys::log(group, from)..=keys::log(group, upto)) {
                let (key, value) = row.into_inner()?;
                read += value.len();
                if read > bytes && !entries.is_empty() {
                    break;
                }
                entries.push((keys::log_index_of(&key).ok_or(RecordError::Damaged)?, value.to_vec()));
            }
            Ok(entries)
        })
    }

    /// The indexes of a group's log entries within `from..=upto`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn log_indexes(&self, group: u16, from: u64, upto: u64) -> Result<Vec<u64>, ReadError> {
        self.watched(|| {
            if from > upto {
                return Ok(Vec::new());
            }
            let rows = self.log.range(keys::log(group, from)..=keys::log(group, upto));
            rows.map(|row| Ok(keys::log_index_of(&row.key()?).ok_or(RecordError::Damaged)?)).collect()
        })
    }

    /// The newest log entry of a group.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn last_log_entry(&self, group: u16) -> Result<Option<(u64, Vec<u8>)>, ReadError> {
        self.watched(|| {
            let mut rows = self.log.range(keys::log(group, 0)..=keys::log(group, u64::MAX)).rev();
            let Some(row) = rows.next() else { return Ok(None) };
            let (key, value) = row.into_inner()?;
            Ok(Some((keys::log_index_of(&key).ok_or(RecordError::Damaged)?, value.to_vec())))
        })
    }

    /// The next rows of a shard's history behind `position`, about `bytes` of them; none at its end.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn copy_rows(
        &self,
        shard: ShardId,
        position: &Position,
        bytes: usize,
    ) -> Result<Vec<Row>, ReadError> {
        self.watched(|| {
            let mut found: Vec<Row> = Vec::new();
            let mut read = 0;
            for space in [Space::Messages, Space::Ids] {
                let lower = match position {
                    Some((at, _)) if *at == Space::Ids && space == Space::Messages => continue,
                    Some((at, key)) if *at == space => Bound::Excluded(key.clone()),
                    _ => Bound::Included(shard.0.to_be_bytes().to_vec()),
                };
                let upper = match shard.0.checked_add(1) {
                    Some(next) => Bound::Excluded(next.to_be_bytes().to_vec()),
                    None => Bound::Unbounded,
                };
                for row in self.keyspace(space).range::<Vec<u8>, _>((lower, upper)) {
                    let (key, value) = row.into_inner()?;
                    read += key.len() + value.len();
                    found.push((space, key.to_vec(), value.to_vec()));
                    if read >= bytes {
                        return Ok(found);
                    }
                }
            }
            Ok(found)
        })
    }

    /// The shard of a room.
    #[must_use]
    pub fn shard(&self, room: &RoomName) -> ShardId {
        room.shard(self.shards)
    }

    /// Messages of `room` within `range`, oldest first.
    ///
    /// # Errors
    /// When the store or one of its rows cannot be read.
    pub fn read(&self, room: &RoomName, range: Range) -> Result<Found, ReadError> {
        self.watched(|| {
            let shard = self.shard(room);
            let mut messages = Vec::new();
            // Nothing lies strictly between these; the database would take such a range for a mistake.
            if range.after >= range.before.saturating_sub(1) {
                return Ok(Found { messages, more: false });
            }
            let lower = keys::message(shard, room, range.after + 1);
            let upper = keys::message(shard, room, range.before - 1);
            let rows = self.messages.range(lower..=upper);
            // One row more than asked for tells whether there are more.
            let wanted = range.limit.saturating_add(1);
            let rows: Vec<_> =
                if range.newest { rows.rev().take(wanted).collect() } else { rows.take(wanted).collect() };
            let more = rows.len() > range.limit;
            for row in rows.into_iter().take(range.limit) {
                let (key, value) = row.into_inner()?;
                let timestamp = keys::timestamp_of(&key).ok_or(RecordError::Damaged)?;
                messages.push(record::decode(timestamp, &value)?);
            }
            if range.newest {
                messages.reverse();
            }
            Ok(Found { messages, more })
        })
    }

    /// The newest messages of `room`, as many as a new session is shown.
    ///
    /// # Errors
    /// When the store or one of its rows cannot be read.
    pub fn read_newest(&self, room: &RoomName) -> Result<Found, ReadError> {
        self.read(room, Range { after: 0, before: Timestamp::MAX, newest: true, limit: BACKLOG_DEFAULT })
    }

    /// The timestamp of the message with this id, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn find(&self, room: &RoomName, id: &MessageId) -> Result<Option<Timestamp>, ReadError> {
        self.watched(|| {
            let row = self.ids.get(keys::id(self.shard(room), room, id))?;
            match row {
                None => Ok(None),
                Some(row) => {
                    let bytes: [u8; 8] = (*row).try_into().map_err(|_| RecordError::Damaged)?;
                    Ok(Some(Timestamp::from_be_bytes(bytes)))
                }
            }
        })
    }
}

fn new_incarnation() -> Result<u64, OpenError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(OpenError::Random)?;
    Ok(u64::from_be_bytes(bytes).max(1))
}

/// What a keyspace is made with, and keeps for as long as the folder lives.
fn options() -> KeyspaceCreateOptions {
    let merging = Leveled::default().with_l0_threshold(NEWEST_TABLES).with_table_target_size(TABLE_BYTES);
    KeyspaceCreateOptions::default().max_memtable_size(GATHERED_BYTES).compaction_strategy(Arc::new(merging))
}

/// The rows that find messages by id are asked for almost only in vain: the filters must stay in memory.
fn id_options() -> KeyspaceCreateOptions {
    options()
        .filter_policy(FilterPolicy::all(fjall::config::FilterPolicyEntry::Bloom(
            fjall::config::BloomConstructionPolicy::BitsPerKey(10.0),
        )))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .index_block_pinning_policy(PinningPolicy::all(true))
}

fn setting<const LEN: usize>(meta: &Keyspace, key: &str, path: &Path) -> Result<[u8; LEN], OpenError> {
    let value = meta.get(key).map_err(|error| explain(path, error))?;
    value.and_then(|value| <[u8; LEN]>::try_from(&*value).ok()).ok_or_else(|| OpenError::Damaged {
        path: path.to_owned(),
        detail: format!("its setting \"{key}\" is missing or has another length"),
    })
}

fn explain(path: &Path, error: fjall::Error) -> OpenError {
    let path = path.to_owned();
    match error {
        fjall::Error::Locked => OpenError::Locked(path),
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            OpenError::Io { path, source }
        }
        fjall::Error::Storage(error) => {
            let detail = format!("a part of the database is not what was written there ({error:?})");
            OpenError::Damaged { path, detail }
        }
        other => OpenError::Damaged { path, detail: format!("the database says {other}") },
    }
}
