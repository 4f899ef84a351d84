//! Every setting: its default, where it may come from, and what it must look like.
//!
//! A flag wins over a variable, a variable over the file, the file over the default. The file is checked on its own
//! first, because only its own parser knows on which line something stands.

mod cluster;

pub use cluster::{ClusterConfig, Cookie, Peer};

use crate::chat::limiter::Limits;
use crate::storage::writer::Durability;
use cluster::Cluster;
use config::{Config as Layers, ConfigError as LayerError, File, FileFormat, Value};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest name of a node. Names stand in the names of process groups and in log lines.
const NODE_NAME_BYTES_MAX: usize = 32;

/// Why a node cannot be configured. One sentence, for the person who starts it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// What a node is to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// `node.name`
    pub name: String,
    /// `node.data`
    pub data: PathBuf,
    /// `http.listen`
    pub http: SocketAddr,
    /// `http.advertise`; without it, what `http.listen` turns out to be.
    pub advertise: Option<String>,
    /// `http.trusted_proxies`
    pub trusted_proxies: Vec<IpNet>,
    /// `http.allowed_origins`
    pub allowed_origins: Vec<String>,
    /// `cluster.listen` and what goes with it; nothing on a single node.
    pub cluster: Option<ClusterConfig>,
    /// `cluster.shards`
    pub shards: u16,
    /// `cluster.replicas`
    pub replicas: u16,
    /// `limits.*`
    pub limits: Limits,
    /// `history.durability`
    pub durability: Durability,
}

/// A setting given by a flag: its key, and its value or values.
pub type Flag = (&'static str, Vec<String>);

/// What a key's value looks like.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    List,
}

/// All keys. The variable of `a.b` is `PARLEY_A_B`.
const KEYS: &[(&str, Kind)] = &[
    ("node.name", Kind::Text),
    ("node.data", Kind::Text),
    ("http.listen", Kind::Text),
    ("http.advertise", Kind::Text),
    ("http.trusted_proxies", Kind::List),
    ("http.allowed_origins", Kind::List),
    ("cluster.listen", Kind::Text),
    ("cluster.peers", Kind::List),
    ("cluster.cookie", Kind::Text),
    ("cluster.cookie_file", Kind::Text),
    ("cluster.shards", Kind::Number),
    ("cluster.replicas", Kind::Number),
    ("limits.interval_ms", Kind::Number),
    ("limits.grace_ms", Kind::Number),
    ("history.durability", Kind::Text),
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    node: Node,
    http: Http,
    cluster: Cluster,
    limits: LimitSettings,
    history: History,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Node {
    name: String,
    data: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http {
    listen: String,
    advertise: Option<String>,
    trusted_proxies: Vec<String>,
    allowed_origins: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitSettings {
    interval_ms: u64,
    grace_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct History {
    durability: String,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: "n1".into(), data: "./data".into() }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            advertise: None,
            trusted_proxies: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self { interval_ms: 5_000, grace_ms: 20_000 }
    }
}

impl Default for History {
    fn default() -> Self {
        Self { durability: "sync".into() }
    }
}

impl Config {
    /// Reads all sources: `file` if one is named, `variable` for the environment, `flags` from the command line.
    ///
    /// # Errors
    /// When a source cannot be read, holds an unknown key, or a value that makes no sense.
    pub fn load(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
        flags: Vec<Flag>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::builder();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                ConfigError(format!("config file {} cannot be read: {error}", path.display()))
            })?;
            check_file(path, &text)?;
            layers = layers.add_source(File::from_str(&text, FileFormat::Toml));
        }
        for (key, kind) in KEYS {
            let name = variable_name(key);
            if let Some(text) = variable(&name) {
                let value = typed(&name, *kind, text)?;
                layers = layers.set_override(*key, value).map_err(|error| layer_error(&error))?;
            }
        }
        for (key, mut values) in flags {
            let is_list = KEYS.iter().any(|(known, kind)| *known == key && matches!(kind, Kind::List));
            let value: Value = if is_list { values.into() } else { values.pop().unwrap_or_default().into() };
            layers = layers.set_override(key, value).map_err(|error| layer_error(&error))?;
        }
        let merged = layers.build().map_err(|error| layer_error(&error))?;
        merged.try_deserialize::<Settings>().map_err(|error| layer_error(&error))?.check()
    }
}

