//! The edge: HTTP and WebSockets, served by warp on hyper.
//!
//! [`server`] accepts connections, [`routes`] says what is where, [`upgrade`] turns a request into a socket, and
//! [`socket`] runs one session. [`pages`] is the page, [`api`] the rest, [`address`] who is asking.

pub mod address;
pub mod api;
pub mod pages;
pub mod routes;
pub mod server;
pub mod socket;
pub mod upgrade;

use crate::actors::context::Context;
use address::Origins;
use ipnet::IpNet;
use pages::Page;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, mpsc, watch};

/// What the node is about, as its sockets need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Serving.
    Running,
    /// Told to stop: sessions are closed with 1012.
    Stopping,
    /// Unable to go on, and why: sessions are closed with 1011.
    Failed(String),
}

/// What every request is given.
pub struct Web {
    /// The actors' side of the node.
    pub context: Arc<Context>,
    /// What the node is about.
    pub phase: watch::Receiver<Phase>,
    /// Who may open sockets from another page.
    pub origins: Origins,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The chat page.
    pub page: Page,
    /// One permit a session.
    pub session_slots: Arc<Semaphore>,
    /// Cloned into every session: when all clones are gone, all sessions have ended.
    pub session_alive: mpsc::WeakSender<Infallible>,
    numbers: Numbers,
}

impl Web {
    /// What requests are given on a node with this configuration.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new(
        context: Arc<Context>,
        phase: watch::Receiver<Phase>,
        origins: Origins,
        trusted_proxies: Vec<IpNet>,
        page: Page,
        sessions_max: usize,
        session_alive: mpsc::WeakSender<Infallible>,
    ) -> Result<Self, getrandom::Error> {
        let session_slots = Arc::new(Semaphore::new(sessions_max));
        let numbers = Numbers::new()?;
        Ok(Self { context, phase, origins, trusted_proxies, page, session_slots, session_alive, numbers })
    }
}

/// Numbers for sessions, and ids for messages whose client gave none.
struct Numbers {
    next_session: AtomicU64,
    /// Different in every process, so that ids of ours never meet those of an earlier run.
    process: u64,
    next_message: AtomicU64,
}

impl Numbers {
    fn new() -> Result<Self, getrandom::Error> {
        let process = getrandom::u64()?;
        Ok(Self { next_session: AtomicU64::new(1), process, next_message: AtomicU64::new(0) })
    }

    fn session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    fn message(&self) -> u128 {
        u128::from(self.process) << 64 | u128::from(self.next_message.fetch_add(1, Ordering::Relaxed))
    }
}
