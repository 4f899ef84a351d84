//! Files that lost something, or that hold something else than was written: the node refuses them, or stops when it meets
//! them. It never shows a history that is not the one it promised, and never panics.

use std::path::{Path, PathBuf};

use fjall::{Database, KeyspaceCreateOptions};

use crate::support::disk::{
    files_below, flip_bit, flip_bit_of, journals, stale_block, tables, truncate_journal,
};
use crate::support::{Client, Node, Plan, SOON, Said, Seed, copy_all, room_path};

const ROOMS: [&str; 2] = ["kitchen", "garden"];

/// A killed node's folder, and all that was acked in its rooms.
struct Killed {
    node: Node,
    said: [Vec<Said>; 2],
}

impl Killed {
    /// One with all that was said in its journal.
    async fn with_journal() -> Self {
        let mut killed = Self { node: Node::start().await, said: Default::default() };
        killed.talk("first").await;
        killed.node.kill9();
        killed
    }

    /// One with most in tables, and the rest in its journal.
    async fn with_tables() -> Self {
        let mut killed = Self::with_journal().await;
        for round in ["second", "third"] {
            to_tables(killed.node.data());
            killed.node.start_again().await;
            killed.talk(round).await;
            killed.node.kill9();
        }
        assert!(tables(killed.node.data()).len() >= 8, "there are tables");
        killed
    }

    async fn talk(&mut self, round: &str) {
        for (room, said) in ROOMS.iter().zip(&mut self.said) {
            let mut alice = Client::join(&self.node, room, "alice").await;
            let lines: Vec<_> = (0..150)
                .map(|n| (format!("{round} {n} {}", "x".repeat(n)), format!("{round}-{n}")))
                .collect();
            said.extend(alice.say_all(&lines, 50).await.0);
            alice.leave().await;
        }
    }

    /// A copy of the folder, and how to start a node on it.
    fn copy(&self) -> (Plan, PathBuf) {
        let plan = Plan::new();
        let data = plan.folder().join("copy");
        copy_all(self.node.data(), &data);
        (plan.data(&data), data)
    }

    /// Starts a node on what is in `plan`'s folder and reads everything.
    async fn meet(&self, plan: Plan) -> Met {
        let data = plan.data_folder().to_owned();
        let mut node = match plan.try_start().await {
            Ok(node) => node,
            Err(ended) => {
                let sentence = ended.expect_last_sentence(1);
                assert!(sentence.contains(data.to_str().unwrap()), "the folder is named: {sentence}");
                return Met::Refused(sentence.to_owned());
            }
        };
        for (room, said) in ROOMS.iter().zip(&self.said) {
            let path = format!("{}/history?after=0&limit=1000", room_path(room));
            match node.try_get(&path).await {
                Ok(reply) if reply.status == 200 => {
                    let body = reply.json();
                    let shown = body["messages"].as_array().unwrap().iter();
                    let shown: Vec<Said> = shown.map(|message| Said::from_json(message).unwrap()).collect();
                    assert_eq!(shown.len(), said.len(), "{room}: all or nothing is shown");
                    assert_eq!(shown, *said, "{room}: what was acked is what is shown");
                }
                Ok(reply) => return Self::stopped(&mut node, Some(reply.status)).await,
                Err(_) => return Self::stopped(&mut node, None).await,
            }
        }
        if node.get("/readyz").await.status != 200 {
            return Self::stopped(&mut node, None).await;
        }
        Met::Whole
    }

    /// Checks that the node stops by itself and says why.
    async fn stopped(node: &mut Node, status: Option<u16>) -> Met {
        if status == Some(500) {
            let reply = node.try_get("/readyz").await;
            assert!(reply.is_ok_and(|reply| reply.status == 503), "it says that it does not serve");
        }
        assert_eq!(node.ended(SOON).await, Some(1));
        let log = node.stderr_of_this_life();
        let last = log.lines().last().expect("the node says why it ends");
        let told = last.contains("is damaged and the node stopped") || last.contains("the store failed");
        assert!(last.starts_with("parley: ") && told, "{last}");
        println!("{last}");
        Met::Stopped
    }
}

/// How a node met a folder.
#[derive(Debug)]
enum Met {
    Refused(String),
    Stopped,
    Whole,
}

/// Moves all rows of a closed folder to tables.
fn to_tables(data: &Path) {
    let database = Database::builder(data).open().unwrap();
    for name in ["meta", "messages", "ids", "log", "raft"] {
        let keyspace = database.keyspace(name, KeyspaceCreateOptions::default).unwrap();
        keyspace.rotate_memtable_and_wait().unwrap();
    }
}

fn contents(data: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    journals(data).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn a_journal_that_lost_safe_writes_is_refused_untouched() {
    let mut seed = Seed::new("a_journal_that_lost_safe_writes");
    let killed = Killed::with_journal().await;
    let mut refused = 0;
    for round in 0..10 {
        let (plan, data) = killed.copy();
        let journal = journals(&data).pop().unwrap();
        match round {
            0 => std::fs::File::create(&journal).map(drop).unwrap(),
            1 => std::fs::remove_file(&journal).unwrap(),
            _ => truncate_journal(&data, 20_000, &mut seed),
        }
        let before = contents(&data);
        match killed.meet(plan.clone()).await {
            Met::Refused(sentence) => {
                assert!(sentence.contains("missing"), "it says what is wrong: {sentence}");
                assert!(before == contents(&data), "a folder that is refused stays as it is");
                refused += 1;
            }
            // Nobody waits for the fsync of the very last batch.
            met => println!("{met:?}"),
        }
    }
    println!("refused {refused} of 10");
    assert!(refused >= 8);
}

#[tokio::test]
async fn flipped_bits_and_stale_blocks_are_never_shown() {
    const EACH: usize = 2;
    let mut seed = Seed::new("flipped_bits_and_stale_blocks");
    let killed = Killed::with_tables().await;
    let names: Vec<PathBuf> = files_below(killed.node.data())
        .into_iter()
        .filter(|path| path.metadata().unwrap().len() > 0 && !path.ends_with("mark"))
        .map(|path| path.strip_prefix(killed.node.data()).unwrap().to_owned())
        .collect();
    let (mut refused, mut stopped, mut whole) = (0, 0, 0);
    for round in 0..names.len() * EACH + 20 {
        let (plan, data) = killed.copy();
        match names.get(round / EACH) {
            Some(name) => flip_bit_of(&data.join(name), &mut seed),
            None if round % 2 == 0 => drop(flip_bit(&data, &mut seed)),
            None => drop(stale_block(&data, &mut seed)),
        }
        let met = killed.meet(plan).await;
        println!("{met:?}");
        match met {
            Met::Refused(_) => refused += 1,
            Met::Stopped => stopped += 1,
            Met::Whole => whole += 1,
        }
    }
    println!("refused {refused}, stopped {stopped}, whole {whole}");
    assert!(refused > 0 && stopped > 0);
}

#[tokio::test]
async fn a_copy_that_nothing_happened_to_is_whole() {
    let killed = Killed::with_tables().await;
    let (plan, _) = killed.copy();
    assert!(matches!(killed.meet(plan).await, Met::Whole));
}
