//! A disk and a clock of a node that go wrong when a test says so, and folders whose files were damaged meanwhile.
//!
//! The node runs with `faults.c` preloaded, and shares a control file with the test; see there for how it works. What a
//! loss of power would leave is exact in one point: a file holds then what a sync has covered, and nothing of what came
//! later. (A real one may also leave any part of that.) The names of files are not taken back.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use super::folder::{Folder, end_of_data};
use super::plan::Plan;
use super::seed::Seed;

/// Input/output error: the disk is broken.
pub(crate) const EIO: i32 = 5;

/// No space left on the device.
pub(crate) const ENOSPC: i32 = 28;

/// Where the fields of the control file are.
const SYNC_ERRNO: u64 = 0;
const WRITE_ERRNO: u64 = 8;
const CLOCK_OFFSET_MS: u64 = 16;
const FAILED_SYNCS: u64 = 24;
const FAILED_WRITES: u64 = 32;
const SYNCS: u64 = 40;
const CONTROL_LEN: u64 = 56;

/// What a disk replaces at once.
const BLOCK_LEN: u64 = 4096;

/// The disk and the clock of one node.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: Folder,
    control: File,
}

impl Disk {
    /// One with which nothing is wrong yet.
    pub(crate) fn new() -> Self {
        let folder = Folder::new();
        let mut options = OpenOptions::new();
        let control = options.read(true).write(true).create_new(true).open(folder.join("control")).unwrap();
        control.set_len(CONTROL_LEN).unwrap();
        Self { folder, control }
    }

    /// Starts the node with this disk.
    pub(crate) fn plan(&self, plan: Plan) -> Plan {
        plan.env("LD_PRELOAD", library().to_str().unwrap())
            .env("DISK_FAULTS", self.folder.join("control").to_str().unwrap())
    }

    /// From now on every fsync fails with this error, and what it should have covered is lost with the power.
    pub(crate) fn fail_syncs(&self, errno: i32) {
        self.set(SYNC_ERRNO, errno.into());
    }

    /// From now on every write to a file fails with this error.
    pub(crate) fn fail_writes(&self, errno: i32) {
        self.set(WRITE_ERRNO, errno.into());
    }

    /// The wall clock is this much ahead of the real one.
    pub(crate) fn set_clock(&self, offset_ms: i64) {
        self.set(CLOCK_OFFSET_MS, offset_ms);
    }

    /// From now on nothing fails any more, and the clock is right.
    pub(crate) fn heal(&self) {
        for field in [SYNC_ERRNO, WRITE_ERRNO, CLOCK_OFFSET_MS] {
            self.set(field, 0);
        }
    }

    /// How many calls have failed.
    pub(crate) fn failures(&self) -> u64 {
        self.get(FAILED_SYNCS) + self.get(FAILED_WRITES)
    }

    /// How many syncs have succeeded. None at all would mean that the node does not run with this disk.
    pub(crate) fn syncs(&self) -> u64 {
        self.get(SYNCS)
    }

    /// Takes from every file in the folder of a killed node what was written and never synced.
    pub(crate) fn power_loss(&self, data: &Path) {
        assert!(self.syncs() > 0, "the node ran with this disk");
        for path in files_below(data) {
            let meta = path.metadata().unwrap();
            let born = meta.created().unwrap().duration_since(UNIX_EPOCH).unwrap();
            let name = format!("{}-{}-{}-{}", meta.dev(), meta.ino(), born.as_secs(), born.subsec_nanos());
            let dirty = self.folder.join(&format!("{name}.dirty"));
            if !dirty.exists() {
                continue; // Nothing was written to it.
            }
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            let kept = self.folder.join(&format!("{name}.kept"));
            if kept.exists() {
                let length = kept.metadata().unwrap().len();
                let mut bytes = std::fs::read(&kept).unwrap();
                bytes.truncate(end_of_data(&kept) as usize);
                file.write_all_at(&bytes, 0).unwrap();
                file.set_len(length).unwrap(); // The rest is reserved and stays a hole.
            }
            // What is left is on the disk for sure.
            let _ = std::fs::remove_file(kept);
            std::fs::remove_file(dirty).unwrap();
        }
    }

