//! Where the server is that a tool talks to.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The server's base URL as it was given: host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    authority: String,
    host: String,
    port: u16,
}

/// A [`Target`] whose host was looked up.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    /// `host:port`, for requests.
    pub(super) authority: String,
    /// The address that is dialled.
    pub(super) address: SocketAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
        let default_port = match uri.scheme_str() {
            Some("ws" | "http") => 80,
            Some("wss" | "https") => {
                return Err(
                    "TLS is not spoken here: give an address that begins with http:// or ws://".into()
                );
            }
            _ => return Err("it must begin with http:// or ws://".into()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("give the server's base URL, without a path".into());
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err("it names no host".into());
        }
        let port = uri.port_u16().unwrap_or(default_port);
        // Brackets of an IPv6 address belong to the URL, not to the name that is looked up.
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { authority: format!("{host}:{port}"), host: bare, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ws://{}", self.authority)
    }
}

impl Target {
    /// Looks the host up; the first address counts.
    pub(super) async fn resolve(&self) -> Result<Resolved, String> {
        let mut addresses = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("cannot look up {}: {error}", self.host))?;
        let address = addresses.next().ok_or_else(|| format!("{} has no address", self.host))?;
        Ok(Resolved { authority: self.authority.clone(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_base_urls() {
        assert_eq!("ws://127.0.0.1:8080".parse::<Target>().unwrap().to_string(), "ws://127.0.0.1:8080");
        assert_eq!("http://localhost/".parse::<Target>().unwrap().to_string(), "ws://localhost:80");
        let six = "ws://[::1]:8080".parse::<Target>().unwrap();
        assert_eq!((six.host.as_str(), six.authority.as_str()), ("::1", "[::1]:8080"));
    }

    #[test]
    fn refuses_what_it_cannot_reach() {
        for bad in ["wss://example.org", "example.org:80", "ws://h/api/room/x", "ws://h/?a=b", "ftp://h", ""]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
