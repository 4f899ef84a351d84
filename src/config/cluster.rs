//! The section `cluster`: where this node listens for the others, who they are, and the secret they share.

use super::{ConfigError, check_name, parse, refuse};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The shortest cookie, in bytes.
const COOKIE_BYTES_MIN: usize = 16;

/// The longest cookie, in bytes.
const COOKIE_BYTES_MAX: usize = 1024;

/// Most shards: every shard costs a little on every node.
const SHARDS_MAX: u16 = 1024;

/// Most copies of a shard.
const REPLICAS_MAX: u16 = 9;

/// Most peers: with this node, as many as there can be copies of a shard.
const PEERS_MAX: usize = 8;

/// How a node finds its cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// `cluster.listen`
    pub listen: SocketAddr,
    /// `cluster.peers`
    pub peers: Vec<Peer>,
    /// `cluster.cookie` or what stands in `cluster.cookie_file`
    pub cookie: Cookie,
}

/// Another initial member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its `node.name`.
    pub name: String,
    /// Where this node dials it: `host:port`. A host's name is looked up at every dial.
    pub addr: String,
}

/// The secret that the nodes of a cluster share. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie(String);

impl Cookie {
    /// The secret itself, for the handshake between nodes alone.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn check(text: String) -> Result<Self, ConfigError> {
        if text.len() < COOKIE_BYTES_MIN {
            return Err(ConfigError(format!("the cluster cookie is shorter than {COOKIE_BYTES_MIN} bytes")));
        }
        if text.len() > COOKIE_BYTES_MAX {
            return Err(ConfigError(format!("the cluster cookie is longer than {COOKIE_BYTES_MAX} bytes")));
        }
        Ok(Self(text))
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(format!("cluster.cookie_file {} cannot be read: {error}", path.display()))
        })?;
        // Editors and `echo` end a file with a newline, which is no part of the secret.
        Self::check(text.trim_end().to_owned())
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(…)")
    }
}

/// The section as it stands in the sources.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Cluster {
    listen: Option<String>,
    peers: Vec<String>,
    cookie: Option<String>,
    cookie_file: Option<PathBuf>,
    pub(super) shards: u16,
    pub(super) replicas: u16,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { listen: None, peers: Vec::new(), cookie: None, cookie_file: None, shards: 16, replicas: 3 }
    }
}

// By hand, because a derived one would print the cookie.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("listen", &self.listen)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// What the section says of the cluster; nothing when the node is to be alone.
    pub(super) fn check(self, own_name: &str) -> Result<Option<ClusterConfig>, ConfigError> {
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            return refuse("cluster.shards", &self.shards.to_string(), &format!("1 to {SHARDS_MAX}"));
        }
        if !(1..=REPLICAS_MAX).contains(&self.replicas) {
            return refuse("cluster.replicas", &self.replicas.to_string(), &format!("1 to {REPLICAS_MAX}"));
        }
        let cookie = match (self.cookie, self.cookie_file) {
            (Some(_), Some(_)) => {
                return Err(ConfigError(
                    "cluster.cookie and cluster.cookie_file are both set; keep one".into(),
                ));
            }
            (Some(cookie), None) => Some(Cookie::check(cookie)?),
            (None, Some(path)) => Some(Cookie::read(&path)?),
            (None, None) => None,
        };
        let peers = check_peers(&self.peers, own_name)?;
        let Some(listen) = self.listen else {
            if peers.is_empty() {
                return Ok(None);
            }
            return Err(ConfigError(
                "cluster.peers is set without cluster.listen, where those peers would reach this node".into(),
            ));
        };
        let listen = parse("cluster.listen", &listen, "an address like 192.0.2.1:7101")?;
        let cookie = cookie.ok_or_else(|| {
            ConfigError("cluster.listen is set without cluster.cookie or cluster.cookie_file".into())
        })?;
        Ok(Some(ClusterConfig { listen, peers, cookie }))
    }
}

fn check_peers(texts: &[String], own_name: &str) -> Result<Vec<Peer>, ConfigError> {
    if texts.len() > PEERS_MAX {
        return Err(ConfigError(format!("cluster.peers names {} peers, more than {PEERS_MAX}", texts.len())));
    }
    let mut names = BTreeSet::from([own_name]);
    let mut peers = Vec::with_capacity(texts.len());
    for text in texts {
        let named = text.split_once('=').map(|(name, addr)| (name.trim(), addr.trim()));
        let Some((name, addr)) = named.filter(|(_, addr)| is_host_and_port(addr)) else {
            return refuse("cluster.peers", text, "a list of names and addresses like n2=host2.example:7101");
        };
        check_name("cluster.peers", name)?;
        if name == own_name {
            return Err(ConfigError(format!(
                "cluster.peers names {name}, which is this node itself (node.name); name the others only"
            )));
        }
        if !names.insert(name) {
            return Err(ConfigError(format!("cluster.peers names {name} twice")));
        }
        peers.push(Peer { name: name.to_owned(), addr: addr.to_owned() });
    }
    Ok(peers)
}

