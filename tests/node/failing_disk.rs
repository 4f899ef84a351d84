//! A disk that takes no more, and one that loses its power: nothing is acked that is not kept, everyone is told, and the
//! node stops.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, prlimit};

use crate::support::disk::{EIO, ENOSPC};
use crate::support::{Client, Disk, Folder, Node, Plan, SOON, Said, Seed, Written, until};

/// A file system in memory of a set size, seen only by processes that enter its namespace; gone with this value.
struct SmallDisk {
    holder: Child,
    folder: Folder,
}

impl SmallDisk {
    /// Makes the disk, or says why that is not permitted here.
    fn new(size: &str) -> Result<Self, String> {
        let folder = Folder::new();
        let script = r#"mount -t tmpfs -o size="$2" parley-test "$1" && echo mounted && exec cat"#;
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(folder.path())
            .arg(size)
            .stdin(Stdio::piped()) // `cat` ends with us, and the namespace with it.
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.trim() != "mounted" {
            let output = holder.wait_with_output().unwrap();
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self { holder, folder })
    }

    fn namespace(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.holder.id())
    }

    /// Runs a command inside.
    fn run(&self, command: &[&str]) {
        let status = Command::new("nsenter").arg(self.namespace()).arg("--").args(command).status().unwrap();
        assert!(status.success(), "{command:?}");
    }

    fn resize(&self, size: &str) {
        let path = self.folder.path().to_str().unwrap();
        self.run(&["mount", "-o", &format!("remount,size={size}"), path]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

/// Several writers until the node refuses and ends; returns their accounts. The node is gone afterwards. Calls `watch`
/// again and again with how much is acked.
async fn write_until_refused(node: &mut Node, life: usize, mut watch: impl FnMut(usize)) -> Vec<Written> {
    let acked = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for index in 0..4 {
        let prefix = format!("l{life}w{index}");
        clients.push((Client::join(node, "lobby", &prefix).await, prefix));
    }
    let writing = clients
        .into_iter()
        .map(|(client, prefix)| tokio::spawn(client.write_until_closed(prefix, 50, acked.clone())));
    let tasks: Vec<_> = writing.collect();
    let mut answers = Vec::new();
    until("the node stops itself", SOON * 6, async || {
        watch(acked.load(Ordering::Relaxed));
        if let Ok(reply) = node.try_get("/readyz").await {
            answers.push((acked.load(Ordering::Relaxed), reply.status));
        }
        tasks.iter().all(tokio::task::JoinHandle::is_finished)
    })
    .await;
    let mut written = Vec::new();
    for task in tasks {
        written.push(task.await.unwrap());
    }
    let first_bad = answers.iter().position(|(_, status)| *status == 503).unwrap_or(answers.len());
    println!("{} times ready, then {} times not", first_bad, answers.len() - first_bad);
    assert!(answers[first_bad..].iter().all(|(_, status)| *status == 503), "once unready, unready for good");
    written
}

/// Checks what the writers were told, and how the node ended.
async fn check_the_end(node: &mut Node, written: &[Written]) {
    let refused: usize = written.iter().map(|one| one.refused.len()).sum();
    // The fsync behind a batch may be what fails: then nobody need have been waiting for an ack.
    let nobody_waited = node.stderr_of_this_life().contains("fjall::db: flush failed");
    assert!(refused > 0 || nobody_waited, "senders are told which messages were not kept");
    for one in written {
        assert!(
            matches!(one.closed_with, Some(1011 | 1012)),
            "{}: closed with {:?}",
            one.name,
            one.closed_with
        );
        for id in &one.refused {
            assert!(one.acked.iter().all(|(acked, _)| acked != id), "{id} is both acked and refused");
        }
    }
    assert_eq!(node.ended(SOON).await, Some(1));
    let log = node.stderr_of_this_life();
    let last = log.lines().last().expect("the node says why it ends").to_lowercase();
    assert!(!node.has_panicked(), "{log}");
    assert!(last.contains("the store failed and the node stopped to lose nothing"), "{last}");
    println!("the node's last words: {last}");
}

/// Checks that all acked messages are there, says the rest again, and checks that all is there once.
async fn check_what_is_kept(node: &Node, written: &[Written]) {
    let history = node.history("lobby").await;
    for one in written {
        one.check_against(&history);
    }
    for one in written {
        one.say_the_rest(node, "lobby").await;
    }
    let history = node.history("lobby").await;
    for one in written {
        one.check_complete(&history);
    }
    assert_eq!(history.len(), written.iter().map(|one| one.sent.len()).sum::<usize>());
}

#[tokio::test]
async fn a_full_disk_stops_the_node_and_costs_nothing_acked() {
    let disk = match SmallDisk::new("6m") {
        Ok(disk) => disk,
        Err(why) => {
            // The test of the file size limit below covers a disk that refuses, without a mount.
            println!("skipped: no small disk can be mounted here: {why}");
            return;
        }
    };
    let namespace = disk.namespace();
    let data = disk.folder.join("data");
    let mut node = Plan::new().through(&["nsenter", &namespace, "--"]).data(&data).start().await;
    let mut written = write_until_refused(&mut node, 0, |_| ()).await;
    check_the_end(&mut node, &written).await;

    // With the disk still full the node may refuse to start or start and refuse again, but nothing worse.
    match node.try_start_again().await {
        Ok(()) => {
            println!("starts on the full disk");
            written.extend(write_until_refused(&mut node, 1, |_| ()).await);
            assert_eq!(node.ended(SOON).await, Some(1));
        }
        Err(ended) => println!("refuses to start on the full disk: {}", ended.expect_last_sentence(1)),
    }

    disk.resize("256m");
    node.start_again().await;
    assert_eq!(node.get("/readyz").await.status, 200);
    check_what_is_kept(&node, &written).await;
    node.restart_after_kill().await;
    let history = node.history("lobby").await;
    for one in &written {
        one.check_complete(&history);
    }
}

#[tokio::test]
async fn a_write_that_fails_stops_the_node_and_costs_nothing_acked() {
    // A file size limit makes writes fail with an error, provided that its signal is ignored.
    let ignoring = ["sh", "-c", r#"trap "" XFSZ; exec "$@""#, "sh"];
    let mut node = Plan::new().through(&ignoring).start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..200).map(|n| (format!("m{n}"), n.to_string())).collect();
    let (said, _) = alice.say_all(&lines, 50).await;
    alice.leave().await;
    assert!(Path::new("/proc/self/limits").exists(), "this test needs Linux");
    let limit = Rlimit { current: Some(256 * 1024), maximum: Some(256 * 1024) };
    prlimit(Some(node.pid()), Resource::Fsize, limit).unwrap();
    let written = write_until_refused(&mut node, 0, |_| ()).await;
    check_the_end(&mut node, &written).await;
    node.start_again().await; // Without the limit.
    assert!(node.history("lobby").await.starts_with(&said));
    let mut others = node.history("lobby").await;
    others.drain(..said.len());
    for one in &written {
        one.check_against(&others);
        one.say_the_rest(&node, "lobby").await;
    }
    node.restart_after_kill().await;
    let history = node.history("lobby").await;
    for one in &written {
        one.check_complete(&history);
    }
}

/// Breaks the disk under load, checks what people are told, heals it, and checks that all acked messages are there.
async fn break_and_heal(break_it: impl Fn(&Disk)) {
    const ENOUGH: usize = 300;
    let disk = Disk::new();
    let mut node = disk.plan(Plan::new()).start().await;
    let written = write_until_refused(&mut node, 0, |acked| {
        if acked >= ENOUGH {
            break_it(&disk);
        }
    })
    .await;
    check_the_end(&mut node, &written).await;
    assert!(disk.failures() > 0, "the fault was met");
    assert!(written.iter().map(|one| one.acked.len()).sum::<usize>() >= ENOUGH, "it worked until then");

    if let Err(ended) = node.try_start_again().await {
        println!("refuses to start on the broken disk: {}", ended.expect_last_sentence(1));
    } else {
        node.kill9();
    }
    disk.heal();
    node.start_again().await;
    assert_eq!(node.get("/readyz").await.status, 200);
    check_what_is_kept(&node, &written).await;
    node.restart_after_kill().await;
    let history = node.history("lobby").await;
    for one in &written {
        one.check_complete(&history);
    }
}

#[tokio::test]
async fn an_fsync_that_fails_stops_the_node_and_costs_nothing_acked() {
    break_and_heal(|disk| disk.fail_syncs(EIO)).await;
}

#[tokio::test]
async fn no_space_for_a_write_stops_the_node_and_costs_nothing_acked() {
    break_and_heal(|disk| disk.fail_writes(ENOSPC)).await;
}

#[tokio::test]
async fn an_error_while_writing_stops_the_node_and_costs_nothing_acked() {
    break_and_heal(|disk| disk.fail_writes(EIO)).await;
}

#[tokio::test]
async fn the_power_goes_again_and_again_while_writing_and_takes_nothing_acked() {
    const ROUNDS: usize = 6;
    let mut seed = Seed::new("the_power_goes_again_and_again");
    let disk = Disk::new();
    let mut node = disk.plan(Plan::new()).start().await;
    let mut all: Vec<Written> = Vec::new();
    for round in 0..ROUNDS {
        let acked = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for writer in 0..4 {
            let prefix = format!("r{round}w{writer}");
            let client = Client::join(&node, "lobby", &prefix).await;
            tasks.push(tokio::spawn(client.write_until_closed(prefix, 50, acked.clone())));
        }
        let enough = seed.between(1, 800) as usize;
        until("enough is acked", SOON, async || acked.load(Ordering::Relaxed) >= enough).await;
        node.kill9();
        disk.power_loss(node.data());
        let mut written = Vec::new();
        for task in tasks {
            written.push(task.await.unwrap());
        }
        node.start_again().await;
        let history = node.history("lobby").await;
        for one in &all {
            one.check_complete(&history);
        }
        for one in &written {
            // What was relayed and not acked may be gone with the power, and is then said again.
            one.check_acked(&history);
            one.say_the_rest(&node, "lobby").await;
        }
        all.extend(written);
    }
}

#[tokio::test]
async fn what_a_failed_fsync_left_in_memory_is_not_taken_for_kept() {
    const ENOUGH: usize = 300;
    let disk = Disk::new();
    let mut node = disk.plan(Plan::new()).start().await;
    let written = write_until_refused(&mut node, 0, |acked| {
        if acked >= ENOUGH {
            disk.fail_syncs(EIO);
        }
    })
    .await;
    check_the_end(&mut node, &written).await;
    disk.heal();
    // What was not acked can be read still, and is acked now because it is there. The power must not take it then.
    node.start_again().await;
    check_what_is_kept(&node, &written).await;
    node.kill9();
    disk.power_loss(node.data());
    node.start_again().await;
    let history = node.history("lobby").await;
    for one in &written {
        one.check_complete(&history);
    }
}

#[tokio::test]
async fn with_an_interval_the_power_takes_only_what_was_not_synced_yet() {
    let disk = Disk::new();
    let plan = Plan::new().env("PARLEY_HISTORY_DURABILITY", "interval:300");
    let mut node = disk.plan(plan).start().await;
    let mut safe: Vec<Said> = Vec::new();
    for round in 0..3 {
        let mut alice = Client::join(&node, "lobby", "alice").await;
        let lines: Vec<_> = (0..100).map(|n| (format!("m{n}"), format!("{round}-{n}"))).collect();
        let (said, _) = alice.say_all(&lines, 50).await;
        // The last of these may be lost, and whatever is lost: the node starts.
        if round < 2 {
            safe.extend(said);
            // A sync that begins once another has ended covers what was said before.
            for time in ["once", "again"] {
                let syncs = disk.syncs();
                alice.say_and_settle(time, &format!("{round}-{time}")).await;
                until("it is synced", SOON, async || disk.syncs() > syncs).await;
            }
        }
        node.kill9();
        disk.power_loss(node.data());
        node.start_again().await;
        let history = node.history("lobby").await;
        assert!(history.starts_with(&safe), "round {round}: {} of {} are left", history.len(), safe.len());
        safe = if round == 0 { history } else { safe };
    }
}
