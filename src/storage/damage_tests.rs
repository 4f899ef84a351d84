//! Whatever happens to the files of a folder while nobody looks: it is refused, or everything is there, or reading says
//! that something is not. Never does a row vanish or change in silence.

use super::keys;
use super::record;
use super::store::{ReadError, Store};
use super::writer::{Change, Durability, Flush, Space, Writer};
use crate::metrics::Metrics;
use crate::protocol::message::Message;
use crate::protocol::names::{MessageId, RoomName, ShardId};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use tempfile::TempDir;

const SHARDS: u16 = 4;
const GROUP: u16 = 2;
const SPACES: [Space; 4] = [Space::Messages, Space::Ids, Space::Log, Space::Raft];

/// All rows of a store, by keyspace and key.
type Rows = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// Writes `count` batches, as the log and the history do.
fn write(store: &Store, batches: std::ops::Range<u64>) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (writer, thread) =
        Writer::start(store.clone(), Durability::Sync, metrics, Box::new(|reason| panic!("{reason}")))
            .unwrap();
    let room = RoomName::parse("lobby").unwrap();
    for number in batches {
        let id = MessageId::Client(format!("id {number}").into());
        let text = format!("text {number} ").repeat(5);
        let message = Message { timestamp: number, name: "alice".into(), text: text.into(), id };
        let shard = ShardId(1);
        let mut changes = vec![
            Change::Put(Space::Log, keys::log(GROUP, number), record::encode(&message)),
            Change::Put(Space::Raft, keys::raft(GROUP, 2), number.to_be_bytes().to_vec()),
            Change::Put(Space::Messages, keys::message(shard, &room, number), record::encode(&message)),
            Change::Put(Space::Ids, keys::id(shard, &room, &message.id), number.to_be_bytes().to_vec()),
        ];
        if number > 20 {
            changes.push(Change::Delete(Space::Log, keys::log(GROUP, number - 20)));
        }
        let (done, outcome) = sync_channel(1);
        writer.write(changes, Flush::Sync, Box::new(move |result| done.send(result).unwrap()));
        outcome.recv().unwrap().unwrap();
    }
    drop(writer);
    thread.join().unwrap();
}

/// Reads all there is, in every way in which it is read.
fn read_all(store: &Store) -> Result<Rows, ReadError> {
    let mut rows = Rows::new();
    for space in SPACES {
        for row in store.keyspace(space).iter() {
            let (key, value) = row.into_inner()?;
            let found = store.keyspace(space).get(&key)?;
            assert_eq!(found.as_deref(), Some(&*value), "found by its key as well");
            rows.insert((space as u8, key.to_vec()), value.to_vec());
        }
    }
    let copied = store.copy_rows(ShardId(1), &None, usize::MAX)?;
    assert_eq!(
        copied.len(),
        rows.keys()
            .filter(|(space, _)| *space == Space::Messages as u8 || *space == Space::Ids as u8)
            .count()
    );
    let newest = store.last_log_entry(GROUP)?.map(|(index, _)| index);
    assert_eq!(newest, store.log_indexes(GROUP, 0, u64::MAX)?.last().copied());
    Ok(rows)
}

/// A closed folder with rows in tables and in a journal, and what is in it.
fn prepared() -> (TempDir, Rows) {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = Store::open(folder.path(), SHARDS).unwrap();
        write(&store, round * 150 + 1..(round + 1) * 150);
        if round < 2 {
            for space in SPACES {
                store.keyspace(space).rotate_memtable_and_wait().unwrap();
            }
        }
        if round == 0 {
            store.meta.rotate_memtable_and_wait().unwrap();
        }
    }
    // What is reserved is of no use here and slow to copy.
    let journal = folder.path().join("0.jnl");
    let bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    OpenOptions::new().write(true).open(&journal).unwrap().set_len(end as u64).unwrap();
    let rows = read_all(&Store::open(folder.path(), SHARDS).unwrap()).unwrap();
    assert!(rows.len() > 900, "{}", rows.len());
    (folder, rows)
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All files with anything in them, but for the lock and the mark, without which nothing is lost.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with("lock") && !path.ends_with("mark") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// How a damaged copy of the folder was met.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Whole,
    FoundOnReading,
    Wrong(String),
}

fn outcome(folder: &Path, rows: &Rows) -> Outcome {
    let opened = catch_unwind(AssertUnwindSafe(|| Store::open(folder, SHARDS)));
    match opened {
        Err(_) => Outcome::Wrong("a panic on opening".into()),
        Ok(Err(_)) => Outcome::Refused,
        Ok(Ok(store)) => match catch_unwind(AssertUnwindSafe(|| read_all(&store))) {
            Err(_) => Outcome::Wrong("a panic or a contradiction on reading".into()),
            Ok(Err(_)) => Outcome::FoundOnReading,
            Ok(Ok(found)) if found == *rows => Outcome::Whole,
            Ok(Ok(found)) => Outcome::Wrong(format!("{} of {} rows", found.len(), rows.len())),
        },
    }
}

/// Damages a copy of each file in several ways and returns how often each was met how; fails if any was met wrongly.
fn damage(times: usize, mut change: impl FnMut(&Path, usize)) -> BTreeMap<String, usize> {
    let (folder, rows) = prepared();
    let mut met = BTreeMap::new();
    let mut wrong = Vec::new();
    for path in files(folder.path()) {
        let name = path.strip_prefix(folder.path()).unwrap();
        for time in 0..times {
            let copy = tempfile::tempdir().unwrap();
            copy_all(folder.path(), copy.path());
            change(&copy.path().join(name), time);
            match outcome(copy.path(), &rows) {
                Outcome::Wrong(what) => wrong.push(format!("{} ({time}): {what}", name.display())),
                fine => *met.entry(format!("{fine:?}")).or_default() += 1,
            }
        }
    }
    println!("{met:?}");
    assert!(wrong.is_empty(), "{met:?}, but\n{}", wrong.join("\n"));
    met
}

#[test]
fn a_file_that_is_missing_is_noticed() {
    damage(1, |path, _| fs::remove_file(path).unwrap());
}

#[test]
fn a_file_that_was_emptied_or_cut_is_noticed() {
    damage(4, |path, time| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length * time as u64 / 4).unwrap();
        if time % 2 == 1 {
            file.set_len(length).unwrap();
        }
    });
}

#[test]
fn flipped_bits_are_noticed() {
    const TIMES: u64 = 24;
    let mut mixed = getrandom::u64().unwrap();
    println!("starts with {mixed}");
    damage(TIMES as usize, |path, _| {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (mixed >> 20) % file.metadata().unwrap().len();
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (mixed >> 61)], place).unwrap();
    });
}
