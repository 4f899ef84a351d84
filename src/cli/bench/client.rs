//! One WebSocket to the server, kept small: a run holds tens of thousands.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Sink, Stream};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::wire::{Incoming, describe_error};
use crate::cli::target::Resolved;

/// Allocated for every socket, and cleared before every read.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Small frames wait here until the session is done with what it has to say.
const WRITE_BUFFER_BYTES: usize = 4 * 1024;
/// A server that reads nothing may leave this much unsent before the run fails.
const WRITE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// The longest frame of the protocol is far shorter.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Where a session goes and who it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Invitation<'a> {
    pub(super) target: &'a Resolved,
    pub(super) room: &'a str,
    /// The index in the room; the session's name is `m` and this.
    pub(super) index: u32,
    /// The address it comes from, when the system's choice would not do.
    pub(super) source: Option<Ipv4Addr>,
}

/// What came out of a socket.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Utf8Bytes),
    Pong,
}

/// A connected session.
#[derive(Debug)]
pub(super) struct Client {
    socket: WebSocketStream<TcpStream>,
    unsent: bool,
}

impl Client {
    async fn connect(invitation: Invitation<'_>) -> Result<Self, String> {
        let Invitation { target, room, source, .. } = invitation;
        let stream = dial(target.address, source)
            .await
            .map_err(|error| format!("cannot connect to {}: {error}", target.authority))?;
        let request = format!("ws://{}/api/room/{room}/websocket", target.authority)
            .into_client_request()
            .map_err(|error| format!("cannot ask for a WebSocket: {error}"))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(Self { socket, unsent: false }),
            Err(Error::Http(response)) => {
                Err(format!("the server refused the WebSocket: HTTP {}", response.status()))
            }
            Err(error) => Err(format!("the server did not open a WebSocket: {error}")),
        }
    }

    /// Connects, gives the name and waits for `ready`. Also says how many `joined` came before it.
    ///
    /// # Errors
    /// A sentence, when the server refuses or this takes longer than `timeout`.
    pub(super) async fn admit(invitation: Invitation<'_>, timeout: Duration) -> Result<(Self, u32), String> {
        let admission = async {
            let mut client = Self::connect(invitation).await?;
            client.queue(format!("{{\"name\":\"m{}\"}}", invitation.index))?;
            let mut joined = 0;
            loop {
                let Event::Frame(frame) = client.next().await? else { continue };
                match Incoming::parse(&frame)? {
                    Incoming::Joined => joined += 1,
                    Incoming::Ready => return Ok((client, joined)),
                    Incoming::Error { text, retry_after_ms } => {
                        return Err(describe_error(text.as_ref(), retry_after_ms));
                    }
                    Incoming::Said(_) | Incoming::Ack { .. } | Incoming::Quit(_) => {
                        return Err(format!("got this in a new room where nobody spoke or left: {frame}"));
                    }
                }
            }
        };
        tokio::time::timeout(timeout, admission)
            .await
            .unwrap_or_else(|_| Err(format!("was not let in (no `ready`) within {} s", timeout.as_secs())))
    }

    /// Takes a text frame to be sent by the next [`Self::poll_sent`] or [`Self::poll_event`].
    pub(super) fn queue(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), String> {
        self.queue_message(Message::Text(text.into()))
    }

    /// Takes a ping to be sent likewise.
    pub(super) fn queue_ping(&mut self) -> Result<(), String> {
        self.queue_message(Message::Ping(bytes::Bytes::new()))
    }

    fn queue_message(&mut self, message: Message) -> Result<(), String> {
        self.unsent = true;
        Pin::new(&mut self.socket).start_send(message).map_err(describe)
    }

    /// Ready once all that was queued is with the system.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        if self.unsent {
            ready!(Pin::new(&mut self.socket).poll_flush(cx)).map_err(describe)?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame, while what is queued goes out.
    ///
    /// # Errors
    /// A sentence, when the connection is over: with the close code if the server gave one.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, String>> {
        if let Poll::Ready(Err(error)) = self.poll_sent(cx) {
            return Poll::Ready(Err(error));
        }
        loop {
            let event = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Text(text))) => Ok(Event::Frame(text)),
                Some(Ok(Message::Pong(_))) => Ok(Event::Pong),
                // The answer to a ping goes out with the next read, which follows at once.
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(_))) => {
                    Err("got a binary frame, which the protocol does not have".to_owned())
                }
                Some(Ok(Message::Close(Some(close)))) => Err(format!(
                    "was closed by the server with {} {:?}",
                    u16::from(close.code),
                    close.reason.as_str()
                )),
                Some(Ok(Message::Close(None))) | None => {
                    Err("was closed by the server without a code".to_owned())
                }
                Some(Err(error)) => Err(describe(error)),
            };
            return Poll::Ready(event);
        }
    }

    /// [`Self::poll_event`], to be awaited.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }
}

fn describe(error: Error) -> String {
    match error {
        Error::WriteBufferFull(_) => "the server stopped reading what this session sends".to_owned(),
        other => format!("the connection broke: {other}"),
    }
}

async fn dial(address: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
