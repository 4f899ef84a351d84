//! Starts nodes, tells them what to do, stops and kills them, and reads what they log.

use crate::node::{ANSWER, NODE};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The names and addresses of a test's nodes.
pub(crate) struct Cluster {
    addrs: Vec<(String, SocketAddr)>,
}

/// A node that runs. Killed and reaped when dropped.
pub(crate) struct Node {
    pub(crate) name: String,
    /// Whether its links started.
    pub(crate) started: Result<(), String>,
    /// How many sockets it has without any link.
    pub(crate) sockets_idle: usize,
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Cluster {
    pub(crate) fn new(names: &[&str]) -> Self {
        // All are bound at once, so that no two get the same port.
        let listeners: Vec<_> =
            names.iter().map(|name| (name, TcpListener::bind("127.0.0.1:0").unwrap())).collect();
        let addrs =
            listeners.iter().map(|(name, listener)| ((**name).into(), listener.local_addr().unwrap()));
        Self { addrs: addrs.collect() }
    }

    pub(crate) fn addr(&self, name: &str) -> SocketAddr {
        self.addrs.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub(crate) fn start(&self, name: &str) -> Node {
        self.start_with(name, "name", name)
    }

    /// Starts the node `name` with one thing different.
    pub(crate) fn start_with(&self, name: &str, key: &str, value: &str) -> Node {
        let peers = self.addrs.iter().filter(|(peer, _)| peer != name);
        let peers: Vec<String> = peers.map(|(peer, addr)| format!("{peer}={addr}")).collect();
        let mut config: HashMap<&str, String> = HashMap::from([
            ("name", name.to_owned()),
            ("listen", self.addr(name).to_string()),
            ("peers", peers.join(" ")),
            ("cookie", "the cookie of the tests".to_owned()),
            ("shards", "16".to_owned()),
        ]);
        config.insert(key, value.to_owned());
        Node::start(name, &serde_json::to_string(&config).unwrap())
    }
}

impl Node {
    fn start(name: &str, config: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["node::node", "--exact", "--nocapture", "--test-threads=1"])
            .env(NODE, config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let (answer, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(text) = line.strip_prefix(ANSWER) {
                    let _ = answer.send(text.to_owned());
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut node =
            Self { name: name.to_owned(), started: Ok(()), sockets_idle: 1, process, orders, answers, log };
        match node.answer().as_str() {
            "ready" => {}
            other => node.started = Err(other.trim_start_matches("failed ").to_owned()),
        }
        node
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    fn answer(&self) -> String {
        let answer = self.answers.recv_timeout(PATIENCE);
        answer.unwrap_or_else(|_| panic!("{} does not answer; its log:\n{}", self.name, self.log()))
    }

    /// Asks until the answer is this one.
    pub(crate) fn until(&mut self, order: &str, expected: &str) {
        self.until_answer(order, |answer| answer == expected);
    }

    /// Asks until the peer stands like this.
    pub(crate) fn until_peer(&mut self, peer: &str, state: &str) {
        let expected = format!("{peer}:{state}");
        self.until_answer("peers", |answer| answer.split(' ').any(|peer| peer == expected));
    }

    /// Asks until the newest frame from `peer` is this one.
    pub(crate) fn until_last(&mut self, peer: &str, number: u64) {
        self.until(&format!("last {peer}"), &number.to_string());
    }

    fn until_answer(&mut self, order: &str, is_it: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let answer = self.ask(order);
            if is_it(&answer) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{}: {order}: at last {answer:?}; its log:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its log holds this.
    pub(crate) fn until_log(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < PATIENCE, "{}: no {text:?} in its log:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The memory it holds, in KB.
    pub(crate) fn memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.name, self.log());
        }
    }
}

/// How many network sockets a process has.
pub(crate) fn sockets(pid: u32) -> usize {
    // Of all its sockets those that the kernel lists as TCP: a runtime has others of its own.
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let tcp: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9)).collect();
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| {
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            inode.is_some_and(|inode| tcp.contains(&inode))
        })
        .count()
}

/// Waits until this is so.
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
