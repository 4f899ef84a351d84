//! A chat client that is strict: a frame that a test does not expect fails it, with what was sent and received before.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::SOON;
use super::frames::{Frame, Refusal, Said, Welcome, parse};
use super::node::Node;

/// Lines of the transcript that a failure shows.
const TRANSCRIPT_MAX: usize = 80;

/// Where a room lives, with its name encoded so that nothing in it is special.
pub(crate) fn room_path(room: &str) -> String {
    format!("/api/room/{}", utf8_percent_encode(room, NON_ALPHANUMERIC))
}

/// How a session is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening<'a> {
    pub(crate) since: Option<u64>,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    /// Asks the system for a small receive buffer, in bytes, so that a client that does not read is noticed early.
    pub(crate) receive_buffer: Option<u32>,
}

/// Why a session could not be opened.
#[derive(Clone, Debug)]
pub(crate) enum Unopened {
    /// The node answered with this status and body.
    Refused(u16, String),
    /// The node could not be reached, or said nothing that could be understood.
    Unreachable(String),
}

/// One WebSocket session.
pub(crate) struct Client {
    name: String,
    socket: WebSocketStream<TcpStream>,
    transcript: VecDeque<String>,
}

impl Client {
    /// Opens a session that has not given its name yet.
    pub(crate) async fn connect(node: &Node, room: &str) -> Self {
        Self::open(node.address(), &room_path(room), &Opening::default()).await.unwrap()
    }

    /// Opens a session as told; the error is the status and body with which the node refused.
    pub(crate) async fn open(
        address: SocketAddr,
        room_path: &str,
        opening: &Opening<'_>,
    ) -> Result<Self, (u16, String)> {
        match Self::try_open(address, room_path, opening).await {
            Ok(client) => Ok(client),
            Err(Unopened::Refused(status, body)) => Err((status, body)),
            Err(Unopened::Unreachable(why)) => panic!("the handshake failed: {why}"),
        }
    }

    /// Like [`Client::open`], for a node that need not be there.
    pub(crate) async fn try_open(
        address: SocketAddr,
        room_path: &str,
        opening: &Opening<'_>,
    ) -> Result<Self, Unopened> {
        let query = opening.since.map(|since| format!("?since={since}")).unwrap_or_default();
        let url = format!("ws://{address}{room_path}/websocket{query}");
        let mut request = url.into_client_request().unwrap();
        for (name, value) in &opening.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        let tcp = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = opening.receive_buffer {
            tcp.set_recv_buffer_size(bytes).unwrap();
        }
        let handshake = async {
            let stream = tcp.connect(address).await.map_err(Error::Io)?;
            stream.set_nodelay(true).unwrap();
            tokio_tungstenite::client_async(request, stream).await
        };
        match tokio::time::timeout(SOON, handshake).await {
            Ok(Ok((socket, _))) => Ok(Self { name: String::new(), socket, transcript: VecDeque::new() }),
            Ok(Err(Error::Http(response))) => {
                let body = response.body().clone().unwrap_or_default();
                Err(Unopened::Refused(
                    response.status().as_u16(),
                    String::from_utf8_lossy(&body).into_owned(),
                ))
            }
            Ok(Err(error)) => Err(Unopened::Unreachable(error.to_string())),
            Err(_) => Err(Unopened::Unreachable(format!("it took longer than {SOON:?}"))),
        }
    }

    /// Opens a session, gives the name and reads up to `ready`.
    pub(crate) async fn join(node: &Node, room: &str, name: &str) -> Self {
        let mut client = Self::connect(node, room).await;
        client.enter(name).await;
        client
    }

    /// Comes back with the last timestamp seen.
    pub(crate) async fn rejoin(node: &Node, room: &str, name: &str, since: u64) -> (Self, Welcome) {
        let opening = Opening { since: Some(since), ..Opening::default() };
        let mut client = Self::open(node.address(), &room_path(room), &opening).await.unwrap();
        let welcome = client.enter(name).await;
        (client, welcome)
    }

    /// Gives the name and reads up to `ready`, checking the order: roster, backlog, own `joined`, `ready`.
    pub(crate) async fn enter(&mut self, name: &str) -> Welcome {
        self.send(json!({ "name": name })).await;
        self.name = name.to_owned();
        self.welcome(name).await
    }

