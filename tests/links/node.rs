//! A node of a test: a process that has links and does what it is told, one line an order, one line an answer.

use bytes::Bytes;
use parley::cluster::{FRAME_BYTES_MAX, Handler, Hello, Links, LinksConfig, SendError};
use parley::metrics::Metrics;
use parley::protocol::names::{SCOPE, node_group};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The environment variable that makes a process a node, and says which.
pub(crate) const NODE: &str = "PARLEY_LINKS_TEST_NODE";

/// What an answer begins with, among what the test harness writes to the same place.
pub(crate) const ANSWER: &str = "= ";

#[derive(Default)]
struct Received {
    count: u64,
    last: u64,
    bytes: usize,
    unordered: bool,
}

type Inboxes = Arc<Mutex<HashMap<String, Received>>>;

/// Not a test: what the other tests start in a process of its own.
#[test]
fn node() {
    let Ok(config) = std::env::var(NODE) else { return };
    let config: HashMap<String, String> = serde_json::from_str(&config).unwrap();
    tracing_subscriber::fmt()
        .with_env_filter("parley=info,ractor_cluster=off")
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let inboxes = Inboxes::default();
    let links = match runtime.block_on(start(&config, Arc::clone(&inboxes))) {
        Ok(links) => links,
        Err(error) => return answer(&format!("failed {error}")),
    };
    answer("ready");
    let _entered = runtime.enter();
    for order in std::io::stdin().lines() {
        let order = order.unwrap();
        let words: Vec<&str> = order.split(' ').collect();
        answer(&obey(&words, &links, &inboxes, &runtime));
    }
}

fn answer(text: &str) {
    println!("\n{ANSWER}{text}");
}

async fn start(config: &HashMap<String, String>, inboxes: Inboxes) -> Result<Links, String> {
    let hello = Hello {
        version: 1,
        name: config["name"].clone(),
        incarnation: u64::from(std::process::id()),
        cluster_id: None,
        shards: config["shards"].parse().unwrap(),
        has_past: false,
        url: "http://127.0.0.1:1".to_owned(),
    };
    let peers = config["peers"].split_whitespace().map(|peer| {
        let (name, addr) = peer.split_once('=').unwrap();
        (name.to_owned(), addr.to_owned())
    });
    let links = LinksConfig {
        name: config["name"].clone(),
        listen: config["listen"].parse().unwrap(),
        peers: peers.collect(),
        cookie: config["cookie"].clone(),
        hello,
    };
    let handler: Handler = Arc::new(move |peer, frame: Bytes| {
        let mut inboxes = inboxes.lock().unwrap();
        let inbox = inboxes.entry(peer.to_owned()).or_default();
        inbox.bytes += frame.len();
        if let Ok(number) = <[u8; 8]>::try_from(&frame[..]) {
            let number = u64::from_le_bytes(number);
            inbox.unordered |= number <= inbox.last;
            inbox.count += 1;
            inbox.last = number;
        }
    });
    let metrics = Arc::new(Metrics::new().unwrap());
    Links::start(links, handler, metrics).await.map_err(|error| error.to_string())
}

fn obey(words: &[&str], links: &Links, inboxes: &Inboxes, runtime: &tokio::runtime::Runtime) -> String {
    match words {
        ["peers"] => {
            let peers =
                links.peers().into_iter().map(|peer| format!("{}:{}", peer.name, peer.state.as_str()));
            peers.collect::<Vec<_>>().join(" ")
        }
        ["group", name] => {
            ractor::pg::get_scoped_members(&SCOPE.to_owned(), &node_group(name)).len().to_string()
        }
        ["past", name] => {
            let peer = links.peers().into_iter().find(|peer| peer.name == *name).unwrap();
            peer.hello.is_some_and(|hello| hello.has_past).to_string()
        }
        ["have-past"] => {
            links.set_hello(Hello { has_past: true, ..links.hello() });
            "ok".to_owned()
        }
        ["send", peer, "largest"] => sent(links.send(peer, vec![1; FRAME_BYTES_MAX].into())),
        ["send", peer, "too-large"] => sent(links.send(peer, vec![1; FRAME_BYTES_MAX + 1].into())),
        ["send", peer, first, last] => {
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            for number in first..=last {
                if let Err(error) = links.send(peer, frame(number)) {
                    return error.to_string();
                }
            }
            format!("{} sent", last + 1 - first)
        }
        ["pump", peer, count] => {
            let count: u64 = count.parse().unwrap();
            for number in 1..=count {
                while let Err(error) = links.send(peer, frame(number)) {
                    if error != SendError::Full {
                        return error.to_string();
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            format!("{count} sent")
        }
        ["flood", peer, count] => {
            let mut taken = 0;
            let mut full = 0;
            for number in 1..=count.parse().unwrap() {
                // Half as frames, half as casts that another layer is about to make.
                let result = if number % 2 == 0 {
                    links.send(peer, frame(number))
                } else if links.charge(peer, 8) {
                    Ok(())
                } else {
                    Err(SendError::Full)
                };
                match result {
                    Ok(()) => taken += 1,
                    Err(SendError::Full) => full += 1,
                    Err(error) => return error.to_string(),
                }
            }
            format!("{taken} {full}")
        }
        ["received", peer] => {
            let inboxes = inboxes.lock().unwrap();
            let Some(inbox) = inboxes.get(*peer) else { return "nothing".to_owned() };
            let order = if inbox.unordered { "out of order" } else { "in order" };
            format!("{} up to {}, {order}", inbox.count, inbox.last)
        }
        ["last", peer] => inboxes.lock().unwrap().get(*peer).map_or(0, |inbox| inbox.last).to_string(),
        ["bytes", peer] => inboxes.lock().unwrap().get(*peer).map_or(0, |inbox| inbox.bytes).to_string(),
        ["stop"] => {
            runtime.block_on(links.stop());
            "stopped".to_owned()
        }
        _ => panic!("an order that is not known: {words:?}"),
    }
}

fn frame(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

fn sent(result: Result<(), SendError>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "sent".to_owned())
}
