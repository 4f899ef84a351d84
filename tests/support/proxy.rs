//! Links that fail on demand: a TCP proxy for each direction in which one node dials another.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes taken from one side at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes that may be on their way over a slow link.
const LATE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What becomes of the bytes that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They arrive.
    None,
    /// They arrive later.
    Late(Duration),
    /// No more than this many of them arrive in a second.
    Narrow(u64),
    /// They are kept back and arrive when the link is healed, as TCP does it when a network loses every packet.
    Held,
    /// They are taken and thrown away, and nothing is closed. A connection that lost bytes is reset when the link is
    /// healed, as by a middlebox that forgot it.
    Swallowed,
    /// Every connection is reset, and so is every new one.
    Cut,
}

impl Fault {
    /// Bytes that may be on their way.
    fn line_max(self) -> usize {
        if matches!(self, Self::Late(_)) { LATE_BYTES_MAX } else { CHUNK_BYTES }
    }
}

/// The state of the two ways of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// From the one who dials.
    forth: Fault,
    /// To the one who dials.
    back: Fault,
    /// Connections of an earlier number are reset.
    reset: u64,
}

impl State {
    fn is_open(self) -> bool {
        let carries = |fault: &Fault| matches!(fault, Fault::None | Fault::Late(_) | Fault::Narrow(_));
        [self.forth, self.back].iter().all(carries)
    }

    fn is_cut(self) -> bool {
        self.forth == Fault::Cut || self.back == Fault::Cut
    }
}

/// Which of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the one who dials.
    Forth,
    /// To the one who dials.
    Back,
}

/// Listens in place of a node, and passes on what comes; ends when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens at `address` and passes on to `target`.
    pub(crate) async fn start(address: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (state, watched) = watch::channel(State { forth: Fault::None, back: Fault::None, reset: 0 });
        let task = tokio::spawn(async move {
            // Dropped with the task, and every connection with it.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    Ok((dialler, _)) = listener.accept() => {
                        connections.spawn(carry(dialler, target, watched.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { state, task })
    }

    /// From now on this becomes of the bytes that go this way.
    pub(crate) fn set(&self, way: Way, fault: Fault) {
        self.state.send_modify(|state| match way {
            Way::Forth => state.forth = fault,
            Way::Back => state.back = fault,
        });
    }

    /// What sets it from elsewhere.
    pub(crate) fn switch(&self) -> Switch {
        Switch(self.state.clone())
    }

    /// Resets every connection there is now. New ones are taken.
    pub(crate) fn reset(&self) {
        self.state.send_modify(|state| state.reset += 1);
    }
}

/// Sets what a proxy does, without owning it.
#[derive(Debug)]
pub(crate) struct Switch(watch::Sender<State>);

impl Switch {
    /// From now on this becomes of all bytes.
    pub(crate) fn set_both(&self, fault: Fault) {
        self.0.send_modify(|state| (state.forth, state.back) = (fault, fault));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connection is to be reset, on both sides.
struct Reset;

impl From<io::Error> for Reset {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// One connection, from the moment it was accepted.
async fn carry(mut dialler: TcpStream, target: SocketAddr, mut watched: watch::Receiver<State>) {
    let born = watched.borrow().reset;
    let mut other = None;
    // A handshake does not get through a link that is held or swallows; but who dials cannot be kept from
    // believing that it did.
    let opened = watched.wait_for(|state| state.is_open() || state.is_cut() || state.reset > born).await;
    let goes_on = opened.is_ok_and(|state| !state.is_cut() && state.reset == born);
    if goes_on && let Ok(stream) = TcpStream::connect(target).await {
        let listener = other.insert(stream);
        let _ = dialler.set_nodelay(true);
        let _ = listener.set_nodelay(true);
        let (from_dialler, to_dialler) = dialler.split();
        let (from_listener, to_listener) = listener.split();
        let forth = pump(from_dialler, to_listener, |state| state.forth, born, watched.clone());
        let back = pump(from_listener, to_dialler, |state| state.back, born, watched.clone());
        if tokio::try_join!(forth, back).is_ok() {
            return;
        }
    }
    for stream in std::iter::once(&dialler).chain(&other) {
        let _ = stream.set_zero_linger();
    }
}

/// Carries bytes one way until their source ends, or the connection is to be reset.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    fault: impl Fn(State) -> Fault,
    born: u64,
    mut watched: watch::Receiver<State>,
) -> Result<(), Reset> {
    let mut line = Line::default();
    let mut ended = false;
    let mut lossy = false;
    loop {
        let state = *watched.borrow_and_update();
        if state.is_cut() || state.reset > born {
            return Err(Reset);
        }
        let now = fault(state);
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        match now {
            Fault::Held => watched.changed().await.map_err(|_| Reset)?,
            Fault::Swallowed if ended => watched.changed().await.map_err(|_| Reset)?,
            Fault::Swallowed => {
                lossy = lossy || !line.parts.is_empty();
                line = Line::default();
                tokio::select! {
                    changed = watched.changed() => changed.map_err(|_| Reset)?,
                    count = from.read_buf(&mut bytes) => {
                        ended = count? == 0;
                        lossy = true;
                    }
                }
            }
            _ if lossy => return Err(Reset),
            _ if ended && line.parts.is_empty() => return Ok(to.shutdown().await?),
            Fault::None | Fault::Late(_) | Fault::Narrow(_) | Fault::Cut => tokio::select! {
                changed = watched.changed() => changed.map_err(|_| Reset)?,
                count = line.pass_on(&mut to), if !line.parts.is_empty() => line.passed(count?),
                count = from.read_buf(&mut bytes), if !ended && line.bytes < now.line_max() => {
                    ended = count? == 0;
                    // The fault of the moment in which the bytes came, which may be newer than the one waited under.
                    line.push(bytes, fault(*watched.borrow()));
                }
            },
        }
    }
}

/// Bytes on their way, each with the time at which it arrives.
#[derive(Default)]
struct Line {
    parts: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Line {
    fn push(&mut self, part: Vec<u8>, fault: Fault) {
        if part.is_empty() {
            return;
        }
        let now = Instant::now();
        let due = match fault {
            Fault::Late(delay) => now + delay,
            Fault::Narrow(rate) => {
                let free = self.parts.back().map_or(now, |(due, _)| *due);
                free + Duration::from_secs_f64(part.len() as f64 / rate as f64)
            }
            Fault::None | Fault::Held | Fault::Swallowed | Fault::Cut => now,
        };
        self.bytes += part.len();
        self.parts.push_back((due, part));
    }

    /// Writes some of the first part once it is due; nothing is written when this is cancelled.
    async fn pass_on(&self, to: &mut WriteHalf<'_>) -> io::Result<usize> {
        let Some((due, part)) = self.parts.front() else { return Ok(0) };
        tokio::time::sleep_until(*due).await;
        to.write(part).await
    }

    fn passed(&mut self, count: usize) {
        self.bytes -= count;
        if let Some((_, part)) = self.parts.front_mut() {
            part.drain(..count);
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
    }
}
