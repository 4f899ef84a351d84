//! Who is asking: the client's address behind proxies, and the page a socket was opened from.

use http::{HeaderMap, header};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// The address the limiter counts: the connection's peer, or, where that is a trusted proxy, the last address in
/// `X-Forwarded-For` that is not.
///
/// The list is read from the right, because each proxy appends what it saw: everything left of the first address that
/// is not a trusted proxy is whatever that client wrote.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut client = peer.to_canonical();
    let forwarded = headers.get_all("x-forwarded-for");
    let lines: Vec<&str> = forwarded.iter().filter_map(|line| line.to_str().ok()).collect();
    let mut hops = lines.iter().flat_map(|line| line.split(',')).rev();
    while is_trusted(client) {
        match hops.next().and_then(parse_hop) {
            Some(hop) => client = hop,
            None => break,
        }
    }
    client
}

/// An address as proxies write it: bare, with a port, or in brackets.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    bare.or_else(with_port).or_else(in_brackets).map(|address: IpAddr| address.to_canonical())
}

/// Which pages may open sockets.
///
/// A browser lets any page open a socket to any host and sends its cookies and address along; `Origin` tells which
/// page it was. Programs that are not browsers send none and are let in.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    /// Scheme, host and port, in lower case.
    pub allowed: Vec<String>,
}

impl Origins {
    /// Whether a request with these headers may open a socket.
    #[must_use]
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = origin.split_once("://").zip(host);
        // A page served under the very name it now connects to. The scheme may differ: a proxy may end TLS for us.
        own.is_some_and(|((_, authority), host)| authority.eq_ignore_ascii_case(host))
            || self.allowed.contains(&origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(peer: &str, forwarded: &[&str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_stranger_s_forwarding_is_not_believed() {
        assert_eq!(address("203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
    }

    #[test]
    fn behind_trusted_proxies_the_list_is_read_from_the_right() {
        assert_eq!(address("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(address("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.2.3.4"]), "198.51.100.1");
        assert_eq!(address("10.0.0.1", &["1.1.1.1", "198.51.100.1,10.2.3.4"]), "198.51.100.1");
        assert_eq!(address("::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(address("::ffff:10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
    }

    #[test]
    fn what_cannot_be_read_leaves_the_last_known_hop() {
        assert_eq!(address("10.0.0.1", &["198.51.100.1, unknown"]), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2");
    }

    #[test]
    fn a_foreign_page_opens_no_socket() {
        let origins = Origins { allowed: vec!["https://chat.example.org".into()] };
        let allows = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "node.example.org:8080".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            origins.allows(&headers)
        };
        assert!(allows(None));
        assert!(allows(Some("http://node.example.org:8080")));
        assert!(allows(Some("https://Node.Example.org:8080")));
        assert!(allows(Some("https://chat.example.org")));
        for foreign in ["null", "http://node.example.org", "https://evil.example", "node.example.org:8080"] {
            assert!(!allows(Some(foreign)), "{foreign}");
        }
    }
}
