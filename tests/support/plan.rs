//! How a node is to be started: its folder, flags, variables, and what it is started through.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::SOON;
use super::folder::Folder;
use super::node::Node;

/// How to start a node. Limits are off unless a test asks for them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    folder: Folder,
    data: PathBuf,
    address: SocketAddr,
    prefix: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    panics_allowed: bool,
    plain: bool,
}

/// How a program that was run to its end went.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Checks the exit code, and that standard error is one plain sentence; returns that.
    pub(crate) fn expect_sentence(&self, code: i32) -> &str {
        let sentence = self.expect_last_sentence(code);
        assert_eq!(self.stderr.trim_end(), sentence, "one sentence, and no lines before it");
        sentence
    }

    /// Like [`Ended::expect_sentence`], but lets log lines come before it.
    pub(crate) fn expect_last_sentence(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "exit code; {self:?}");
        assert_eq!(self.stdout, "", "a failed start says nothing on standard output");
        assert!(!self.stderr.contains("panic") && !self.stderr.contains("RUST_BACKTRACE"), "{self:?}");
        let sentence = self.stderr.trim_end().lines().last().expect("a failed start says why");
        assert!(sentence.starts_with("parley: "), "the program says who speaks: {sentence}");
        sentence
    }
}

impl Plan {
    /// A node in a fresh folder, on a free port, without a rate limit.
    pub(crate) fn new() -> Self {
        Self::bare().at(SocketAddr::from(([127, 0, 0, 1], 0))).env("PARLEY_LIMITS_INTERVAL_MS", "0")
    }

    /// A node with nothing but a data folder of its own set.
    pub(crate) fn bare() -> Self {
        let folder = Folder::new();
        let data = folder.join("data");
        Self {
            folder,
            data,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            prefix: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            panics_allowed: false,
            plain: false,
        }
    }

    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Serves HTTP at this address.
    pub(crate) fn at(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self.arg("--http").arg(address.to_string())
    }

    /// One message per `interval_ms`, after a burst of `grace_ms / interval_ms`.
    pub(crate) fn limited(self, interval_ms: u64, grace_ms: u64) -> Self {
        self.env("PARLEY_LIMITS_INTERVAL_MS", interval_ms.to_string())
            .env("PARLEY_LIMITS_GRACE_MS", grace_ms.to_string())
    }

    /// Writes a config file and names it on the command line.
    pub(crate) fn toml(self, text: &str) -> Self {
        let path = self.folder.join("parley.toml");
        std::fs::write(&path, text).unwrap();
        self.arg("--config").arg(path.to_str().unwrap())
    }

    /// Keeps the data elsewhere than in the test's own folder.
    pub(crate) fn data(mut self, data: impl Into<PathBuf>) -> Self {
        self.data = data.into();
        self
    }

    /// Starts the program through another one that becomes it (`nsenter …`, `sh -c 'exec "$@"' …`).
    pub(crate) fn through(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(|&part| part.to_owned()).collect();
        self
    }

    /// Starts the program without naming the command or the data folder, so that it does what is the default.
    pub(crate) fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Forgets all variables, so that a file's values count.
    pub(crate) fn without_env(mut self) -> Self {
        self.env.clear();
        self
    }

    /// A panic in the node's log fails a test, unless the test provokes it.
    pub(crate) fn panics_allowed(mut self) -> Self {
        self.panics_allowed = true;
        self
    }

    pub(crate) fn may_panic(&self) -> bool {
        self.panics_allowed
    }

    pub(crate) fn data_folder(&self) -> &Path {
        &self.data
    }

    /// Where the node was told to serve HTTP.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Starts the node and waits for its ready line.
    pub(crate) async fn start(self) -> Node {
        match self.try_start().await {
            Ok(node) => node,
            Err(ended) => panic!("the node does not start: {ended:?}"),
        }
    }

    /// Starts the node, which may refuse to.
    pub(crate) async fn try_start(self) -> Result<Node, Ended> {
        let mut node = Node::planned(self);
        node.try_start_again().await?;
        Ok(node)
    }

    /// Runs the program with these arguments alone (no `serve`, no data folder) until it ends by itself.
    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        let mut command = self.command();
        command.args(args);
        wait_for_end(command).await
    }

    /// Runs `serve` as planned, which is expected to end by itself.
    pub(crate) async fn run_serve(&self) -> Ended {
        wait_for_end(self.command_to_serve()).await
    }

    fn command(&self) -> Command {
        let mut words: Vec<&str> = Vec::new();
        if dies_with_us() {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"]);
        }
        words.extend(self.prefix.iter().map(String::as_str));
        words.push(env!("CARGO_BIN_EXE_parley"));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(self.folder.path());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PARLEY_")) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The command that starts the node as planned.
    pub(crate) fn command_to_serve(&self) -> Command {
        let mut command = self.command();
        if !self.plain {
            command.arg("serve").arg("--data").arg(&self.data);
        }
        command.args(&self.args);
        command
    }
}

/// True when the system can kill our children with us, so that no node outlives a killed test run.
fn dies_with_us() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let tried = Command::new("setpriv").args(["--pdeathsig", "KILL", "--", "true"]).output();
        tried.is_ok_and(|output| output.status.success())
    })
}

async fn wait_for_end(mut command: Command) -> Ended {
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > SOON {
            child.kill().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut ended =
        Ended { code: child.wait().unwrap().code(), stdout: String::new(), stderr: String::new() };
    child.stdout.take().unwrap().read_to_string(&mut ended.stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut ended.stderr).unwrap();
    ended
}
