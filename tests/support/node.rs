//! The real program as a child: started on a port of its own, killed when dropped.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::frames::Said;
use super::http::{self, Reply};
use super::plan::{Ended, Plan};
use super::{SOON, until};

/// A graceful stop may take this long by the contract.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A running (or stopped, or killed) node with its folder.
#[derive(Debug)]
pub(crate) struct Node {
    /// How the node is started the next time.
    pub(crate) plan: Plan,
    running: Option<Running>,
    address: SocketAddr,
    ready_line: String,
    log: PathBuf,
    /// Where in the log the node's present or last life begins.
    log_start: u64,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdout: Receiver<String>,
}

impl Node {
    /// A node that is not running yet.
    pub(crate) fn planned(plan: Plan) -> Self {
        Self {
            log: plan.folder().join("stderr.log"),
            address: plan.address(),
            plan,
            running: None,
            ready_line: String::new(),
            log_start: 0,
        }
    }

    /// A node with all that [`Plan::new`] sets.
    pub(crate) async fn start() -> Self {
        Plan::new().start().await
    }

    /// Starts a stopped or killed node again on the same folder (and on a new port).
    pub(crate) async fn start_again(&mut self) {
        if let Err(ended) = self.try_start_again().await {
            panic!("the node does not start again: {ended:?}");
        }
    }

    /// Starts a stopped or killed node again, which may refuse to.
    pub(crate) async fn try_start_again(&mut self) -> Result<(), Ended> {
        self.spawn();
        self.ready(SOON + SOON).await
    }

    /// Waits until a node that was spawned says that it is ready, or ends.
    pub(crate) async fn ready(&mut self, limit: Duration) -> Result<(), Ended> {
        let mut line = None;
        let mut ended = None;
        until("the node is ready", limit, async || {
            match self.running.as_mut().unwrap().stdout.try_recv() {
                Ok(text) => line = Some(text),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => ended = Some(()),
            }
            line.is_some() || ended.is_some()
        })
        .await;
        let Some(line) = line else {
            let code = self.running.take().unwrap().child.wait().unwrap().code();
            return Err(Ended { code, stdout: String::new(), stderr: self.stderr_of_this_life() });
        };
        let base = line.split(' ').find_map(|word| word.strip_prefix("http="));
        self.ready_line.clone_from(&line);
        // An advertised address need not be one that the test can reach.
        let named = base.and_then(|base| base.strip_prefix("http://")?.parse().ok());
        if let Some(address) = named {
            self.address = address;
        }
        Ok(())
    }

    /// Starts the node's process and does not wait for it.
    pub(crate) fn spawn(&mut self) {
        assert!(self.running.is_none(), "the node still runs");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        self.log_start = log.metadata().unwrap().len();
        let mut command = self.plan.command_to_serve();
        command.stderr(log);
        let mut child = command.spawn().unwrap();
        let pipe = child.stdout.take().unwrap();
        let (sender, stdout) = channel();
        std::thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        self.running = Some(Running { child, stdout });
    }

    /// Starts the node and kills it after a while, ready or not.
    pub(crate) async fn start_and_kill_after(&mut self, delay: Duration) {
        self.spawn();
        tokio::time::sleep(delay).await;
        self.kill9();
    }

    /// Kills the node if it runs, and starts it again.
    pub(crate) async fn restart_after_kill(&mut self) {
        self.kill9();
        self.start_again().await;
    }

    /// SIGKILL, now.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().unwrap();
            running.child.wait().unwrap();
        }
    }

    /// SIGTERM; returns the exit code, and fails when the node takes longer than it may.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ended(STOP_MAX).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until the node has ended by itself and returns its exit code.
    pub(crate) async fn ended(&mut self, limit: Duration) -> Option<i32> {
        until("the node has ended", limit, async || self.has_ended()).await;
        self.running.take().unwrap().child.wait().unwrap().code()
    }

    /// Whether a node that was started has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.running.as_mut().expect("the node was started").child.try_wait().unwrap().is_some()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.running.as_ref().expect("the node runs").child)
    }

    /// The memory of the process, or `None` when it is not running.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Lines that the node wrote to standard output after its ready line.
    pub(crate) fn further_output(&self) -> Vec<String> {
        self.running.as_ref().map(|running| running.stdout.try_iter().collect()).unwrap_or_default()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn ready_line(&self) -> &str {
        &self.ready_line
    }

    pub(crate) fn data(&self) -> &Path {
        self.plan.data_folder()
    }

    /// What the node has written to standard error since it was started the last time.
    pub(crate) fn stderr_of_this_life(&self) -> String {
        let mut log = std::fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&log.split_off(self.log_start as usize)).into_owned()
    }

    /// True when a panic is in the log, be it in the words of Rust or of the program.
    pub(crate) fn has_panicked(&self) -> bool {
        let log = self.stderr();
        log.contains("panicked at") || log.contains("panic:")
    }

    /// Everything the node has written to standard error, in all its lives.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        http::request(self.address, "GET", path, &[]).await
    }

    pub(crate) async fn try_get(&self, path: &str) -> std::io::Result<Reply> {
        http::try_request(self.address, "GET", path, &[]).await
    }

    /// A fresh private room.
    pub(crate) async fn private_room(&self) -> String {
        let reply = http::request(self.address, "POST", "/api/room", &[]).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.text().to_owned()
    }

    /// One page of a room's history; the query is without the question mark.
    pub(crate) async fn page(&self, room: &str, query: &str) -> (Vec<Said>, bool) {
        let reply = self.get(&format!("{}/history?{query}", super::client::room_path(room))).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let body = reply.json();
        let messages = body["messages"].as_array().expect("messages is a list");
        let more = body["more"].as_bool().expect("more is true or false");
        assert_eq!(body.as_object().unwrap().len(), 2, "a page has two fields");
        (messages.iter().map(|message| Said::from_json(message).unwrap()).collect(), more)
    }

    /// The whole history of a room, oldest first, checked to be in strict order.
    pub(crate) async fn history(&self, room: &str) -> Vec<Said> {
        self.history_after(room, 0).await
    }

    /// All of a room's history after a timestamp.
    pub(crate) async fn history_after(&self, room: &str, after: u64) -> Vec<Said> {
        let mut all: Vec<Said> = Vec::new();
        let mut cursor = after;
        loop {
            let (page, more) = self.page(room, &format!("after={cursor}&limit=1000")).await;
            for said in page {
                assert!(said.timestamp > cursor, "{} after {cursor} in the history", said.timestamp);
                cursor = said.timestamp;
                all.push(said);
            }
            if !more {
                return all;
            }
        }
    }

    /// The sum of a metric over its labels; zero when it has not been counted yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.metric_where(name, "").await
    }

    /// The sum of a metric over those series whose labels contain the text, like `code="1009"`.
    pub(crate) async fn metric_where(&self, name: &str, labels: &str) -> f64 {
        let reply = self.get("/metrics").await;
        assert_eq!(reply.status, 200);
        let series = reply.text().lines().filter_map(|line| line.rsplit_once(' '));
        series
            .filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(labels))
            .map(|(_, value)| value.parse::<f64>().expect("a metric is a number"))
            .sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill9();
        let log = self.stderr();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            println!("--- the node's last lines ({})\n{tail}\n---", self.plan.data_folder().display());
        } else if !self.plan.may_panic() {
            assert!(!self.has_panicked(), "the node panicked:\n{log}");
        }
    }
}
