//! Several real nodes as one cluster, on a loopback address of its own: killed, frozen, cut off and brought back.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parley::protocol::names::RoomName;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::proxy::{Fault, Proxy, Switch, Way};

use crate::support::{Disk, Node, Plan, Said, room_path, until};

/// How long a cluster may take to become whole after the last fault. Generous: see [`crate::support::SOON`].
pub(crate) const WHOLE: Duration = Duration::from_secs(40);

/// A graceful stop may take this long by the contract.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Trials that run at the same time. More would make each other's nodes so slow that they suspect each other.
const TRIALS_AT_ONCE: usize = 2;

/// Held by a cluster for as long as it lives, so that no other process takes its address.
const CLAIM_PORT: u16 = 7000;
const HTTP_PORT: u16 = 8081;
const LINK_PORT: u16 = 7101;
/// The proxy through which node I dials node J listens at this + 10 I + J.
const PROXY_PORT: u16 = 7200;

/// A throw-away secret; long enough to be taken.
pub(crate) const COOKIE: &str = "a cookie that only tests know";

/// Runs a test, with few others at the same time, and fails it when it takes longer than `limit_s` seconds.
pub(crate) fn trial<'a>(limit_s: u64, work: impl Future<Output = ()> + 'a) -> impl Future<Output = ()> + 'a {
    trial_beside(TRIALS_AT_ONCE - 1, limit_s, work)
}

/// Like [`trial`], for one that needs the machine for itself.
pub(crate) fn trial_alone<'a>(
    limit_s: u64,
    work: impl Future<Output = ()> + 'a,
) -> impl Future<Output = ()> + 'a {
    trial_beside(0, limit_s, work)
}

fn trial_beside<'a>(
    others: usize,
    limit_s: u64,
    work: impl Future<Output = ()> + 'a,
) -> impl Future<Output = ()> + 'a {
    static FREE: Semaphore = Semaphore::const_new(TRIALS_AT_ONCE);
    // Pinned out here, so that it is still there, with what its nodes have to tell, while a failure unwinds.
    let mut work: Pin<Box<dyn Future<Output = ()> + 'a>> = Box::pin(work);
    async move {
        let _permit = FREE.acquire_many((TRIALS_AT_ONCE - others) as u32).await.unwrap();
        let limit = Duration::from_secs(limit_s);
        assert!(tokio::time::timeout(limit, &mut work).await.is_ok(), "the test took longer than {limit:?}");
    }
}

/// How a cluster is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    nodes: usize,
    shards: u16,
    proxied: bool,
    env: Vec<(String, String)>,
    clocks: Vec<(usize, i64)>,
    disks: bool,
}

impl Shape {
    /// So many nodes, three copies of each of four shards, no limits, direct links.
    pub(crate) fn of(nodes: usize) -> Self {
        Self { nodes, shards: 4, proxied: false, env: Vec::new(), clocks: Vec::new(), disks: false }
            .env("PARLEY_LIMITS_INTERVAL_MS", "0")
            .env("PARLEY_CLUSTER_REPLICAS", "3")
            .env("PARLEY_CLUSTER_COOKIE", COOKIE)
    }

    pub(crate) fn shards(mut self, shards: u16) -> Self {
        self.shards = shards;
        self
    }

    /// All links go through proxies that can fail.
    pub(crate) fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Every node has a disk and a clock that can fail.
    pub(crate) fn on_disks(mut self) -> Self {
        self.disks = true;
        self
    }

    /// A variable of every node.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The clock of one node is this many ms ahead.
    pub(crate) fn clock(mut self, node: usize, ahead_ms: i64) -> Self {
        self.clocks.push((node, ahead_ms));
        self.on_disks()
    }

    /// Starts all nodes and waits until each can serve every room.
    pub(crate) async fn start(self) -> Cluster {
        let mut cluster = self.spawn().await;
        let start = Instant::now();
        for node in &mut cluster.nodes {
            if let Err(ended) = node.ready(WHOLE).await {
                panic!("a node of a new cluster ended: {ended:?}");
            }
        }
        cluster.ready().await;
        println!("a cluster of {} was ready after {:?}", cluster.nodes.len(), start.elapsed());
        cluster
    }

