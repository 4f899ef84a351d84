//! Checks which tables a keyspace has, and that each of them can be opened.
//!
//! Why: the database believes its list of tables without looking at the checksum that it keeps of it. And it takes the
//! number of parts of a table, before it has checked it, for how much memory to ask for: one flipped bit, and the
//! process ends without a word. What is in the parts has checksums that are looked at.
//!
//! The format is that of lsm-tree 3 (its `version/persist.rs`) and of sfa 1; numbers are little-endian:
//!
//! ```text
//! current   number:u64  xxh3 of the list:u128  0
//! v<number> an archive; its part "tables": levels:u8 {runs:u8 {tables:u32 {id:u64  0  checksum:u128  seqno:u64}}}
//! archive   parts  contents  trailer
//! contents  "TOC!"  parts:u32 {position:u64  length:u64  name_len:u16  name}
//! trailer   "SFA!"  1  0  xxh3 of the contents:u128  position of the contents:u64  their length:u64
//! ```

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// The file that says which list of tables is in force. Without it a keyspace was never finished.
pub(super) const CURRENT: &str = "current";

const TRAILER_LEN: u64 = 38;

/// What stands before a table's highest sequence number: its key, and that it has 8 bytes.
const HIGHEST: &[u8] = b"seqno#max\x08";

/// More than any contents or part "meta" have.
const CONTENTS_MAX: u64 = 64 * 1024;

/// Checks the keyspace in `folder`, and returns the highest sequence number in its tables, or which file is not what was
/// written.
pub(super) fn check(folder: &Path) -> io::Result<Result<Option<u64>, String>> {
    let current = fs::read(folder.join(CURRENT))?;
    let Some((number, sum)) = parse_current(&current) else {
        return Ok(Err(CURRENT.to_owned()));
    };
    let list = format!("v{number}");
    let Some(bytes) = found(fs::read(folder.join(&list)))? else { return Ok(Err(list)) };
    if xxh3_128(&bytes) != sum {
        return Ok(Err(list));
    }
    let Some(tables) = parse_list(&bytes) else { return Ok(Err(list)) };
    let mut highest = None;
    for id in tables {
        let table = format!("tables/{id}");
        let Some(file) = found(File::open(folder.join(&table)))? else { return Ok(Err(table)) };
        match highest_in(&file)? {
            Some(seqno) => highest = highest.max(Some(seqno)),
            None => return Ok(Err(table)),
        }
    }
    Ok(Ok(highest))
}

/// The highest sequence number in a table, if it is what was written.
fn highest_in(table: &File) -> io::Result<Option<u64>> {
    let Some(contents) = contents(table, table.metadata()?.len())? else { return Ok(None) };
    let Some(part) = find(&contents, b"meta") else { return Ok(None) };
    let mut meta = vec![0; (part.end - part.start).min(CONTENTS_MAX) as usize];
    table.read_exact_at(&mut meta, part.start)?;
    let at = meta.windows(HIGHEST.len()).position(|window| window == HIGHEST);
    Ok(at.and_then(|at| Parser(&meta[at + HIGHEST.len()..]).u64()))
}

/// What there is, if it is there.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn parse_current(bytes: &[u8]) -> Option<(u64, u128)> {
    let mut parser = Parser(bytes);
    let parsed = (parser.u64()?, parser.u128()?);
    (parser.0 == [0]).then_some(parsed)
}

/// The tables that a list names.
fn parse_list(archive: &[u8]) -> Option<Vec<u64>> {
    let len = archive.len();
    let trailer = archive.get(len.checked_sub(TRAILER_LEN as usize)?..)?;
    let (range, _) = parse_trailer(trailer, len as u64)?;
    let contents = archive.get(range.start as usize..range.end as usize)?;
    let part = find(contents, b"tables")?;
    let mut parser = Parser(archive.get(part.start as usize..part.end as usize)?);
    let mut tables = Vec::new();
    for _ in 0..parser.u8()? {
        for _ in 0..parser.u8()? {
            for _ in 0..parser.u32()? {
                tables.push(parser.u64()?);
                parser.take(1 + 16 + 8)?;
            }
        }
    }
    Some(tables)
}

/// An archive's contents, if they are what was written.
fn contents(file: &File, len: u64) -> io::Result<Option<Vec<u8>>> {
    let mut trailer = [0; TRAILER_LEN as usize];
    let Some(at) = len.checked_sub(TRAILER_LEN) else { return Ok(None) };
    file.read_exact_at(&mut trailer, at)?;
    let Some((range, sum)) = parse_trailer(&trailer, len) else { return Ok(None) };
    let mut contents = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut contents, range.start)?;
    Ok((xxh3_128(&contents) == sum).then_some(contents))
}

/// Where the contents of an archive of this length are, and their checksum.
fn parse_trailer(trailer: &[u8], len: u64) -> Option<(Range<u64>, u128)> {
    let mut parser = Parser(trailer);
    if parser.take(6)? != b"SFA!\x01\x00" {
        return None;
    }
    let sum = parser.u128()?;
    let (position, contents_len) = (parser.u64()?, parser.u64()?);
    let end = position.checked_add(contents_len)?;
    let fits = contents_len <= CONTENTS_MAX && end.checked_add(TRAILER_LEN)? == len;
    fits.then_some((position..end, sum))
}

/// Where a part of an archive is.
fn find(contents: &[u8], wanted: &[u8]) -> Option<Range<u64>> {
    let mut parser = Parser(contents);
    parser.take(4)?;
    for _ in 0..parser.u32()? {
        let (position, len) = (parser.u64()?, parser.u64()?);
        let name_len = u16::from_le_bytes(parser.array()?);
        if parser.take(name_len.into())? == wanted {
            return Some(position..position.checked_add(len)?);
        }
    }
    None
}

struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        self.take(LEN)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        Some(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.array()?))
    }
}
