//! Holds what no compiler holds: which way imports point, that no file is left over, that nothing unfinished or
//! private to one machine is in the tree.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of a test fails the test by panicking, like the test itself"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer, and the layers it may import. A layer may always import itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("metrics", &[]),
    ("planted", &[]),
    ("chat", &["protocol", "planted"]),
    ("storage", &["protocol", "metrics", "planted"]),
    ("cluster", &["protocol", "metrics"]),
    ("config", &["chat", "storage"]),
    ("consensus", &["protocol", "metrics", "planted", "storage", "cluster"]),
    ("actors", &["protocol", "metrics", "planted", "chat", "storage", "cluster", "consensus"]),
    ("web", &["protocol", "metrics", "chat", "storage", "actors"]),
    ("node", &["config", "metrics", "storage", "cluster", "consensus", "actors", "web"]),
    ("cli", &["config", "protocol"]),
];

/// A file longer than this should have been two.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with one of these endings, as text.
fn files(folder: &str, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("node_modules") && !path.ends_with("target") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no files found below {folder}");
    found
}

/// The layer a file of `src` belongs to.
fn layer(path: &Path) -> String {
    let first = path.iter().nth(1).unwrap().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_down() {
    for (path, text) in files("src", &[".rs"]) {
        let own = layer(&path);
        if own == "main" || own == "lib" {
            continue;
        }
        let allowed = LAYERS.iter().find(|(name, _)| *name == own);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{} belongs to no known layer", path.display()));
        for part in text.split("crate::").skip(1) {
            let imported: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(
                imported == own || allowed.contains(&imported.as_str()),
                "{} imports {imported}, which is not below {own}",
                path.display()
            );
        }
    }
}

#[test]
fn the_rules_are_pure() {
    for (path, text) in files("src/chat", &[".rs"]) {
        for forbidden in
            ["async ", "tokio", "std::time", "std::fs", "std::net", "Instant", "SystemTime", "ractor"]
        {
            assert!(!text.contains(forbidden), "{} mentions {forbidden}", path.display());
        }
    }
}

#[test]
fn every_module_is_declared() {
    let sources = files("src", &[".rs"]);
    let declared: BTreeSet<String> = sources
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
            Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
        })
        .collect();
    for (path, _) in &sources {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let name = match stem.as_str() {
            "mod" => path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned(),
            "lib" | "main" => continue,
            _ => stem,
        };
        assert!(declared.contains(&name), "{} is compiled by nobody", path.display());
    }
}

#[test]
fn files_stay_small_enough_to_hold_in_the_head() {
    for folder in ["src", "tests"] {
        for (path, text) in files(folder, &[".rs"]) {
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn nothing_is_unfinished_or_of_one_machine_only() {
    // Put together here, so that this file does not name them itself.
    let forbidden =
        [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["/ro", "ot/"], ["/wo", "rk/"], ["/ho", "me/"]];
    for folder in ["src", "tests", "docs", "scripts", ".ci", "benches"] {
        for (path, text) in
            files(folder, &[".rs", ".md", ".sh", ".js", ".mjs", ".css", ".html", ".json", "run"])
        {
            for words in &forbidden {
                let word = words.concat();
                assert!(!text.contains(&word), "{} contains {word}", path.display());
            }
        }
    }
}