    /// Starts all nodes' processes.
    async fn spawn(self) -> Cluster {
        let (ip, claim) = claim();
        let mut proxies = BTreeMap::new();
        let mut nodes = Vec::new();
        let mut disks = Vec::new();
        for index in 0..self.nodes {
            let mut plan = Plan::bare()
                .at(SocketAddr::new(ip, HTTP_PORT + index as u16))
                .env("PARLEY_CLUSTER_SHARDS", self.shards.to_string())
                .arg("--name")
                .arg(name(index));
            // One alone is no cluster, but everything here can be done to it too.
            if self.nodes > 1 {
                plan = plan.arg("--cluster").arg(link_address(ip, index).to_string());
            }
            for peer in (0..self.nodes).filter(|&peer| peer != index) {
                let mut dialled = link_address(ip, peer);
                if self.proxied {
                    let target = dialled;
                    dialled.set_port(PROXY_PORT + 10 * index as u16 + peer as u16);
                    let proxy = Proxy::start(dialled, target).await.expect("the address was claimed");
                    proxies.insert((index, peer), proxy);
                }
                plan = plan.arg("--peer").arg(format!("{}={dialled}", name(peer)));
            }
            for (name, value) in &self.env {
                plan = plan.env(name, value);
            }
            if self.disks {
                let disk = Disk::new();
                plan = disk.plan(plan);
                for (_, ahead_ms) in self.clocks.iter().filter(|(node, _)| *node == index) {
                    disk.set_clock(*ahead_ms);
                }
                disks.push(disk);
            }
            nodes.push(Node::planned(plan));
        }
        for node in &mut nodes {
            node.spawn();
        }
        let live = vec![true; nodes.len()];
        Cluster { nodes, live, shards: self.shards, proxies, disks, _claim: claim }
    }
}

/// The name of the node with this index.
pub(crate) fn name(index: usize) -> String {
    format!("n{}", index + 1)
}

fn link_address(ip: IpAddr, index: usize) -> SocketAddr {
    SocketAddr::new(ip, LINK_PORT + index as u16)
}

/// An address in 127.0.0.0/8 that is this cluster's alone, and what keeps it so.
fn claim() -> (IpAddr, TcpListener) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..10_000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(257));
        let [_, a, b, c] = number.to_be_bytes();
        let ip = Ipv4Addr::new(127, a, b, c);
        // What other programs use lies in the first /16, and the last address is a broadcast.
        if a == 0 || a == 255 {
            continue;
        }
        if let Ok(claim) = TcpListener::bind((ip, CLAIM_PORT)) {
            return (ip.into(), claim);
        }
    }
    panic!("no loopback address is free");
}

/// A running cluster. Its nodes are killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// Nodes that run and are not frozen.
    live: Vec<bool>,
    shards: u16,
    proxies: BTreeMap<(usize, usize), Proxy>,
    disks: Vec<Disk>,
    _claim: TcpListener,
}

impl Cluster {
    /// A cluster of so many nodes as [`Shape::of`] makes it, ready.
    pub(crate) async fn start(nodes: usize) -> Self {
        Shape::of(nodes).start().await
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub(crate) fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// The disk of a node of a cluster that was made [`Shape::on_disks`].
    pub(crate) fn disk(&self, index: usize) -> &Disk {
        &self.disks[index]
    }

    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.nodes[index].address()
    }