/// `host:port`, the host a name, an IPv4 address or an IPv6 address in brackets.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            (1..=253).contains(&host.len())
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: &str = "a very secret cookie";

    fn section(listen: bool, peers: &[&str]) -> Cluster {
        Cluster {
            listen: listen.then(|| "127.0.0.1:7101".to_owned()),
            peers: peers.iter().map(|&peer| peer.to_owned()).collect(),
            cookie: listen.then(|| COOKIE.to_owned()),
            ..Cluster::default()
        }
    }

    fn refused(section: Cluster) -> String {
        section.check("n1").unwrap_err().to_string()
    }

    #[test]
    fn without_listen_a_node_is_alone() {
        assert!(Cluster::default().check("n1").unwrap().is_none());
        // A cookie alone does no harm: three hosts may share one file of settings.
        let section = Cluster { cookie: Some(COOKIE.into()), ..Cluster::default() };
        assert!(section.check("n1").unwrap().is_none());
    }

    #[test]
    fn peers_are_names_and_where_they_are_dialled() {
        let peers = ["n2=host2.example:7101", " n3 = [2001:db8::1]:7102", "n-4=192.0.2.4:1"];
        let cluster = section(true, &peers).check("n1").unwrap().unwrap();
        assert_eq!(cluster.listen, "127.0.0.1:7101".parse().unwrap());
        assert_eq!(cluster.cookie.reveal(), COOKIE);
        let found: Vec<_> =
            cluster.peers.iter().map(|peer| (peer.name.as_str(), peer.addr.as_str())).collect();
        assert_eq!(
            found,
            [("n2", "host2.example:7101"), ("n3", "[2001:db8::1]:7102"), ("n-4", "192.0.2.4:1")]
        );
        assert!(section(true, &[]).check("n1").unwrap().unwrap().peers.is_empty());
    }

    #[test]
    fn peers_that_make_no_sense_are_refused() {
        for peer in
            ["n2", "n2=", "n2=host", "n2=host:", "n2=:7101", "n2=host:0", "n2=host:70000", "n2=::1:7101"]
        {
            let error = refused(section(true, &[peer]));
            assert!(error.contains("cluster.peers") && error.contains(peer), "{peer}: {error}");
        }
        assert!(refused(section(true, &["n 2=host:1"])).contains("n 2"));
        assert!(refused(section(true, &["=host:1"])).contains("cluster.peers"));
        assert!(refused(section(true, &["n1=host:1"])).contains("this node itself"));
        assert!(refused(section(true, &["n2=host:1", "n2=host:2"])).contains("n2 twice"));
        let many: Vec<String> = (2..=10).map(|n| format!("n{n}=host{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(refused(section(true, &many)).contains("more than 8"));
        assert_eq!(section(true, &many[..8]).check("n1").unwrap().unwrap().peers.len(), 8);
        assert!(refused(section(false, &["n2=host:1"])).contains("without cluster.listen"));
    }

    #[test]
    fn a_cookie_is_long_enough_but_not_too_long() {
        let with = |cookie: String| Cluster { cookie: Some(cookie), ..section(true, &[]) };
        assert!(refused(with("fifteen-letters".into())).contains("shorter than 16"));
        assert!(refused(with("x".repeat(1025))).contains("longer than 1024"));
        assert!(with("x".repeat(16)).check("n1").is_ok());
        let none = Cluster { cookie: None, ..section(true, &[]) };
        assert!(refused(none).contains("cluster.cookie_file"));
        let both = Cluster { cookie_file: Some("cookie".into()), ..section(true, &[]) };
        assert!(refused(both).contains("both"));
    }

    #[test]
    fn a_cookie_is_never_printed() {
        let section = section(true, &["n2=host:1"]);
        assert!(!format!("{section:?}").contains("secret"), "{section:?}");
        let cluster = section.check("n1").unwrap();
        assert!(!format!("{cluster:?}").contains("secret"), "{cluster:?}");
    }
}
