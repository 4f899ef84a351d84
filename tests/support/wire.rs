//! A WebSocket seen as bytes, for what a well-behaved client library would not do: not answering pings, sending the
//! pieces of a message one by one, or vanishing.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn of(byte: u8) -> Self {
        match byte & 15 {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => panic!("the node sent a frame of the reserved kind {other}"),
        }
    }
}

/// A session that sends and reads single frames.
#[derive(Debug)]
pub(crate) struct Wire(TcpStream);

impl Wire {
    /// Opens a session in the room at this path.
    pub(crate) async fn open(address: SocketAddr, room_path: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET {room_path}/websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    /// Sends one frame; `last` marks the end of a message.
    pub(crate) async fn send(&mut self, opcode: Opcode, last: bool, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = vec![opcode as u8 | if last { 0x80 } else { 0 }];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let mask = [0x5a, 0xc3, 0x17, 0x88];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).await
    }

    /// The next frame, or `None` when the connection ended.
    pub(crate) async fn next(&mut self) -> Option<(Opcode, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).await.ok()?;
        assert_eq!(head[1] & 0x80, 0, "a server does not mask");
        let length = match head[1] {
            126 => u64::from(self.0.read_u16().await.ok()?),
            127 => self.0.read_u64().await.ok()?,
            short => u64::from(short),
        };
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((Opcode::of(head[0]), payload))
    }

    /// Reads frames until one of this kind comes, and returns it.
    pub(crate) async fn next_of(&mut self, opcode: Opcode) -> Option<Vec<u8>> {
        loop {
            let (kind, payload) = self.next().await?;
            if kind == opcode {
                return Some(payload);
            }
        }
    }

    /// The code in a close frame.
    pub(crate) fn close_code(payload: &[u8]) -> Option<u16> {
        payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }

    /// Ends the connection without a word: the node sees a reset.
    pub(crate) fn vanish(self) {
        self.0.set_zero_linger().unwrap();
    }
}