    /// Reads up to `ready` what a session gets that is known as `name`.
    pub(crate) async fn welcome(&mut self, name: &str) -> Welcome {
        let mut welcome = Welcome::default();
        let mut joined: Vec<String> = Vec::new();
        let mut roster_ended_at = None;
        loop {
            match self.next().await {
                Frame::Gap if welcome.backlog.is_empty() && !welcome.gap => welcome.gap = true,
                Frame::Joined(who) => joined.push(who),
                Frame::Said(said) => {
                    let ended_at = *roster_ended_at.get_or_insert(joined.len());
                    if joined.len() > ended_at {
                        self.fail("a message of the backlog came after the roster had ended");
                    }
                    if welcome.backlog.last().is_some_and(|last| last.timestamp >= said.timestamp) {
                        self.fail("the backlog is not in strict order");
                    }
                    welcome.backlog.push(said);
                }
                Frame::Ready => break,
                _ => self.fail("only a roster, a backlog and `ready` come on entering"),
            }
        }
        if joined.last().map(String::as_str) != Some(name) {
            self.fail(&format!("`ready` comes right after the own joined ({name})"));
        }
        joined.pop();
        if roster_ended_at.is_some_and(|ended_at| ended_at != joined.len()) {
            self.fail("the roster comes before the backlog");
        }
        welcome.roster = joined;
        welcome
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.send(json!({ "message": text })).await;
    }

    pub(crate) async fn say_with_id(&mut self, text: &str, id: &str) {
        self.send(json!({ "message": text, "id": id })).await;
    }

    /// Like [`Client::say_with_id`], but waits as long as it takes and does not mind a connection that is gone.
    pub(crate) async fn try_say_with_id(&mut self, text: &str, id: &str) -> Result<(), Error> {
        self.socket.send(Message::text(json!({ "message": text, "id": id }).to_string())).await
    }

    /// Says something alone in the stream: reads the own message and its ack, and returns the message.
    pub(crate) async fn say_and_settle(&mut self, text: &str, id: &str) -> Said {
        self.say_with_id(text, id).await;
        let said = self.next_message().await;
        assert_eq!((said.text.as_str(), said.id.as_deref()), (text, Some(id)));
        assert_eq!(self.expect_ack(id).await, said.timestamp, "the ack has the message's timestamp");
        said
    }

    pub(crate) async fn send(&mut self, value: Value) {
        self.send_text(&value.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send_raw(Message::text(text)).await;
    }

    /// Sends any WebSocket message; fails when the connection is gone.
    pub(crate) async fn send_raw(&mut self, message: Message) {
        if let Err(error) = self.try_send(message).await {
            self.fail(&format!("could not send: {error}"));
        }
    }

    /// Sends without minding a connection that is gone.
    pub(crate) async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.note('>', &format!("{message:?}"));
        match tokio::time::timeout(SOON, self.socket.send(message)).await {
            Ok(result) => result,
            Err(_) => self.fail("the node does not take what is sent"),
        }
    }

    /// The next frame that is not a ping, within [`SOON`].
    pub(crate) async fn next(&mut self) -> Frame {
        self.next_within(SOON).await
    }

    pub(crate) async fn next_within(&mut self, limit: Duration) -> Frame {
        match tokio::time::timeout(limit, self.read()).await {
            Ok(frame) => frame,
            Err(_) => self.fail(&format!("nothing came within {limit:?}")),
        }
    }

