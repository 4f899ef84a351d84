//! A journal whose end is torn: what was written after the last ack may be cut off or be garbage, as a loss of power
//! leaves it, and the node opens with all that was acked before and a prefix of the rest.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::support::disk::journals;
use crate::support::{Client, Node, Plan, Said, Seed, copy_all, end_of_data};

/// How many damaged copies of a journal are opened.
const FLIPS: usize = 24;

/// The journal that is being written.
fn newest_journal(data: &Path) -> PathBuf {
    journals(data).pop().expect("a journal")
}

/// A killed node's folder, in which 50 messages were acked before `settled`, and 50 more between that and `end`.
struct Torn {
    node: Node,
    said: Vec<Said>,
    settled: u64,
    end: u64,
    /// What was known to be safe at `settled`, as a loss of power may bring it back.
    settled_mark: Vec<u8>,
}

async fn prepared() -> Torn {
    let mut node = Node::start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let mut said = Vec::new();
    for n in 0..50 {
        said.push(alice.say_and_settle(&format!("settled {n}"), &format!("s{n}")).await);
    }
    let settled = end_of_data(&newest_journal(node.data()));
    let settled_mark = std::fs::read(node.data().join("mark")).unwrap();
    for n in 0..50 {
        said.push(alice.say_and_settle(&format!("tail {n}"), &format!("t{n}")).await);
    }
    node.kill9();
    let end = end_of_data(&newest_journal(node.data()));
    assert!(settled < end, "the journal grows with what is said: {settled} {end}");
    Torn { node, said, settled, end, settled_mark }
}

impl Torn {
    /// A copy of the folder whose journal was changed, opened by a node. It is only known to be safe up to `settled`, so
    /// that what comes behind may be a write that never finished.
    async fn reopened(&self, change: impl FnOnce(&mut File)) -> Node {
        let plan = Plan::new();
        let data = plan.folder().join("copy");
        copy_all(self.node.data(), &data);
        let journal = newest_journal(&data);
        change(&mut OpenOptions::new().read(true).write(true).open(journal).unwrap());
        std::fs::write(data.join("mark"), &self.settled_mark).unwrap();
        plan.data(data).start().await
    }

    /// Checks that the node has all that was settled, a prefix of the rest, and that chatting goes on.
    async fn check(&self, mut node: Node, at_least: usize) {
        let history = node.history("lobby").await;
        assert!(self.said.starts_with(&history), "a prefix of what was said, unchanged");
        assert!(history.len() >= at_least, "{} of {at_least} are left", history.len());
        let mut alice = Client::join(&node, "lobby", "alice").await;
        for said in &self.said {
            // Everything again: what is there is only acked, what was torn off is said anew.
            alice.say_with_id(&said.text, said.id.as_ref().unwrap()).await;
        }
        let (_, acks) = alice.read_acks(self.said.len()).await;
        for (ack, said) in acks.iter().zip(&history) {
            assert_eq!(ack.1, said.timestamp, "what is there keeps its timestamp");
        }
        let last = alice.say_and_settle("goes on", "on").await;
        node.restart_after_kill().await;
        let again = node.history("lobby").await;
        let texts: Vec<_> = again.iter().map(|said| said.text.as_str()).collect();
        let mut expected: Vec<_> = self.said.iter().map(|said| said.text.as_str()).collect();
        expected.push("goes on");
        assert_eq!(texts, expected, "everything once, in order");
        assert_eq!(again.last(), Some(&last));
    }
}

#[tokio::test]
async fn garbage_after_the_end_takes_nothing_away() {
    let mut seed = Seed::new("garbage_after_the_end");
    let torn = prepared().await;
    for _ in 0..8 {
        let length = seed.between(1, 5000) as usize;
        let garbage = seed.bytes(length);
        let node = torn
            .reopened(|file| {
                file.seek(SeekFrom::Start(torn.end)).unwrap();
                file.write_all(&garbage).unwrap();
            })
            .await;
        torn.check(node, torn.said.len()).await;
    }
}

#[tokio::test]
async fn a_cut_end_loses_nothing_of_before() {
    let mut seed = Seed::new("a_cut_end");
    let torn = prepared().await;
    for round in 0..10 {
        let cut = match round {
            0 => torn.settled,
            1 => torn.end - 1,
            _ => seed.between(torn.settled, torn.end),
        };
        println!("cut at {cut} between {} and {}", torn.settled, torn.end);
        let node = torn.reopened(|file| file.set_len(cut).unwrap()).await;
        let at_least = if cut == torn.end - 1 { torn.said.len() - 1 } else { 50 };
        torn.check(node, at_least).await;
    }
}

#[tokio::test]
async fn an_end_that_never_reached_the_disk_loses_nothing_of_before() {
    let mut seed = Seed::new("an_end_that_never_reached_the_disk");
    let torn = prepared().await;
    for _ in 0..8 {
        let cut = seed.between(torn.settled, torn.end);
        println!("zeros from {cut}, between {} and {}", torn.settled, torn.end);
        let node = torn
            .reopened(|file| {
                let length = file.metadata().unwrap().len();
                file.set_len(cut).unwrap();
                file.set_len(length).unwrap(); // Grows again with zeros.
            })
            .await;
        torn.check(node, 50).await;
    }
}

/// Flips one bit of a file.
fn flip(file: &mut File, place: u64, bit: u8) {
    let mut byte = [0];
    file.seek(SeekFrom::Start(place)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(place)).unwrap();
    file.write_all(&[byte[0] ^ bit]).unwrap();
}

#[tokio::test]
async fn a_journal_damaged_before_its_end_is_refused_or_opened_whole() {
    let mut seed = Seed::new("a_journal_damaged_before_its_end");
    let torn = prepared().await;
    let (mut refused, mut whole, mut wrong) = (0, 0, Vec::new());
    for _ in 0..FLIPS {
        let plan = Plan::new().panics_allowed(); // They are counted below.
        let data = plan.folder().join("copy");
        copy_all(torn.node.data(), &data);
        let place = seed.between(0, torn.settled);
        let bit = 1 << seed.between(0, 8);
        flip(&mut OpenOptions::new().read(true).write(true).open(newest_journal(&data)).unwrap(), place, bit);
        match plan.data(&data).try_start().await {
            Ok(node) => {
                let history = node.history("lobby").await;
                if history == torn.said {
                    whole += 1;
                } else {
                    let (kept, all) = (history.len(), torn.said.len());
                    wrong.push(format!(
                        "bit {bit:#04x} of byte {place}: {kept} of {all} messages, in silence"
                    ));
                }
            }
            Err(ended) if ended.stderr.contains("panic") => {
                wrong.push(format!("bit {bit:#04x} of byte {place}: a panic: {}", ended.stderr));
            }
            Err(ended) => {
                let sentence = ended.expect_last_sentence(1);
                assert!(sentence.contains(data.to_str().unwrap()), "the folder is named: {sentence}");
                refused += 1;
            }
        }
    }
    println!("{FLIPS} flipped bits: refused {refused}, opened whole {whole}");
    assert!(wrong.is_empty(), "lost what was acked, or panicked:\n{}", wrong.join("\n"));
    assert!(refused > 0, "a flipped bit is noticed");
}
