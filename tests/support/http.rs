//! A bare HTTP/1.1 client: one request a connection, so that nothing but the node decides what is answered.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::SOON;

/// What a node answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("the body is not JSON ({error}): {}", String::from_utf8_lossy(&self.body))
        })
    }

    /// The text of a JSON error, after checking that this is one and nothing more.
    pub(crate) fn error(&self) -> String {
        let kind = self.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/json"), "an API error is JSON, not {kind:?}: {self:?}");
        let body = self.json();
        let object = body.as_object().expect("an error is an object");
        assert_eq!(object.len(), 1, "an error has one field: {body}");
        body["error"].as_str().expect("an error has a text").to_owned()
    }
}

/// Sends one request and reads the whole answer, or says why that was not possible.
pub(crate) async fn try_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Reply> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request.push_str(&format!("Host: {address}\r\n"));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" {
            request.push_str("Content-Length: 0\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            let count = stream.read_buf(&mut answer).await?;
            if let Some(reply) = parse(&answer, count == 0) {
                return Ok(reply);
            }
            if count == 0 {
                return Err(std::io::Error::other(format!("no HTTP answer in {answer:?}")));
            }
        }
    };
    match tokio::time::timeout(SOON, talk).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::other(format!("{method} {path} was not answered within {SOON:?}"))),
    }
}

/// Like [`try_request`], but a node that does not answer fails the test.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Reply {
    match try_request(address, method, path, headers).await {
        Ok(reply) => reply,
        Err(error) => panic!("{method} {path}: {error}"),
    }
}

/// Reads an answer, or returns `None` while it is not complete.
fn parse(answer: &[u8], ended: bool) -> Option<Reply> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let rest = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut reply = Reply { status, headers, body: Vec::new() };
    if let Some(length) = reply.header("content-length") {
        reply.body = rest.get(..length.parse().ok()?)?.to_vec();
    } else if reply.header("transfer-encoding").is_some() {
        reply.body = unchunk(rest)?;
    } else if ended {
        reply.body = rest.to_vec();
    } else if status != 101 {
        return None;
    }
    Some(reply)
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