/// The variable that sets `key`.
fn variable_name(key: &str) -> String {
    format!("PARLEY_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn typed(name: &str, kind: Kind, text: String) -> Result<Value, ConfigError> {
    match kind {
        Kind::Text => Ok(text.into()),
        Kind::Number => {
            let number = text.trim().parse::<u64>();
            number
                .map(Value::from)
                .map_err(|_| ConfigError(format!("{name} must be a whole number, but is \"{text}\"")))
        }
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(items.map(str::to_owned).collect::<Vec<_>>().into())
        }
    }
}

/// Finds unknown keys and values of a wrong type, and says on which line.
fn check_file(path: &Path, text: &str) -> Result<(), ConfigError> {
    let Err(error) = toml::from_str::<Settings>(text) else { return Ok(()) };
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let mut message = error.message().lines().collect::<Vec<_>>().join(" ");
    // What stands left of the equals sign: the parser names unknown keys, but not those with a wrong value.
    let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    // A value of the wrong type stands in the parser's message, and this one is a secret.
    if key.is_some_and(|key| key.ends_with("cookie")) && message.starts_with("invalid type") {
        "must be a text in quotes".clone_into(&mut message);
    }
    let at = key.map_or_else(String::new, |key| format!(" ({key})"));
    Err(ConfigError(format!("{} line {line}{at}: {message}", path.display())))
}

fn layer_error(error: &LayerError) -> ConfigError {
    ConfigError(format!("the configuration does not fit together: {error}"))
}

impl Settings {
    fn check(self) -> Result<Config, ConfigError> {
        let Self { node, http, cluster, limits, history } = self;
        check_name("node.name", &node.name)?;
        let (shards, replicas) = (cluster.shards, cluster.replicas);
        let cluster = cluster.check(&node.name)?;
        let durability = match history.durability.split_once(':') {
            None if history.durability == "sync" => Durability::Sync,
            Some(("interval", ms)) if ms.parse::<u64>().is_ok_and(|ms| (1..=60_000).contains(&ms)) => {
                Durability::Interval(Duration::from_millis(ms.parse().unwrap_or(1)))
            }
            _ => {
                return refuse(
                    "history.durability",
                    &history.durability,
                    "\"sync\" or \"interval:MS\" with 1 to 60000 ms",
                );
            }
        };
        if limits.interval_ms > 86_400_000 || limits.grace_ms > 86_400_000 {
            return Err(ConfigError("limits.interval_ms and limits.grace_ms must be at most a day".into()));
        }
        Ok(Config {
            name: node.name,
            data: node.data,
            http: parse("http.listen", &http.listen, "an address like 127.0.0.1:8080")?,
            advertise: http.advertise.as_deref().map(check_base_url).transpose()?,
            trusted_proxies: http
                .trusted_proxies
                .iter()
                .map(|cidr| parse("http.trusted_proxies", cidr, "networks like 10.0.0.0/8"))
                .collect::<Result<_, _>>()?,
            allowed_origins: http
                .allowed_origins
                .into_iter()
                .map(|origin| check_origin("http.allowed_origins", &origin))
                .collect::<Result<_, _>>()?,
            cluster,
            shards,
            replicas,
            limits: Limits { interval_ms: limits.interval_ms, grace_ms: limits.grace_ms },
            durability,
        })
    }
}

/// A node's name, as `key` gives it.
fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let is_name = (1..=NODE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_name {
        return Ok(());
    }
    let what = match key {
        "node.name" => "",
        _ => "a list of names of ",
    };
    let expected = format!("{what}1 to {NODE_NAME_BYTES_MAX} letters, digits, dots, dashes and underscores");
    refuse(key, name, &expected)
}

