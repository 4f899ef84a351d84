//! A folder of a test's own, removed when the last one that uses it is gone.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

/// A temporary folder that nodes and tests share.
#[derive(Clone, Debug)]
pub(crate) struct Folder(Arc<TempDir>);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(TempDir::with_prefix_in("node-", env!("CARGO_TARGET_TMPDIR")).unwrap()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Where the data of a file ends; what follows is space reserved in advance, all zero.
pub(crate) fn end_of_data(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let zeros = [0; 4096];
    let mut end = bytes.len();
    // By pages, since a reserved journal is large and tests are built without optimisation.
    while end >= zeros.len() && bytes[end - zeros.len()..end] == zeros {
        end -= zeros.len();
    }
    bytes[..end].iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Copies a folder with all that is in it. Reserved space at the end of a file stays a hole.
pub(crate) fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
            continue;
        }
        let length = entry.metadata().unwrap().len();
        let mut data = File::open(entry.path()).unwrap().take(end_of_data(&entry.path()));
        let mut copy = File::create(target).unwrap();
        std::io::copy(&mut data, &mut copy).unwrap();
        copy.set_len(length).unwrap();
    }
}
