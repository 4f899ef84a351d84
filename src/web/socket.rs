//! One session: a task that reads its socket, writes its queue, and keeps its time.
//!
//! Invariants:
//! - At most [`IN_FLIGHT_MAX`] messages of a session wait for their acks; beyond that its socket is not read.
//! - Frames are written whole: between the pieces of one, nothing else is written.
//! - Whatever ends a session, its gateway is told.
//!
//! What the room says comes as bytes with their WebSocket headers on and goes straight to the TCP stream, the same
//! bytes for everyone. Tungstenite reads, and writes what is this socket's alone (pongs, pings, the close).

use super::{Phase, Web};
use crate::actors::context;
use crate::actors::gateway::{GatewayMsg, Inbox, ToSession, session_queue};
use crate::chat::session::{Action, Session, error_frame};
use crate::protocol::Timestamp;
use crate::protocol::names::{LimiterKey, MessageId, RoomName, SessionNumber};
use bytes::{Buf, Bytes};
use futures_util::{SinkExt, StreamExt};
use ractor::ActorRef;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

/// Messages of one session that may wait for their acks.
pub const IN_FLIGHT_MAX: u32 = 64;

/// How long a session may take to give its name.
const NAME_TIMEOUT: Duration = Duration::from_secs(30);

/// A session from which nothing was heard for this long is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Pings that may go unanswered.
const PONGS_MISSED_MAX: u32 = 2;

/// How long a stopping node waits for a session's acks.
const ACKS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a session that is closed for reading slowly may take to read up to the close, and how long any other may
/// take to read what is written at once.
const SLOW_TIMEOUT: Duration = Duration::from_secs(30);

/// Queued items written with one call.
const WRITE_ITEMS_MAX: usize = 64;

/// What a socket brings along from its request.
pub struct Admission {
    /// The node.
    pub web: Arc<Web>,
    /// The room.
    pub room: RoomName,
    /// What the client saw last, if it was here before.
    pub since: Option<Timestamp>,
    /// The client's address.
    pub limiter: LimiterKey,
    /// The rules.
    pub session: Session,
    /// The place among the node's sessions.
    pub slot: OwnedSemaphorePermit,
    /// Held while the session lives.
    pub alive: mpsc::Sender<Infallible>,
}

/// Why a session ends.
#[derive(Debug)]
enum End {
    /// The client is gone, or the network.
    Gone,
    /// We close it.
    Close(Close),
}

/// A close of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Close {
    code: u16,
    reason: &'static str,
}

const NAME_MISSING: Close = Close { code: 1008, reason: "No name was given in time." };
const TOO_BIG: Close = Close { code: 1009, reason: "The frame is too big." };
const PROTOCOL: Close = Close { code: 1002, reason: "Not a valid WebSocket frame." };
const OUR_FAULT: Close = Close { code: 1011, reason: "The server failed. Please connect again." };
const RESTARTING: Close = Close { code: 1012, reason: "The server restarts. Please connect again." };
const TOO_SLOW: Close = Close { code: 1013, reason: "You read too slowly. Please connect again." };

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Self::Close(TOO_BIG),
            Error::Protocol(
                tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            ) => Self::Gone,
            Error::Protocol(_) | Error::Utf8(_) => Self::Close(PROTOCOL),
            _ => Self::Gone,
        }
    }
}

/// Runs a session to its end.
pub async fn run(stream: WebSocketStream<TcpStream>, admission: Admission) {
    let web = Arc::clone(&admission.web);
    web.context.metrics.sessions.inc();
    let mut socket = Socket::new(stream, admission);
    let end = socket.serve().await;
    // When the whole node goes, its sessions do not tell each other of their leaving, one after the other.
    if let (Some(gateway), Phase::Running) = (&socket.gateway, &*web.phase.borrow()) {
        // A gateway that is gone has forgotten the session already.
        let _ = gateway.cast(GatewayMsg::Leave(socket.number));
    }
    web.context.metrics.sessions.dec();
    if let End::Close(close) = end {
        socket.count(close);
        socket.close(close).await;
    }
}

struct Socket {
    stream: WebSocketStream<TcpStream>,
    web: Arc<Web>,
    phase: watch::Receiver<Phase>,
    limiter: LimiterKey,
    session: Session,
    number: SessionNumber,
    /// None while this node's gateway is being started again.
    gateway: Option<ActorRef<GatewayMsg>>,
    inbox: Inbox,
    in_flight: u32,
    /// When the oldest messages in flight arrived; as many as were not yet settled.
    said_at: VecDeque<Instant>,
    heard_at: Instant,
    pongs_missed: u32,
    /// When time is up for whatever is waited for.
    deadline: Instant,
    /// Set when the node stops or fails: the close that follows once nothing is in flight.
    closing: Option<Close>,
    close_counted: bool,
    _slot: OwnedSemaphorePermit,
    _alive: mpsc::Sender<Infallible>,
}