/// A base URL: scheme and host, no path.
fn check_base_url(url: &str) -> Result<String, ConfigError> {
    check_origin("http.advertise", url.trim_end_matches('/'))
}

fn check_origin(key: &str, text: &str) -> Result<String, ConfigError> {
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if authority.is_none_or(|authority| authority.is_empty() || authority.contains(['/', '?', '#', ' '])) {
        return refuse(key, text, "a scheme and a host like https://chat.example.org");
    }
    Ok(text.to_ascii_lowercase())
}

fn parse<T: std::str::FromStr>(key: &str, text: &str, expected: &str) -> Result<T, ConfigError> {
    text.parse().or_else(|_| refuse(key, text, expected))
}

fn refuse<T>(key: &str, found: &str, expected: &str) -> Result<T, ConfigError> {
    Err(ConfigError(format!("{key} must be {expected}, but is \"{found}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load(file: &str, variables: &[(&str, &str)], flags: Vec<Flag>) -> Result<Config, String> {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(file.as_bytes()).unwrap();
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Config::load(Some(path.path()), variable, flags).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let file = "[node]\nname = \"file\"\ndata = \"/file\"\n[http]\nlisten = \"127.0.0.1:1\"\n";
        let variables = [("PARLEY_NODE_NAME", "variable"), ("PARLEY_NODE_DATA", "/variable")];
        let config = load(file, &variables, vec![("node.name", vec!["flag".into()])]).unwrap();
        assert_eq!(config.name, "flag");
        assert_eq!(config.data, Path::new("/variable"));
        assert_eq!(config.http.port(), 1);
        assert_eq!(config.shards, 16);
    }

    #[test]
    fn every_default_is_the_documented_one() {
        let config = load("", &[], Vec::new()).unwrap();
        assert_eq!((config.name.as_str(), config.data.as_path()), ("n1", Path::new("./data")));
        assert_eq!(config.http, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.limits, Limits { interval_ms: 5_000, grace_ms: 20_000 });
        assert_eq!(config.durability, Durability::Sync);
        assert!(config.trusted_proxies.is_empty() && config.allowed_origins.is_empty());
        assert!(config.advertise.is_none());
        assert!(config.cluster.is_none());
        assert_eq!((config.shards, config.replicas), (16, 3));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = load("[http]\nlisten = \"127.0.0.1:1\"\nlisen = 5\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("line 3") && error.contains("lisen"), "{error}");
        let error = load("\n\n[htp]\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("line 3") && error.contains("htp"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (file, named) in [
            ("[http]\nlisten = \"nowhere\"", "http.listen"),
            ("[http]\ntrusted_proxies = [\"10.0.0.0/99\"]", "http.trusted_proxies"),
            ("[http]\nallowed_origins = [\"example.org\"]", "http.allowed_origins"),
            ("[http]\nadvertise = \"ftp://x\"", "http.advertise"),
            ("[history]\ndurability = \"soon\"", "history.durability"),
            ("[history]\ndurability = \"interval:0\"", "history.durability"),
            ("[node]\nname = \"a b\"", "node.name"),
            ("[cluster]\nshards = 0", "cluster.shards"),
            ("[cluster]\ncookie = \"short\"", "cookie"),
            ("[cluster]\nlisten = \"127.0.0.1:1\"", "cluster.listen"),
            ("[limits]\ninterval_ms = \"x\"", "line 2"),
        ] {
            let error = load(file, &[], Vec::new()).unwrap_err();
            assert!(error.contains(named), "{file}: {error}");
        }
        let error = load("", &[("PARLEY_LIMITS_GRACE_MS", "much")], Vec::new()).unwrap_err();
        assert!(error.contains("PARLEY_LIMITS_GRACE_MS") && error.contains("much"), "{error}");
    }

    #[test]
    fn lists_come_from_variables_too() {
        let variables = [("PARLEY_HTTP_TRUSTED_PROXIES", "10.0.0.0/8, ::1/128")];
        assert_eq!(load("", &variables, Vec::new()).unwrap().trusted_proxies.len(), 2);
    }

    #[test]
    fn a_cluster_comes_from_all_sources() {
        let file = "[cluster]\nlisten = \"127.0.0.1:7101\"\npeers = [\"n2=a:1\"]\nreplicas = 5\n";
        let cookie = ("PARLEY_CLUSTER_COOKIE", "sixteen-letters!");
        let config = load(file, &[cookie], Vec::new()).unwrap();
        let cluster = config.cluster.unwrap();
        assert_eq!((config.replicas, cluster.listen.port()), (5, 7101));
        assert_eq!(cluster.cookie.reveal(), "sixteen-letters!");
        let variables = [cookie, ("PARLEY_CLUSTER_PEERS", "n3=b:1, n4=c:1")];
        let names = |config: Config| {
            config.cluster.unwrap().peers.into_iter().map(|peer| peer.name).collect::<Vec<_>>()
        };
        assert_eq!(names(load(file, &variables, Vec::new()).unwrap()), ["n3", "n4"]);
        let flags = vec![("cluster.peers", vec!["n5=d:1".to_owned()])];
        assert_eq!(names(load(file, &variables, flags).unwrap()), ["n5"]);
        let error = load(file, &[cookie, ("PARLEY_NODE_NAME", "n2")], Vec::new()).unwrap_err();
        assert!(error.contains("this node itself"), "{error}");
    }

    #[test]
    fn a_cookie_file_is_read_and_refused_in_one_sentence() {
        let mut cookie = tempfile::NamedTempFile::new().unwrap();
        cookie.write_all(b"sixteen-letters!\n").unwrap();
        let file = format!("[cluster]\nlisten = \"127.0.0.1:1\"\ncookie_file = {:?}\n", cookie.path());
        let config = load(&file, &[], Vec::new()).unwrap();
        assert_eq!(config.cluster.unwrap().cookie.reveal(), "sixteen-letters!");
        for unreadable in ["/nowhere/cookie", "/"] {
            let file = format!("[cluster]\nlisten = \"127.0.0.1:1\"\ncookie_file = \"{unreadable}\"\n");
            let error = load(&file, &[], Vec::new()).unwrap_err();
            assert!(error.contains(&format!("cluster.cookie_file {unreadable} cannot be read")), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    const SINGLE: &str = include_str!("../config/single.toml");
    const THREE_HOSTS: &str = include_str!("../config/three-hosts.toml");

    #[test]
    fn the_example_of_one_node_shows_every_key_and_its_default() {
        let (example, default) = (load(SINGLE, &[], Vec::new()), load("", &[], Vec::new()));
        assert_eq!(format!("{:?}", example.unwrap()), format!("{:?}", default.unwrap()));
        for (key, _) in KEYS {
            let (section, key) = key.split_once('.').unwrap();
            let (_, rest) = SINGLE.split_once(&format!("[{section}]\n")).unwrap();
            let section = rest.split("\n[").next().unwrap();
            let stands = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(section.lines().any(stands), "{key} is missing:\n{section}");
        }
    }

    #[test]
    fn the_example_of_three_hosts_makes_a_cluster() {
        let mut cookie = tempfile::NamedTempFile::new().unwrap();
        cookie.write_all(b"sixteen-letters!\n").unwrap();
        let cookie = cookie.path().to_str().unwrap();
        let config = load(THREE_HOSTS, &[("PARLEY_CLUSTER_COOKIE_FILE", cookie)], Vec::new()).unwrap();
        let cluster = config.cluster.unwrap();
        assert_eq!((config.name.as_str(), config.replicas, cluster.peers.len()), ("n1", 3, 2));
        assert_eq!(config.advertise.unwrap(), "https://chat1.example.org");
    }

    #[test]
    fn a_cookie_without_quotes_is_not_repeated() {
        let error = load("[cluster]\ncookie = 1234567890123456\n", &[], Vec::new()).unwrap_err();
        assert!(error.contains("line 2 (cookie)") && !error.contains("1234567890123456"), "{error}");
    }
}
