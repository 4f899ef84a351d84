//! Looks through a data folder before the database opens it, and once more behind its back afterwards.
//!
//! Why: the database repairs what it takes for the leftovers of a crash by removing it. A keyspace without its `current`
//! file is removed with all its tables, a table that no version names likewise, and rows for a keyspace that is not there
//! are skipped. After a crash that is right. But a folder that lost a file, or bits of one, would then be opened
//! without what was in it. So whatever a crash does not explain is refused first, untouched.

use super::journal::{self, JournalError, Journals};
use super::ledger::{self, Line};
use super::store::{OpenError, ReadError};
use super::tables::{self, CURRENT};
use fjall::Keyspace;
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file that says that this is a database; the last that is made.
const DATABASE: &str = "version";

/// The keyspace in which the database keeps what it knows of the others.
const NAMES: u64 = 0;

/// The keyspace with the settings and the ledger: the first that is made.
const SETTINGS: u64 = 1;

/// What a folder held before it was opened.
#[derive(Debug)]
pub(super) struct Checked {
    journals: Journals,
    /// How many writes are known to be safe.
    safe: Option<u64>,
}

/// Checks the folder, and repairs what an interrupted write left.
pub(super) fn check(path: &Path) -> Result<Checked, OpenError> {
    let lock = path.join("lock");
    if let Ok(file) = File::open(&lock)
        && let Err(TryLockError::WouldBlock) = file.try_lock()
    {
        // Somebody else is writing: what looks torn is only not finished yet.
        return Err(OpenError::Locked(path.to_owned()));
    }
    let refuse = |detail: String| OpenError::Damaged { path: path.to_owned(), detail };
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    let keyspaces = keyspaces(&path.join("keyspaces")).map_err(failed)?;
    let mut persisted = None;
    for (id, folder) in keyspaces.iter().filter(|(_, folder)| folder.is_whole) {
        let highest = tables::check(&folder.path).map_err(failed)?.map_err(|file| {
            refuse(format!("its file keyspaces/{id}/{file} is missing or is not what was written there"))
        })?;
        if *id == SETTINGS {
            persisted = highest;
        }
    }
    let safe = ledger::safe(path).map_err(failed)?;
    let as_opening = |error| match error {
        JournalError::Io { source, .. } => failed(source),
        JournalError::Damaged { .. } | JournalError::Lost { .. } => refuse(error.to_string()),
    };
    let journals = journal::check(path, safe).map_err(as_opening)?;

    let any = safe.is_some() || !journals.is_empty() || keyspaces.values().any(|folder| folder.is_whole);
    if !path.join(DATABASE).try_exists().map_err(failed)? {
        if any {
            return Err(refuse(format!("its file \"{DATABASE}\" is missing")));
        }
        journal::remove_unused(path).map_err(failed)?;
        return Ok(Checked { journals, safe });
    }
    if journals.count == 0 {
        return Err(refuse("its journals are missing".to_owned()));
    }
    let is_whole = |id: &u64| keyspaces.get(id).is_some_and(|folder| folder.is_whole);
    let missing = journals.keyspaces.iter().chain((any).then_some(&NAMES)).find(|id| !is_whole(id));
    let missing = missing.or_else(|| {
        keyspaces.iter().find(|(_, folder)| !folder.is_whole && folder.has_tables).map(|(id, _)| id)
    });
    if let Some(id) = missing {
        return Err(refuse(format!("its part keyspaces/{id} is missing")));
    }
    // What was written before the first batch of the journals must have gone to tables before its journal was removed.
    if let Some(Line { number, above_before, .. }) = journals.first
        && number > 1
        && persisted.is_none_or(|persisted| persisted <= above_before)
    {
        return Err(refuse(format!("a journal with writes before number {number} is missing")));
    }
    journals.repair().map_err(as_opening)?;
    Ok(Checked { journals, safe })
}

impl Checked {
    /// Checks what the database made of the folder: where no journal has a number, tables must.
    pub(super) fn check_opened(&self, path: &Path, settings: &Keyspace) -> Result<(), OpenError> {
        let refuse = |detail: String| OpenError::Damaged { path: path.to_owned(), detail };
        let newest = ledger::newest(settings).map_err(|error| refuse(explain(&error)))?;
        let newest = newest.map_or(0, |line| line.number);
        if let Some(safe) = self.safe
            && newest < safe
        {
            let missing = safe - newest;
            return Err(refuse(format!("the last {missing} writes that were safe on the disk are missing")));
        }
        Ok(())
    }

    /// Whether anything was ever written by a program that counts.
    pub(super) fn is_used(&self) -> bool {
        self.safe.is_some_and(|safe| safe > 0) || self.journals.first.is_some()
    }
}

/// Fsyncs the folders in which the data folder and its keyspaces are named, which the database does not. Otherwise what is
/// fsynced in them could be lost with their names.
pub(super) fn keep_names(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    // What the data folder lies in may be another's, who lets us pass and not look.
    if let Some(Ok(parent)) = path.parent().map(File::open) {
        parent.sync_all()?;
    }
    File::open(&path)?.sync_all()?;
    File::open(path.join("keyspaces"))?.sync_all()
}

struct KeyspaceFolder {
    path: PathBuf,
    /// Whether its making was finished.
    is_whole: bool,
    has_tables: bool,
}

/// The folders of keyspaces, by their number.
fn keyspaces(folder: &Path) -> io::Result<BTreeMap<u64, KeyspaceFolder>> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let is_whole = path.join(CURRENT).try_exists()?;
        let has_tables = fs::read_dir(path.join("tables")).is_ok_and(|mut tables| tables.next().is_some());
        found.insert(id, KeyspaceFolder { path, is_whole, has_tables });
    }
    Ok(found)
}

/// Why something cannot be read, for a person.
pub(super) fn explain(error: &ReadError) -> String {
    match error {
        ReadError::Store(fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error))) => {
            error.to_string()
        }
        ReadError::Store(fjall::Error::Storage(_)) | ReadError::Record(_) => {
            "a part of what is stored is not what was written there".to_owned()
        }
        ReadError::Store(error) => error.to_string(),
    }
}