impl Socket {
    fn new(stream: WebSocketStream<TcpStream>, admission: Admission) -> Self {
        let Admission { web, room, since, limiter, session, slot, alive } = admission;
        let (outbox, inbox) = session_queue();
        let now = Instant::now();
        let number = web.numbers.session();
        let gateway = context::gateway(&web.context.gateway_of(&room));
        if let Some(gateway) = &gateway {
            // If this fails the outbox goes with it, and the inbox tells.
            let _ = gateway.cast(GatewayMsg::Arrive { session: number, room, since, outbox });
        }
        Self {
            stream,
            phase: web.phase.clone(),
            number,
            web,
            limiter,
            session,
            gateway,
            inbox,
            in_flight: 0,
            said_at: VecDeque::new(),
            heard_at: now,
            pongs_missed: 0,
            deadline: now + NAME_TIMEOUT,
            closing: None,
            close_counted: false,
            _slot: slot,
            _alive: alive,
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            if let (Some(close), 0) = (self.closing, self.in_flight) {
                return close.into();
            }
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// Waits for one thing and deals with it.
    async fn step(&mut self) -> Result<(), End> {
        let reads = self.closing.is_none() && self.in_flight < IN_FLIGHT_MAX;
        tokio::select! {
            item = self.inbox.next() => match item {
                Some(item) => self.write_queued(item).await,
                None if self.inbox.has_overflowed() => Err(TOO_SLOW.into()),
                // The gateway has failed and lost its sessions.
                None => Err(OUR_FAULT.into()),
            },
            frame = self.stream.next(), if reads => match frame {
                Some(frame) => self.frame(frame?).await,
                None => Err(End::Gone),
            },
            () = sleep_until(self.deadline) => self.time_is_up().await,
            _ = self.phase.changed(), if self.closing.is_none() => {
                self.phase_changed();
                Ok(())
            }
        }
    }

    async fn frame(&mut self, frame: Message) -> Result<(), End> {
        let now = Instant::now();
        self.heard_at = now;
        self.pongs_missed = 0;
        match frame {
            Message::Text(text) => self.text(&text, now).await,
            Message::Binary(_) => {
                let refusal = error_frame("Expected a text frame.", None, None);
                self.write(&mut [refusal]).await
            }
            // Tungstenite answers pings; flushing sends the pong.
            Message::Ping(_) | Message::Pong(_) => Ok(self.stream.flush().await?),
            Message::Close(_) => {
                // Completes the closing handshake; the client has gone either way.
                let _ = timeout(CLOSE_TIMEOUT, self.stream.flush()).await;
                Err(End::Gone)
            }
            Message::Frame(_) => Ok(()),
        }
    }

    async fn text(&mut self, text: &str, now: Instant) -> Result<(), End> {
        let uptime_ms = self.web.context.clock.uptime_ms();
        match self.session.text(text, uptime_ms) {
            Action::Join(name) => self.enter(name),
            Action::Say { id, text } => {
                let id = id.map_or_else(|| MessageId::Made(self.web.numbers.message()), MessageId::Client);
                let say = GatewayMsg::Say { session: self.number, id, text, limiter: self.limiter() };
                self.in_flight += 1;
                self.said_at.push_back(now);
                self.tell_gateway(say)
            }
            Action::Refuse(wire) => self.write(&mut [wire]).await,
            Action::RefuseForNow(wire) => {
                self.web.context.metrics.limiter_refusals.inc();
                self.write(&mut [wire]).await
            }
            Action::CloseTooBig(wire, reason) => {
                self.write(&mut [wire]).await?;
                Err(Close { code: 1009, reason }.into())
            }
        }
    }

    fn enter(&mut self, name: Arc<str>) -> Result<(), End> {
        self.deadline = self.heard_at + PING_INTERVAL;
        self.tell_gateway(GatewayMsg::Enter { session: self.number, name, limiter: self.limiter() })
    }

    fn limiter(&self) -> Option<LimiterKey> {
        self.web.context.limits.enabled().then(|| self.limiter.clone())
    }

    fn tell_gateway(&self, message: GatewayMsg) -> Result<(), End> {
        let gateway = self.gateway.as_ref().ok_or(OUR_FAULT)?;
        gateway.cast(message).map_err(|_| OUR_FAULT.into())
    }

    async fn time_is_up(&mut self) -> Result<(), End> {
        if let Some(close) = self.closing {
            return Err(close.into());
        }
        if !self.session.is_named() {
            return Err(NAME_MISSING.into());
        }
        // Frames do not move the deadline, which would cost something for each; they leave a note of when they came.
        let due = self.heard_at + PING_INTERVAL;
        let reads = self.in_flight < IN_FLIGHT_MAX;
        if reads && self.pongs_missed == 0 && due > self.deadline {
            self.deadline = due;
            return Ok(());
        }
        self.deadline += PING_INTERVAL;
        if !reads {
            return Ok(()); // Its pongs are not read either.
        }
        if self.pongs_missed == PONGS_MISSED_MAX {
            debug!("session dropped: it does not answer pings");
            return Err(End::Gone);
        }
        self.pongs_missed += 1;
        Ok(timeout(SLOW_TIMEOUT, self.stream.send(Message::Ping(Bytes::new())))
            .await
            .map_err(|_| End::Gone)??)
    }

    fn phase_changed(&mut self) {
        let close = match &*self.phase.borrow_and_update() {
            Phase::Running => return,
            Phase::Stopping => RESTARTING,
            Phase::Failed(_) => OUR_FAULT,
        };
        self.closing = Some(close);
        self.deadline = Instant::now() + ACKS_TIMEOUT;
    }

    /// Writes `first` and all that is queued behind it.
    async fn write_queued(&mut self, first: ToSession) -> Result<(), End> {
        let mut wires = Vec::new();
        self.take(first, &mut wires);
        while wires.len() < WRITE_ITEMS_MAX {
            let Some(item) = self.inbox.try_next() else { break };
            self.take(item, &mut wires);
        }
        if wires.is_empty() { Ok(()) } else { self.write(&mut wires).await }
    }

    fn take(&mut self, item: ToSession, wires: &mut Vec<Bytes>) {
        match item {
            ToSession::Write { wire, settled } => {
                if !wire.is_empty() {
                    wires.push(wire);
                }
                for _ in 0..settled.min(self.in_flight) {
                    self.in_flight -= 1;
                    if let Some(said_at) = self.said_at.pop_front() {
                        self.web.context.metrics.ack_seconds.observe(said_at.elapsed().as_secs_f64());
                    }
                }
            }
            ToSession::Cooldown(cooldown_ms) => {
                self.session.cooldown(cooldown_ms, self.web.context.clock.uptime_ms());
            }
        }
    }

    /// Writes whole frames, all or until the session has to be given up.
    async fn write(&mut self, wires: &mut [Bytes]) -> Result<(), End> {
        let mut gather = Gather(wires);
        let overflowed = tokio::select! {
            biased;
            done = write_all(&mut self.stream, &mut gather) => return done,
            () = self.inbox.overflow() => true,
            () = tokio::time::sleep(SLOW_TIMEOUT) => false,
        };
        if !overflowed {
            return Err(End::Gone);
        }
        // The queue ran over while the socket was stuck. The frame under way has to be finished before the close.
        self.count(TOO_SLOW);
        match timeout(SLOW_TIMEOUT, write_all(&mut self.stream, &mut gather)).await {
            Ok(done) => done.and(Err(TOO_SLOW.into())),
            Err(_) => Err(End::Gone),
        }
    }

    /// Counts a close of ours, once, when it is decided on.
    fn count(&mut self, close: Close) {
        if !std::mem::replace(&mut self.close_counted, true) {
            self.web.context.metrics.closes.with_label_values(&[&close.code.to_string()]).inc();
            debug!(code = close.code, reason = close.reason, "session closed");
        }
    }

    /// Closes with the handshake, as far as the client takes part in it.
    async fn close(&mut self, close: Close) {
        let Close { code, reason } = close;
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let patience = if close == TOO_SLOW { SLOW_TIMEOUT } else { CLOSE_TIMEOUT };
        let closing = async {
            if self.stream.close(Some(frame)).await.is_err() {
                return;
            }
            while let Some(Ok(_)) = self.stream.next().await {}
            // After a frame that is no frame nothing more can be understood, yet it has to be read: a connection that
            // is closed with bytes unread is reset, and our last frames can go with it.
            let stream = self.stream.get_mut();
            let mut unread = [0; 1024];
            if stream.shutdown().await.is_ok() {
                while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {}
            }
        };
        if timeout(patience, closing).await.is_err() {
            debug!(code, "a session did not take part in its closing");
        }
    }
}

/// Writes what is left of `gather`. May be given up and taken up again: what was written is taken off.
async fn write_all(stream: &mut WebSocketStream<TcpStream>, gather: &mut Gather<'_>) -> Result<(), End> {
    // What tungstenite still holds comes first, or its bytes would end up inside ours.
    stream.flush().await?;
    Ok(stream.get_mut().write_all_buf(gather).await?)
}

/// Several pieces of bytes as one, written with one call.
struct Gather<'a>(&'a mut [Bytes]);

impl Buf for Gather<'_> {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.iter().find(|wire| !wire.is_empty()).map_or(&[], |wire| wire)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.0.iter().filter(|wire| !wire.is_empty());
        let mut filled = 0;
        for (slice, wire) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(wire);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        for wire in self.0.iter_mut() {
            let taken = count.min(wire.len());
            wire.advance(taken);
            count -= taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathered_pieces_are_taken_in_order_however_much_is_written_at_once() {
        for step in 1..=8 {
            let mut wires = ["ab", "", "cde", "f"].map(|text| Bytes::from_static(text.as_bytes()));
            let mut gather = Gather(&mut wires);
            let mut out = Vec::new();
            while gather.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = gather.chunks_vectored(&mut slices);
                let flat: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(flat.len(), gather.remaining());
                let count = step.min(flat.len());
                out.extend_from_slice(&flat[..count]);
                gather.advance(count);
            }
            assert_eq!(out, b"abcdef");
        }
    }
}
