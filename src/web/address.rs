//! Who is asking: the client's address behind proxies, and the page a socket was opened from.

use http::{HeaderMap, header};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

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
///
/// Clones share what they know of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    /// The node's own and those of its configuration, as browsers write them.
    configured: Vec<String>,
    /// Those of the cluster's nodes: a page that one of them served goes on at another.
    cluster: Arc<RwLock<Vec<String>>>,
}

impl Origins {
    /// Lets in pages from these base URLs, and no others until [`Origins::set_cluster`] names them.
    #[must_use]
    pub fn new(configured: impl IntoIterator<Item = String>) -> Self {
        let configured = configured.into_iter().map(|url| origin_of(&url)).collect();
        Self { configured, cluster: Arc::default() }
    }

    /// Lets in pages of the nodes with these base URLs, in place of those named before.
    pub fn set_cluster(&self, urls: impl IntoIterator<Item = String>) {
        let origins = urls.into_iter().map(|url| origin_of(&url)).collect();
        // A list is replaced as a whole: a panic elsewhere cannot have left half of one.
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = origins;
    }

    /// Whether a request with these headers may open a socket.
    #[must_use]
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let Ok(origin) = origin.to_str().map(str::to_ascii_lowercase) else { return false };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = origin.split_once("://").zip(host);
        // A page served under the very name it now connects to. The scheme may differ: a proxy may end TLS for us.
        own.is_some_and(|((_, authority), host)| authority.eq_ignore_ascii_case(host))
            || self.configured.contains(&origin)
            || self.cluster.read().unwrap_or_else(PoisonError::into_inner).contains(&origin)
    }
}

/// A base URL as browsers write it in `Origin`: in lower case, without the scheme's own port and what follows it.
fn origin_of(url: &str) -> String {
    let url = url.to_ascii_lowercase();
    let Some((scheme, rest)) = url.split_once("://") else { return url };
    let authority = rest.split('/').next().unwrap_or_default();
    let port = if scheme == "https" { ":443" } else { ":80" };
    format!("{scheme}://{}", authority.strip_suffix(port).unwrap_or(authority))
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
        let origins = Origins::new(["https://chat.example.org".into()]);
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

    #[test]
    fn a_page_of_another_node_opens_sockets_while_that_node_belongs_to_the_cluster() {
        let origins = Origins::new([]);
        let of_the_web = origins.clone();
        let allows = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "n1.example:8081".parse().unwrap());
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            of_the_web.allows(&headers)
        };
        assert!(!allows("http://n2.example:8081"));
        origins.set_cluster(["http://N2.example:8081/".into(), "https://n3.example:443".into()]);
        assert!(allows("http://n2.example:8081") && allows("https://n3.example"));
        assert!(!allows("http://n3.example") && !allows("http://n4.example"));
        origins.set_cluster(["https://n3.example".into()]);
        assert!(!allows("http://n2.example:8081") && allows("https://n3.example"));
    }

    #[test]
    fn origins_are_compared_as_browsers_write_them() {
        assert_eq!(origin_of("https://Chat.Example:443/"), "https://chat.example");
        assert_eq!(origin_of("http://chat.example:80"), "http://chat.example");
        assert_eq!(origin_of("http://chat.example:443"), "http://chat.example:443");
        assert_eq!(origin_of("http://[::1]:8080"), "http://[::1]:8080");
    }
}