    /// The next frame that is not a ping, whenever it comes. Nothing is lost when this is cancelled.
    pub(crate) async fn read(&mut self) -> Frame {
        loop {
            let frame = match self.socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    self.note('<', &text);
                    match parse(&text) {
                        Some(frame) => frame,
                        None => self.fail(&format!("a frame that the contract does not know: {text}")),
                    }
                }
                Some(Ok(Message::Ping(_))) => continue,
                Some(Ok(Message::Pong(payload))) => Frame::Pong(payload.to_vec()),
                Some(Ok(Message::Close(close))) => {
                    self.note('<', &format!("{close:?}"));
                    Frame::Close(close.map(|CloseFrame { code, .. }| code.into()))
                }
                Some(Ok(other)) => self.fail(&format!("a frame of a strange kind: {other:?}")),
                Some(Err(error)) => {
                    self.note('<', &format!("{error}"));
                    Frame::Lost
                }
                None => Frame::Lost,
            };
            return frame;
        }
    }

    pub(crate) async fn next_message(&mut self) -> Said {
        match self.next().await {
            Frame::Said(said) => said,
            _ => self.fail("expected a message"),
        }
    }

    /// The next message, in a room where others come and go.
    pub(crate) async fn next_message_of_many(&mut self) -> Said {
        loop {
            match self.next().await {
                Frame::Said(said) => return said,
                Frame::Joined(_) | Frame::Quit(_) => {}
                _ => self.fail("expected a message"),
            }
        }
    }

    /// Reads a message and checks who said what.
    pub(crate) async fn expect_said(&mut self, name: &str, text: &str) -> Said {
        let said = self.next_message().await;
        if (said.name.as_str(), said.text.as_str()) != (name, text) {
            self.fail(&format!("expected {name}: {text}"));
        }
        said
    }

    pub(crate) async fn expect_joined(&mut self, name: &str) {
        self.expect(&Frame::Joined(name.to_owned())).await;
    }

    pub(crate) async fn expect_quit(&mut self, name: &str) {
        self.expect(&Frame::Quit(name.to_owned())).await;
    }

    /// Reads the ack of the message with this id and returns its timestamp.
    pub(crate) async fn expect_ack(&mut self, id: &str) -> u64 {
        match self.next().await {
            Frame::Ack { id: acked, timestamp } if acked == id => timestamp,
            _ => self.fail(&format!("expected the ack of {id}")),
        }
    }

    pub(crate) async fn expect_error(&mut self) -> Refusal {
        match self.next().await {
            Frame::Error(refusal) => refusal,
            _ => self.fail("expected an error"),
        }
    }

    /// Reads the end of the session: a close frame with this code, and then the end of the connection.
    pub(crate) async fn expect_close(&mut self, code: u16) {
        self.expect(&Frame::Close(Some(code))).await;
        self.expect(&Frame::Lost).await;
    }

    /// Fails if anything is on its way: a ping goes out and its pong must be the next thing that comes back.
    pub(crate) async fn expect_silence(&mut self) {
        self.send_raw(Message::Ping("are you there?".into())).await;
        self.expect(&Frame::Pong(b"are you there?".to_vec())).await;
    }

    /// Reads all that is on its way, which may be what others say and nothing else.
    #[cfg(feature = "fault-injection")]
    pub(crate) async fn expect_silence_but_talk(&mut self) {
        self.send_raw(Message::Ping("still there?".into())).await;
        loop {
            match self.next().await {
                Frame::Said(said) if said.name != self.name => {}
                Frame::Joined(_) => {}
                Frame::Pong(_) => return,
                other => self.fail(&format!("only what others say, not {other:?}")),
            }
        }
    }

    async fn expect(&mut self, frame: &Frame) {
        let got = self.next().await;
        if got != *frame {
            self.fail(&format!("expected {frame:?}, got {got:?}"));
        }
    }

    /// Says all of these with their ids, never more than `window` of them unacknowledged, and reads everything until
    /// all are acked. Returns what was relayed meanwhile (by anybody) and the acks, each in the order of arrival.
    pub(crate) async fn say_all(
        &mut self,
        lines: &[(String, String)],
        window: usize,
    ) -> (Vec<Said>, Vec<(String, u64)>) {
        let (mut said, mut acks) = (Vec::new(), Vec::new());
        let mut sent = 0;
        while acks.len() < lines.len() {
            while sent < lines.len() && sent - acks.len() < window {
                let (text, id) = &lines[sent];
                self.say_with_id(text, id).await;
                sent += 1;
            }
            self.read_into(&mut said, &mut acks).await;
        }
        (said, acks)
    }

    /// Reads until this many acks came for what was sent before.
    pub(crate) async fn read_acks(&mut self, count: usize) -> (Vec<Said>, Vec<(String, u64)>) {
        let (mut said, mut acks) = (Vec::new(), Vec::new());
        while acks.len() < count {
            self.read_into(&mut said, &mut acks).await;
        }
        (said, acks)
    }

    async fn read_into(&mut self, said: &mut Vec<Said>, acks: &mut Vec<(String, u64)>) {
        match self.next().await {
            Frame::Said(message) => said.push(message),
            Frame::Ack { id, timestamp } => acks.push((id, timestamp)),
            Frame::Joined(_) | Frame::Quit(_) => {}
            _ => self.fail("only messages, acks and the roster come while chatting"),
        }
    }

    /// Closes the session the polite way and waits for the node's answer.
    pub(crate) async fn leave(mut self) {
        self.send_raw(Message::Close(None)).await;
        loop {
            match self.next().await {
                Frame::Close(_) | Frame::Lost => return,
                _ => {}
            }
        }
    }

    fn note(&mut self, direction: char, line: &str) {
        if self.transcript.len() == TRANSCRIPT_MAX {
            self.transcript.pop_front();
        }
        let shown: String = line.chars().take(240).collect();
        self.transcript.push_back(format!("{direction} {shown}"));
    }

    /// Fails the test and shows the conversation so far.
    pub(crate) fn fail(&self, why: &str) -> ! {
        let lines = self.transcript.iter().map(String::as_str).collect::<Vec<_>>().join("\n  ");
        panic!("{why}\nsession of {:?}:\n  {lines}", self.name)
    }
}