    fn set(&self, field: u64, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), field).unwrap();
    }

    fn get(&self, field: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, field).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

/// The compiled `faults.c`. Its name says from what it was made, so that it is made once.
fn library() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let source = include_str!("faults.c");
        let mut hasher = DefaultHasher::new();
        source.hash(&mut hasher);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let library = folder.join(format!("faults-{:016x}.so", hasher.finish()));
        if library.exists() {
            return library;
        }
        // Another test process may be at it as well: whoever is last wins with the same.
        let ours = folder.join(format!("faults-{}.so", std::process::id()));
        let mut compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-x", "c", "-", "-o"])
            .arg(&ours)
            .args(["-ldl", "-lpthread"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("cc, which links Rust programs as well");
        compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success(), "faults.c compiles");
        std::fs::rename(ours, &library).unwrap();
        library
    })
}

/// All regular files below `folder`, in the order of their paths.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// The journals of a node's data folder, oldest first.
pub(crate) fn journals(data: &Path) -> Vec<PathBuf> {
    let files = files_below(data).into_iter();
    let mut found: Vec<(u64, PathBuf)> = files
        .filter(|path| path.extension().is_some_and(|ending| ending == "jnl"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().parse().unwrap(), path))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The table files of a node's data folder.
pub(crate) fn tables(data: &Path) -> Vec<PathBuf> {
    files_below(data).into_iter().filter(|path| path.parent().unwrap().ends_with("tables")).collect()
}

/// Journals and tables that hold anything.
fn full_files(data: &Path) -> Vec<PathBuf> {
    let files = journals(data).into_iter().chain(tables(data));
    files.filter(|path| end_of_data(path) > 0).collect()
}

fn choose(data: &Path, seed: &mut Seed) -> PathBuf {
    let mut files = full_files(data);
    files.swap_remove(seed.between(0, files.len() as u64) as usize)
}

/// Cuts up to `bytes` bytes of what was written off the newest journal, sometimes with the reserved space behind.
pub(crate) fn truncate_journal(data: &Path, bytes: u64, seed: &mut Seed) {
    let journal = journals(data).pop().expect("a journal");
    let end = end_of_data(&journal);
    let cut = seed.between(1, bytes.min(end) + 1);
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(end - cut).unwrap();
    let reserved = seed.between(0, 2) == 0;
    if reserved {
        file.set_len(length).unwrap();
    }
    println!("{}: cut off {cut} of {end} bytes, reserved space {reserved}", journal.display());
}

/// Flips a bit of what was written in a journal or a table, and says where.
pub(crate) fn flip_bit(data: &Path, seed: &mut Seed) -> PathBuf {
    let path = choose(data, seed);
    flip_bit_of(&path, seed);
    path
}

/// Flips a bit of what was written in this file.
pub(crate) fn flip_bit_of(path: &Path, seed: &mut Seed) {
    let place = seed.between(0, end_of_data(path));
    let bit = 1 << seed.between(0, 8);
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).unwrap();
    file.write_all_at(&[byte[0] ^ bit], place).unwrap();
    println!("{}: bit {bit:#04x} of byte {place} is flipped", path.display());
}

/// Puts another block of the same file, or zeros, in the place of a block in a journal or a table, and says where.
pub(crate) fn stale_block(data: &Path, seed: &mut Seed) -> PathBuf {
    let path = choose(data, seed);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let end = end_of_data(&path);
    let blocks = end.div_ceil(BLOCK_LEN);
    let place = seed.between(0, blocks) * BLOCK_LEN;
    let length = BLOCK_LEN.min(file.metadata().unwrap().len() - place) as usize;
    let mut block = vec![0; length];
    let from = seed.between(0, blocks + 1) * BLOCK_LEN; // The last of them are zeros.
    let there = file.read_at(&mut block, from).unwrap_or(0);
    block[there..].fill(0);
    file.write_all_at(&block, place).unwrap();
    println!("{}: the block at {place} of {end} is now the one at {from}", path.display());
    path
}
