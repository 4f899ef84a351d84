//! A disk that takes no more: nothing is acked that is not kept, everyone is told, and the node stops.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, prlimit};

use crate::support::{Client, Folder, Node, Plan, SOON, Written, until};

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

/// Several writers until the node refuses and ends; returns their accounts. The node is gone afterwards.
async fn write_until_refused(node: &mut Node, life: usize) -> Vec<Written> {
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
    assert!(refused > 0, "senders are told which messages were not kept");
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
    assert!(last.contains("space") || last.contains("too large") || last.contains("storage"), "{last}");
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
    let mut written = write_until_refused(&mut node, 0).await;
    check_the_end(&mut node, &written).await;

    // With the disk still full the node may refuse to start or start and refuse again, but nothing worse.
    match node.try_start_again().await {
        Ok(()) => {
            println!("starts on the full disk");
            written.extend(write_until_refused(&mut node, 1).await);
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
    let written = write_until_refused(&mut node, 0).await;
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
