//! Whatever happens to the files of a folder while nobody looks: it is refused, or everything is there, or reading says
//! that something is not. Never does a row vanish or change in silence.

use super::batch;
use super::keys;
use super::record;
use super::store::{ReadError, Store};
use super::writer::{Change, Durability, Flush, Space, Writer};
use crate::metrics::Metrics;
use crate::protocol::message::Message;
use crate::protocol::names::{MessageId, RoomName, ShardId};
use std::collections::{BTreeMap, BTreeSet};
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
    let end = end_of(&fs::read(&journal).unwrap());
    OpenOptions::new().write(true).open(&journal).unwrap().set_len(end as u64).unwrap();
    let rows = read_all(&Store::open(folder.path(), SHARDS).unwrap()).unwrap();
    assert!(rows.len() > 900, "{}", rows.len());
    (folder, rows)
}

/// A closed folder whose journal was full twice, so that there are three; nothing lies in tables but what `flush` moves
/// there once the first is full.
fn with_three_journals(flush: impl Fn(&Store)) -> (TempDir, Rows) {
    let folder = tempfile::tempdir().unwrap();
    let mut ends = Vec::new();
    for round in 0..3 {
        let store = Store::open(folder.path(), SHARDS).unwrap();
        write(&store, round * 40 + 1..(round + 1) * 40 + 1);
        if round == 0 {
            flush(&store);
        }
        ends.push(end_of(&fs::read(folder.path().join("0.jnl")).unwrap()));
    }
    let bytes = fs::read(folder.path().join("0.jnl")).unwrap();
    for (number, range) in [0..ends[0], ends[0]..ends[1], ends[1]..ends[2]].into_iter().enumerate() {
        fs::write(folder.path().join(format!("{number}.jnl")), &bytes[range]).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    copy_all(folder.path(), copy.path());
    let rows = read_all(&Store::open(copy.path(), SHARDS).unwrap()).unwrap();
    assert_eq!(rows.len(), 20 + 1 + 2 * 120);
    (folder, rows)
}

fn flush_all(store: &Store) {
    for keyspace in SPACES.map(|space| store.keyspace(space)).into_iter().chain([&store.meta]) {
        keyspace.rotate_memtable_and_wait().unwrap();
    }
}

/// Where the last batch of a journal ends.
fn end_of(bytes: &[u8]) -> usize {
    starts(bytes).pop().unwrap()
}

/// Where batches begin, and where the last ends.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    while let Ok(batch) = batch::read(&bytes[starts[starts.len() - 1]..], &mut BTreeSet::new()) {
        starts.push(starts[starts.len() - 1] + batch.len);
    }
    starts
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
            let before = files(copy.path());
            let outcome = outcome(copy.path(), &rows);
            if outcome == Outcome::Refused && files(copy.path()) != before {
                wrong.push(format!("{} ({time}): refused, but not left alone", name.display()));
            }
            match outcome {
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

/// All files and what is in them, but for the mark and the lock.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(folder).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Changes a copy of the folder and says how it is met.
fn met(folder: &TempDir, rows: &Rows, change: impl FnOnce(&Path)) -> Outcome {
    let copy = tempfile::tempdir().unwrap();
    copy_all(folder.path(), copy.path());
    change(copy.path());
    let before = contents(copy.path());
    let outcome = outcome(copy.path(), rows);
    if outcome == Outcome::Refused {
        assert!(before == contents(copy.path()), "a folder that is refused stays as it is");
    }
    outcome
}

#[test]
fn a_journal_that_is_missing_or_empty_is_noticed() {
    let (folder, rows) = with_three_journals(|_| ());
    assert_eq!(met(&folder, &rows, |_| ()), Outcome::Whole);
    for number in 0..3 {
        let name = format!("{number}.jnl");
        let removed = met(&folder, &rows, |copy| fs::remove_file(copy.join(&name)).unwrap());
        assert_eq!(removed, Outcome::Refused, "without {name}");
        let emptied = met(&folder, &rows, |copy| fs::write(copy.join(&name), []).unwrap());
        assert_eq!(emptied, Outcome::Refused, "with an empty {name}");
    }
}

#[test]
fn a_journal_whose_last_batch_is_gone_is_noticed() {
    let (folder, rows) = with_three_journals(|_| ());
    for number in 0..3 {
        let cut = met(&folder, &rows, |copy| {
            let path = copy.join(format!("{number}.jnl"));
            let bytes = fs::read(&path).unwrap();
            let starts = starts(&bytes);
            fs::write(&path, &bytes[..starts[starts.len() - 2]]).unwrap();
        });
        assert_eq!(cut, Outcome::Refused, "journal {number}");
    }
    let torn = met(&folder, &rows, |copy| {
        let bytes = fs::read(copy.join("2.jnl")).unwrap();
        fs::write(copy.join("2.jnl"), &bytes[..bytes.len() - 3]).unwrap();
    });
    assert_eq!(torn, Outcome::Refused, "as if it had never been finished");
}

#[test]
fn a_batch_that_is_gone_from_the_midst_of_a_journal_is_noticed() {
    let (folder, rows) = with_three_journals(|_| ());
    for gone in [1, 7, 20] {
        let cut = met(&folder, &rows, |copy| {
            let path = copy.join("1.jnl");
            let mut bytes = fs::read(&path).unwrap();
            let starts = starts(&bytes);
            bytes.drain(starts[gone]..starts[gone + 1]);
            fs::write(&path, bytes).unwrap();
        });
        assert_eq!(cut, Outcome::Refused, "batch {gone}");
    }
}

#[test]
fn a_damaged_journal_is_noticed_also_if_tables_have_its_rows() {
    let (folder, rows) = with_three_journals(flush_all);
    let emptied = met(&folder, &rows, |copy| fs::write(copy.join("0.jnl"), []).unwrap());
    assert_eq!(emptied, Outcome::Refused);
    let gone = met(&folder, &rows, |copy| {
        let mut bytes = fs::read(copy.join("0.jnl")).unwrap();
        let starts = starts(&bytes);
        bytes.drain(starts[7]..starts[8]);
        fs::write(copy.join("0.jnl"), bytes).unwrap();
    });
    assert_eq!(gone, Outcome::Refused);
}

#[test]
fn a_keyspace_that_is_gone_with_all_its_files_is_noticed() {
    let (folder, rows) = with_three_journals(|_| ());
    flush_all(&Store::open(folder.path(), SHARDS).unwrap());
    // As it is when the journal has just been changed: nothing in it names a keyspace.
    fs::write(folder.path().join("2.jnl"), []).unwrap();
    assert_eq!(met(&folder, &rows, |_| ()), Outcome::Whole);
    for keyspace in 0..=5 {
        let copy = tempfile::tempdir().unwrap();
        copy_all(folder.path(), copy.path());
        fs::remove_dir_all(copy.path().join("keyspaces").join(keyspace.to_string())).unwrap();
        assert_eq!(outcome(copy.path(), &rows), Outcome::Refused, "without keyspace {keyspace}");
    }
}

#[test]
fn an_old_journal_may_go_once_all_its_rows_are_in_tables() {
    let (folder, rows) = with_three_journals(flush_all);
    let removed = met(&folder, &rows, |copy| fs::remove_file(copy.join("0.jnl")).unwrap());
    assert_eq!(removed, Outcome::Whole);
    // The power may bring back one that was removed before another.
    let (folder, rows) = with_three_journals(|_| ());
    let oldest = fs::read(folder.path().join("0.jnl")).unwrap();
    let store = Store::open(folder.path(), SHARDS).unwrap();
    flush_all(&store);
    drop(store);
    assert!(!folder.path().join("1.jnl").exists(), "the database has removed it");
    assert_eq!(met(&folder, &rows, |_| ()), Outcome::Whole);
    assert_eq!(met(&folder, &rows, |copy| fs::write(copy.join("0.jnl"), &oldest).unwrap()), Outcome::Whole);
}

#[test]
fn a_mark_that_is_torn_or_missing_or_older_is_no_reason_to_refuse() {
    let (folder, rows) = with_three_journals(|_| ());
    assert_eq!(met(&folder, &rows, |copy| fs::remove_file(copy.join("mark")).unwrap()), Outcome::Whole);
    for torn in [&[] as &[u8], &[1; 16], &[0; 16], &[7; 9]] {
        assert_eq!(met(&folder, &rows, |copy| fs::write(copy.join("mark"), torn).unwrap()), Outcome::Whole);
    }
}

#[test]
fn the_order_of_batches_cannot_be_changed() {
    let (folder, rows) = with_three_journals(|_| ());
    for (name, bit) in [("0.jnl", 3), ("1.jnl", 0), ("1.jnl", 40), ("2.jnl", 2)] {
        for batch in [0, 1, 10] {
            let moved = met(&folder, &rows, |copy| {
                let path = copy.join(name);
                let mut bytes = fs::read(&path).unwrap();
                let seqno = starts(&bytes)[batch] + 5;
                bytes[seqno + bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, bytes).unwrap();
            });
            println!("{name} {batch} {bit}: {moved:?}");
            assert!(matches!(moved, Outcome::Refused | Outcome::Whole), "{name}: {batch}, {moved:?}");
        }
    }
}

#[test]
fn a_table_that_claims_to_have_too_many_parts_is_refused() {
    let (folder, rows) = prepared();
    let tables: Vec<PathBuf> =
        files(folder.path()).into_iter().filter(|path| path.parent().unwrap().ends_with("tables")).collect();
    for path in [&tables[0], &tables[tables.len() - 1]] {
        let name = path.strip_prefix(folder.path()).unwrap();
        for bit in 0..32 {
            let claimed = met(&folder, &rows, |copy| {
                let mut bytes = fs::read(copy.join(name)).unwrap();
                let trailer = bytes.len() - 38;
                let contents = u64::from_le_bytes(bytes[trailer + 22..trailer + 30].try_into().unwrap());
                // The database would ask for that much memory and die.
                bytes[contents as usize + 4 + bit / 8] ^= 1 << (bit % 8);
                fs::write(copy.join(name), bytes).unwrap();
            });
            assert_eq!(claimed, Outcome::Refused, "bit {bit} of {}", name.display());
        }
    }
}

#[test]
fn a_folder_of_a_program_that_did_not_count_is_opened_and_counted_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), SHARDS).unwrap();
    for number in 0..5_u64 {
        let mut batch = store.database.batch().durability(Some(fjall::PersistMode::SyncData));
        batch.insert(store.keyspace(Space::Raft), keys::raft(GROUP, 2), number.to_be_bytes());
        batch.commit().unwrap();
    }
    drop(store);
    assert!(!folder.path().join("mark").exists());
    for life in 0..3 {
        let store = Store::open(folder.path(), SHARDS).unwrap();
        write(&store, 5 * life + 1..5 * life + 6);
    }
    let rows = read_all(&Store::open(folder.path(), SHARDS).unwrap()).unwrap();
    let path = Path::new("0.jnl");
    let bytes = fs::read(folder.path().join(path)).unwrap();
    let starts = starts(&bytes);
    for (batches, expected) in [(1, Outcome::Refused), (9, Outcome::Refused), (0, Outcome::Whole)] {
        let cut = starts[starts.len() - 1 - batches];
        let met = met(&folder, &rows, |copy| fs::write(copy.join(path), &bytes[..cut]).unwrap());
        assert_eq!(met, expected, "without the last {batches}");
    }
}