    /// The indices of all nodes.
    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    /// The indices of all nodes but this one.
    pub(crate) fn others(&self, index: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&other| other != index).collect()
    }

    /// The indices of the nodes that run and are not frozen.
    pub(crate) fn live(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.live[index]).collect()
    }

    // ---- what nodes say

    /// Waits until every live node says that it can serve every room.
    pub(crate) async fn ready(&self) {
        self.ready_of(&self.live()).await;
    }

    /// Waits until each of these says that it can serve every room.
    pub(crate) async fn ready_of(&self, nodes: &[usize]) {
        let start = Instant::now();
        for &index in nodes {
            loop {
                let answer = self.readiness(index).await;
                if answer.0 == 200 {
                    break;
                }
                assert!(
                    start.elapsed() < WHOLE,
                    "{} was not ready after {WHOLE:?}, but said {answer:?}; its view: {:?}",
                    name(index),
                    self.view(index).await
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// What a node answers when it is asked whether it is ready; 0 and why when it does not answer.
    pub(crate) async fn readiness(&self, index: usize) -> (u16, String) {
        match self.nodes[index].try_get("/readyz").await {
            Ok(reply) => (reply.status, reply.text().to_owned()),
            Err(error) => (0, error.to_string()),
        }
    }

    /// The cluster as a node sees it, or `None` when it does not answer.
    pub(crate) async fn view(&self, index: usize) -> Option<Value> {
        let reply = self.nodes[index].try_get("/api/cluster").await.ok()?;
        assert_eq!(reply.status, 200, "{reply:?}");
        Some(reply.json())
    }

    pub(crate) fn shards(&self) -> u16 {
        self.shards
    }

    /// The shard of a room.
    pub(crate) fn shard(&self, room: &str) -> u16 {
        RoomName::parse(room).unwrap().shard(self.shards).0
    }

    /// The node that leads a room, once all live nodes agree on it.
    pub(crate) async fn leader_of(&self, room: &str) -> usize {
        self.leader_among(room, &self.live()).await
    }

    /// The node that leads a room, once these nodes agree that it is one of them.
    pub(crate) async fn leader_among(&self, room: &str, nodes: &[usize]) -> usize {
        let shard = usize::from(self.shard(room));
        let mut leader = None;
        until(&format!("{nodes:?} agree on who leads {room}"), WHOLE, async || {
            let mut named = Vec::new();
            for &index in nodes {
                let view = self.view(index).await;
                let found = view.and_then(|view| Some(view["shards"][shard]["leader"].as_str()?.to_owned()));
                named.push(found);
            }
            let known = nodes.iter().find(|&&index| named[0].as_deref() == Some(&name(index)));
            leader = known.copied().filter(|_| named.iter().all(|one| *one == named[0]));
            leader.is_some()
        })
        .await;
        leader.unwrap()
    }

    /// A room that this node leads. Leadership is spread evenly, so with more shards than nodes there is one.
    pub(crate) async fn room_led_by(&self, index: usize) -> String {
        self.rooms_led_by(index).await.swap_remove(0)
    }

    /// A room of every shard that this node leads, of which there is at least one.
    pub(crate) async fn rooms_led_by(&self, index: usize) -> Vec<String> {
        let mut found = Vec::new();
        until(&format!("{} leads a shard", name(index)), WHOLE, async || {
            let Some(view) = self.view(index).await else { return false };
            let leads = |shard: &u16| view["shards"][usize::from(*shard)]["leader"] == *name(index);
            let rooms = (0..1000).map(|number| format!("room {number}"));
            let rooms: BTreeMap<u16, String> = rooms.map(|room| (self.shard(&room), room)).collect();
            found = rooms.into_iter().filter(|(shard, _)| leads(shard)).map(|(_, room)| room).collect();
            !found.is_empty()
        })
        .await;
        found
    }

    /// Waits until every live node is a replica of every shard it should be, knows all the others, and is behind in
    /// nothing: from then on any one node may die.
    pub(crate) async fn whole(&self) {
        if let Err(views) = self.becomes_whole(WHOLE).await {
            panic!("waited {WHOLE:?} in vain until the cluster is whole; the views: {views:#?}");
        }
    }

    /// Like [`Cluster::whole`], but returns the nodes' views when it takes longer than `limit`.
    pub(crate) async fn becomes_whole(&self, limit: Duration) -> Result<(), Vec<Value>> {
        let live = self.live();
        let copies = live.len().min(3);
        let names: Vec<String> = live.iter().map(|&index| name(index)).collect();
        let mut views = Vec::new();
        let start = Instant::now();
        while start.elapsed() < limit {
            views.clear();
            let mut ready = true;
            for &index in &live {
                views.extend(self.view(index).await);
                ready = ready && self.readiness(index).await.0 == 200;
            }
            if ready
                && views.len() == live.len()
                && views.iter().all(|view| is_whole(view, &names, copies))
                && agree(&views, usize::from(self.shards))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(views)
    }

    /// Waits until every copy has everything, which it can only while nobody talks; false when it takes longer than
    /// `limit`.
    pub(crate) async fn becomes_equal(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let mut equal_since = None;
        while start.elapsed() < limit {
            let mut lags = Vec::new();
            for index in self.live() {
                let Some(view) = self.view(index).await else { continue };
                lags.extend(
                    view["shards"].as_array().unwrap().iter().filter_map(|shard| shard["lag"].as_u64()),
                );
            }
            if lags.len() < usize::from(self.shards) || lags.iter().any(|lag| *lag > 0) {
                equal_since = None;
            } else if equal_since.get_or_insert_with(Instant::now).elapsed() > TOLD_WITHIN {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// The history of a room in which nobody talks, which has to be the same from every live node.
    pub(crate) async fn history(&self, room: &str) -> Vec<Said> {
        let mut found: Option<Vec<Said>> = None;
        for index in self.live() {
            let node = &self.nodes[index];
            let path = format!("{}/history?limit=1", room_path(room));
            until(&format!("{} gives the history of {room}", name(index)), WHOLE, async || {
                node.try_get(&path).await.is_ok_and(|reply| reply.status == 200)
            })
            .await;
            let history = node.history(room).await;
            match &found {
                None => found = Some(history),
                Some(first) => {
                    let same = first.iter().zip(&history).take_while(|(one, other)| one == other).count();
                    assert!(
                        history.len() == first.len() && same == first.len(),
                        "{} tells another history: {} messages instead of {}, and after {same} of them {:?} \
                         instead of {:?}",
                        name(index),
                        history.len(),
                        first.len(),
                        history.get(same),
                        first.get(same)
                    );
                }
            }
        }
        found.expect("a node is live")
    }

    // ---- what is done to nodes

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) {
        self.live[index] = false;
        self.nodes[index].kill9();
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, index: usize) {
        self.live[index] = false;
        self.nodes[index].pause();
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, index: usize) {
        self.live[index] = true;
        self.nodes[index].resume();
    }

    /// SIGTERM, and the node has to end well and in time.
    pub(crate) async fn stop(&mut self, index: usize) {
        assert_eq!(self.stops(index).await, Some(0), "{} stops gracefully", name(index));
    }

    /// SIGTERM; returns the exit code.
    pub(crate) async fn stops(&mut self, index: usize) -> Option<i32> {
        self.live[index] = false;
        self.nodes[index].stop().await
    }

    /// Waits until a node has ended by itself; returns its exit code, or `None` when it goes on beyond `limit`.
    pub(crate) async fn ends(&mut self, index: usize, limit: Duration) -> Option<Option<i32>> {
        let start = Instant::now();
        while !self.nodes[index].has_ended() {
            if start.elapsed() > limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.live[index] = false;
        Some(self.nodes[index].ended(limit).await)
    }

    /// Starts a node that is down, and waits for its ready line.
    pub(crate) async fn start_again(&mut self, index: usize) {
        self.spawn(index);
        if let Err(ended) = self.nodes[index].ready(WHOLE).await {
            panic!("{} does not start again: {ended:?}", name(index));
        }
    }

    /// Starts all nodes, which are down, and waits until each is ready for every room.
    pub(crate) async fn start_all(&mut self) {
        for index in self.all() {
            self.spawn(index);
        }
        for index in self.all() {
            if let Err(ended) = self.nodes[index].ready(WHOLE).await {
                panic!("{} does not start again: {ended:?}", name(index));
            }
        }
        self.ready().await;
    }

    /// SIGTERM to all nodes at once.
    pub(crate) async fn stop_all(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::TERM);
        }
        for (index, node) in self.nodes.iter_mut().enumerate() {
            self.live[index] = false;
            assert_eq!(node.ended(STOP_MAX).await, Some(0), "{} stops gracefully", name(index));
        }
    }

    /// Starts the process of a node that is down.
    pub(crate) fn spawn(&mut self, index: usize) {
        self.nodes[index].spawn();
        self.live[index] = true;
    }

    /// Removes the data of a node that is down.
    pub(crate) fn wipe(&self, index: usize) {
        assert!(!self.live[index], "the node is down");
        match std::fs::remove_dir_all(self.nodes[index].data()) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("the folder stays: {error}"),
            _ => {}
        }
    }

    /// Changes how a node is started the next time.
    pub(crate) fn replan(&mut self, index: usize, change: impl FnOnce(Plan) -> Plan) {
        let node = &mut self.nodes[index];
        node.plan = change(node.plan.clone());
    }

    // ---- what is done to links

    /// From now on this becomes of all bytes that one node sends another, whoever dialled.
    pub(crate) fn link(&self, from: usize, to: usize, fault: Fault) {
        self.proxies[&(from, to)].set(Way::Forth, fault);
        self.proxies[&(to, from)].set(Way::Back, fault);
    }

    /// From now on this becomes of all bytes between two nodes.
    pub(crate) fn part(&self, one: usize, other: usize, fault: Fault) {
        self.link(one, other, fault);
        self.link(other, one, fault);
    }

    /// From now on this becomes of all bytes to and from this node.
    pub(crate) fn isolate(&self, index: usize, fault: Fault) {
        for other in self.others(index) {
            self.part(index, other, fault);
        }
    }

    /// The proxies of all links of this node.
    pub(crate) fn switches(&self, index: usize) -> Vec<Switch> {
        let own = self.proxies.iter().filter(|((from, to), _)| *from == index || *to == index);
        own.map(|(_, proxy)| proxy.switch()).collect()
    }

    /// Resets the connections between two nodes, once.
    pub(crate) fn reset(&self, one: usize, other: usize) {
        self.proxies[&(one, other)].reset();
        self.proxies[&(other, one)].reset();
    }

    /// All links work.
    pub(crate) fn heal(&self) {
        for proxy in self.proxies.values() {
            proxy.set(Way::Forth, Fault::None);
            proxy.set(Way::Back, Fault::None);
        }
    }
}

/// Whether in this view all these nodes are up and ready, and every shard has a leader and its copies among them.
fn is_whole(view: &Value, names: &[String], copies: usize) -> bool {
    let known = |name: &Value| names.iter().any(|known| name == known);
    let nodes = view["nodes"].as_array().unwrap();
    let up = nodes.iter().filter(|node| known(&node["name"]));
    up.clone().count() == names.len()
        && up.into_iter().all(|node| node["state"] == "up" && node["ready"] != false)
        && view["shards"].as_array().unwrap().iter().all(|shard| {
            let replicas = shard["replicas"].as_array().unwrap();
            known(&shard["leader"]) && replicas.iter().filter(|&name| known(name)).count() >= copies
        })
}

/// Some heartbeats: then who has an entry also knows that it counts.
const TOLD_WITHIN: Duration = Duration::from_millis(500);

/// Entries that a copy may lack only because people talk at this very moment.
const ON_ITS_WAY: u64 = 200;

/// Whether these views agree on every shard, and its leader says that no copy is behind.
fn agree(views: &[Value], shards: usize) -> bool {
    (0..shards).all(|id| {
        let same =
            |field: &str| views.iter().all(|view| view["shards"][id][field] == views[0]["shards"][id][field]);
        let behind = views.iter().filter_map(|view| view["shards"][id]["lag"].as_u64()).max().unwrap_or(0);
        same("leader") && same("term") && same("replicas") && behind <= ON_ITS_WAY
    })
}
