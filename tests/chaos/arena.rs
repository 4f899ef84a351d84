//! A cluster to which things are done, and who is in which trouble meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::checker::{Kind, Violation};
use crate::cluster::{Cluster, Shape, WHOLE, name};
use crate::faults::{Fault, Whom};
use crate::ledger::{Clock, Ledger, Moment, Trouble};
use crate::proxy;
use crate::support::disk::{EIO, ENOSPC, flip_bit, stale_block, truncate_journal};
use crate::support::{Client, Frame, Opening, Seed, room_path};

/// How long a node whose disk fails may take to notice and end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// How much of a journal's end is taken at most, in bytes.
const TORN_MAX: u64 = 64 * 1024;

/// How long a link is up, or down, when it flaps.
const FLAP_EVERY: Duration = Duration::from_millis(250);

/// How long a session of a storm stays.
const STORM_STAY: Duration = Duration::from_millis(300);

/// How something is put right.
#[derive(Debug)]
pub(crate) enum Remedy {
    /// The process is started.
    Start(usize),
    /// SIGCONT.
    Resume(usize),
    /// All links work.
    Links,
    /// A task that does something again and again ends, and then all links work.
    EndTask(JoinHandle<()>),
    /// The node has ended because of its disk; it gets a good one and starts.
    Disk(usize),
    /// The clock is right.
    Clock(usize),
    /// Those who dozed read.
    Wake,
    /// Nothing to do.
    None,
}

/// See the module.
pub(crate) struct Arena {
    pub(crate) cluster: Cluster,
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    pub(crate) rooms: Vec<String>,
    pub(crate) violations: Vec<Violation>,
    seed: Seed,
    /// From whom to whom nothing gets through.
    severed: BTreeSet<(usize, usize)>,
    /// Nodes whose folder was damaged since it was last made.
    damaged: BTreeSet<usize>,
    /// Starts that damage prevented, and were answered with an empty folder.
    pub(crate) refused_starts: usize,
}

impl Arena {
    /// A whole cluster.
    pub(crate) async fn open(nodes: usize, seed: Seed, planted: Option<&str>) -> Self {
        let mut shape = Shape::of(nodes).proxied().on_disks();
        if let Some(bug) = planted {
            shape = shape.env("PARLEY_PLANTED_BUG", bug);
        }
        let cluster = shape.start().await;
        cluster.whole().await;
        Self {
            cluster,
            clock: Clock::start(),
            ledger: Ledger::default(),
            rooms: Vec::new(),
            violations: Vec::new(),
            seed,
            severed: BTreeSet::new(),
            damaged: BTreeSet::new(),
            refused_starts: 0,
        }
    }

    fn count(&self) -> usize {
        self.cluster.all().len()
    }

    pub(crate) fn find(&mut self, kind: Kind, words: String) {
        self.violations.push(Violation { kind, at: self.clock.now(), words });
    }

    fn note(&mut self, words: &str) {
        let at = self.clock.now();
        println!("[{:7.1}s] {words}", at.as_secs_f64());
        self.ledger.note(at, words);
    }

    fn begin(&mut self, node: usize, trouble: Trouble) {
        self.ledger.begin(self.clock.now(), node, trouble);
    }

    fn end(&mut self, node: usize, troubles: &[Trouble]) {
        self.ledger.end(self.clock.now(), node, troubles);
    }

    fn room(&self, number: usize) -> &str {
        &self.rooms[number % self.rooms.len()]
    }

    /// The shard of a room, as any live node sees it.
    async fn shard(&self, room: &str) -> Option<Value> {
        let shard = usize::from(self.cluster.shard(room));
        for node in self.cluster.live() {
            let Some(view) = self.cluster.view(node).await else { continue };
            if view["shards"][shard]["leader"].is_string() {
                return Some(view["shards"][shard].clone());
            }
        }
        None
    }

    /// The node that hosts a room.
    async fn host(&self, room: &str) -> Option<usize> {
        let shard = self.shard(room).await?;
        self.cluster.all().into_iter().find(|&node| shard["leader"] == *name(node))
    }

    /// The nodes that keep a copy of a room.
    pub(crate) async fn copies(&self, room: &str) -> Option<Vec<usize>> {
        let shard = self.shard(room).await?;
        let replicas = shard["replicas"].as_array()?;
        Some(
            self.cluster
                .all()
                .into_iter()
                .filter(|&node| replicas.iter().any(|one| *one == *name(node)))
                .collect(),
        )
    }

    /// The node that plays this part now, among those that run.
    async fn resolve(&self, whom: Whom) -> usize {
        let live = self.cluster.live();
        let (host, draw) = match whom {
            Whom::Any(draw) => (None, draw),
            Whom::Host(room) => (self.host(self.room(room)).await, 0),
            Whom::Gateway(room, draw) => (self.host(self.room(room)).await, draw),
        };
        match (whom, host) {
            (Whom::Host(_), Some(host)) if live.contains(&host) => host,
            (Whom::Gateway(..), Some(host)) if live.len() > 1 => {
                let others: Vec<usize> = live.into_iter().filter(|&node| node != host).collect();
                others[draw as usize % others.len()]
            }
            _ => live[draw as usize % live.len()],
        }
    }

    /// Does it. What is returned puts it right.
    pub(crate) async fn strike(&mut self, fault: Fault) -> Vec<Remedy> {
        if self.cluster.live().is_empty() {
            return Vec::new();
        }
        let target = match fault {
            Fault::Kill(whom)
            | Fault::Freeze(whom)
            | Fault::CutPair(whom, ..)
            | Fault::Isolate(whom, _)
            | Fault::OneWay(whom, ..)
            | Fault::Flap(whom)
            | Fault::Delay(whom, _)
            | Fault::Throttle(whom, _)
            | Fault::Stop(whom)
            | Fault::Wipe(whom)
            | Fault::DiskFull(whom)
            | Fault::SyncFails(whom)
            | Fault::TornJournal(whom, _)
            | Fault::FlippedBit(whom, _)
            | Fault::StaleBlock(whom, _)
            | Fault::Clock(whom, _)
            | Fault::Storm(whom, _) => Some(self.resolve(whom).await),
            _ => None,
        };
        self.note(&match target {
            Some(node) => format!("{fault}: {}", name(node)),
            None => fault.to_string(),
        });
        let node = target.unwrap_or_default();
        match fault {
            Fault::Kill(_) => vec![self.kill(node)],
            Fault::KillMinority(draw) => {
                let some = self.minority(draw);
                some.into_iter().map(|node| self.kill(node)).collect()
            }
            Fault::KillAll => self.cluster.live().into_iter().map(|node| self.kill(node)).collect(),
            Fault::Freeze(_) => {
                self.begin(node, Trouble::Frozen);
                self.cluster.pause(node);
                vec![Remedy::Resume(node)]
            }
            Fault::CutPair(_, draw, way) => {
                let others = self.cluster.others(node);
                let other = others[draw as usize % others.len()];
                self.sever(&[(node, other), (other, node)], way.fault())
            }
            Fault::Isolate(_, way) => {
                let others = self.cluster.others(node);
                let pairs: Vec<_> =
                    others.into_iter().flat_map(|other| [(node, other), (other, node)]).collect();
                self.sever(&pairs, way.fault())
            }
            Fault::OneWay(_, outward, way) => {
                let others = self.cluster.others(node).into_iter();
                let pairs: Vec<_> =
                    others.map(|other| if outward { (node, other) } else { (other, node) }).collect();
                self.sever(&pairs, way.fault())
            }
            Fault::Split(draw, way) => {
                let side = self.minority(draw);
                let pairs = self.between(|one, other| side.contains(&one) != side.contains(&other));
                self.sever(&pairs, way.fault())
            }
            Fault::Bridge(draw, way) => {
                let middle = draw as usize % self.count();
                let outer = self.cluster.others(middle);
                let half = &outer[..outer.len() / 2];
                let pairs = self.between(|one, other| {
                    one != middle && other != middle && half.contains(&one) != half.contains(&other)
                });
                self.sever(&pairs, way.fault())
            }
            Fault::Flap(_) => self.flap(node),
            Fault::Delay(_, ms) => self.strain(node, proxy::Fault::Late(Duration::from_millis(ms))),
            Fault::LateWords(room, ms) => self.delay_words(room, Duration::from_millis(ms)).await,
            Fault::Throttle(_, rate) => self.strain(node, proxy::Fault::Narrow(rate)),
            Fault::Stop(_) => vec![self.stop(node).await],
            Fault::Roll => {
                for node in self.cluster.live() {
                    let remedy = self.stop(node).await;
                    self.remedy(remedy).await;
                }
                Vec::new()
            }
            Fault::Wipe(_) => {
                let remedy = self.kill(node);
                self.cluster.wipe(node);
                self.damaged.remove(&node);
                vec![remedy]
            }
            Fault::DiskFull(_) => {
                self.begin(node, Trouble::Down);
                self.cluster.disk(node).fail_writes(ENOSPC);
                vec![Remedy::Disk(node)]
            }
            Fault::SyncFails(_) => {
                self.begin(node, Trouble::Down);
                self.cluster.disk(node).fail_syncs(EIO);
                vec![Remedy::Disk(node)]
            }
            Fault::PowerLoss => {
                let remedies = self.cluster.live().into_iter().map(|node| self.kill(node)).collect();
                for node in self.cluster.all() {
                    self.cluster.disk(node).power_loss(self.cluster.node(node).data());
                }
                remedies
            }
            Fault::TornJournal(..) | Fault::FlippedBit(..) | Fault::StaleBlock(..) => {
                let remedy = self.kill(node);
                let data = self.cluster.node(node).data().to_owned();
                match fault {
                    Fault::TornJournal(..) => truncate_journal(&data, TORN_MAX, &mut self.seed),
                    Fault::FlippedBit(..) => drop(flip_bit(&data, &mut self.seed)),
                    _ => drop(stale_block(&data, &mut self.seed)),
                }
                self.damaged.insert(node);
                vec![remedy]
            }
            Fault::Clock(_, seconds) => {
                self.cluster.disk(node).set_clock(seconds * 1_000);
                vec![Remedy::Clock(node)]
            }
            Fault::SlowReaders => vec![Remedy::Wake],
            Fault::Storm(_, sessions) => vec![self.storm(node, sessions)],
        }
    }

    /// Puts something right, and waits until the process that was started is ready.
    pub(crate) async fn remedy(&mut self, remedy: Remedy) {
        match remedy {
            Remedy::Start(node) => self.start(node).await,
            Remedy::Resume(node) => {
                self.note(&format!("{} goes on", name(node)));
                self.cluster.resume(node);
                self.end(node, &[Trouble::Frozen]);
            }
            Remedy::Links => self.heal_links(),
            Remedy::EndTask(task) => {
                task.abort();
                let _ = task.await;
                self.heal_links();
            }
            Remedy::Disk(node) => self.mend_disk(node).await,
            Remedy::Clock(node) => {
                self.note(&format!("the clock of {} is right again", name(node)));
                self.cluster.disk(node).set_clock(0);
            }
            Remedy::Wake | Remedy::None => {}
        }
    }

    fn kill(&mut self, node: usize) -> Remedy {
        self.begin(node, Trouble::Down);
        self.cluster.kill(node);
        Remedy::Start(node)
    }

    async fn stop(&mut self, node: usize) -> Remedy {
        self.begin(node, Trouble::Down);
        let code = self.cluster.stops(node).await;
        if code != Some(0) {
            self.find(Kind::Died, format!("{} ended with {code:?} when told to stop", name(node)));
        }
        Remedy::Start(node)
    }

    async fn start(&mut self, node: usize) {
        self.cluster.spawn(node);
        let mut ended = self.cluster.node_mut(node).ready(WHOLE).await;
        if ended.is_err() && self.damaged.remove(&node) {
            // What an operator does who reads the sentence.
            self.refused_starts += 1;
            let sentence = format!("{ended:?}");
            self.cluster.kill(node);
            if !sentence.contains("damaged") {
                self.find(Kind::Died, format!("{} does not say that it is damaged: {sentence}", name(node)));
            }
            self.note(&format!("{} refuses its damaged folder, and gets an empty one", name(node)));
            self.cluster.wipe(node);
            self.cluster.spawn(node);
            ended = self.cluster.node_mut(node).ready(WHOLE).await;
        }
        match ended {
            Ok(()) => {
                self.note(&format!("{} is back", name(node)));
                self.end(node, &[Trouble::Down]);
            }
            Err(ended) => {
                self.cluster.kill(node);
                self.find(Kind::Died, format!("{} does not start again: {ended:?}", name(node)));
            }
        }
    }

    async fn mend_disk(&mut self, node: usize) {
        let failed = self.cluster.disk(node).failures() > 0;
        if failed {
            match self.cluster.ends(node, ENDS_WITHIN).await {
                Some(Some(1)) => {}
                Some(code) => {
                    self.find(Kind::Died, format!("{} ended with {code:?} over its disk", name(node)));
                }
                None => {
                    self.find(Kind::Died, format!("{} goes on although its disk fails", name(node)));
                    self.cluster.kill(node);
                }
            }
        }
        self.cluster.disk(node).heal();
        if failed {
            self.start(node).await;
        } else {
            // It had nothing to write.
            self.end(node, &[Trouble::Down]);
        }
    }

    /// Nodes that end by themselves, which none may unless its folder was damaged.
    pub(crate) async fn watch(&mut self) {
        for node in self.cluster.live() {
            if !self.cluster.node_mut(node).has_ended() || self.is_excused(node) {
                continue;
            }
            let code = self.cluster.ends(node, ENDS_WITHIN).await.flatten();
            let log = self.cluster.node(node).stderr_of_this_life();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            self.begin(node, Trouble::Down);
            if self.damaged.remove(&node) && code == Some(1) {
                self.refused_starts += 1;
                self.note(&format!("{} found the damage and ended; it gets an empty folder", name(node)));
                self.cluster.wipe(node);
            } else {
                self.find(Kind::Died, format!("{} ended by itself with {code:?}: {tail:?}", name(node)));
            }
            self.start(node).await;
        }
    }

    /// Whether a node may be ending because its disk fails right now.
    fn is_excused(&self, node: usize) -> bool {
        let now = self.clock.now();
        self.ledger.was(node, &[Trouble::Down], now, now)
    }

    /// As many nodes as the cluster must survive, chosen by a draw.
    fn minority(&self, draw: u64) -> Vec<usize> {
        let count = self.count();
        let first = draw as usize % count;
        (0..(count - 1) / 2).map(|step| (first + step) % count).collect()
    }

    fn between(&self, apart: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let all = self.cluster.all();
        let pairs = all.iter().flat_map(|&one| all.iter().map(move |&other| (one, other)));
        pairs.filter(|&(one, other)| one != other && apart(one, other)).collect()
    }

    fn sever(&mut self, pairs: &[(usize, usize)], fault: proxy::Fault) -> Vec<Remedy> {
        // Written down before it happens: what follows is its consequence.
        self.severed.extend(pairs.iter().copied());
        for node in self.cluster.all() {
            let reached = self.cluster.others(node).into_iter().filter(|&other| {
                !self.severed.contains(&(node, other)) && !self.severed.contains(&(other, node))
            });
            let reached = reached.count();
            if reached == 0 {
                self.begin(node, Trouble::Alone);
            }
            let touched = self.severed.iter().any(|&(from, to)| from == node || to == node);
            // A node and those it reaches are a majority, or it can lead nothing and follow nobody.
            if (reached + 1) * 2 <= self.count() {
                self.begin(node, Trouble::CutOff);
            } else if touched {
                self.begin(node, Trouble::Strained);
            }
        }
        for &(from, to) in pairs {
            self.cluster.link(from, to, fault);
        }
        vec![Remedy::Links]
    }

    /// All links of one node become bad, and one link of each of the others.
    fn shake(&mut self, node: usize) {
        self.begin(node, Trouble::Shaky);
        for other in self.cluster.others(node) {
            self.begin(other, Trouble::Strained);
        }
    }

    fn strain(&mut self, node: usize, fault: proxy::Fault) -> Vec<Remedy> {
        self.shake(node);
        self.cluster.isolate(node, fault);
        vec![Remedy::Links]
    }

    async fn delay_words(&mut self, room: usize, delay: Duration) -> Vec<Remedy> {
        let room = self.room(room);
        let (Some(host), Some(copies)) = (self.host(room).await, self.copies(room).await) else {
            return Vec::new();
        };
        for node in self.cluster.all().into_iter().filter(|node| !copies.contains(node)) {
            self.begin(node, Trouble::Strained);
            self.cluster.link(host, node, proxy::Fault::Late(delay));
        }
        vec![Remedy::Links]
    }

    fn flap(&mut self, node: usize) -> Vec<Remedy> {
        self.shake(node);
        let switches = self.cluster.switches(node);
        let task = tokio::spawn(async move {
            for fault in [proxy::Fault::Cut, proxy::Fault::None].into_iter().cycle() {
                switches.iter().for_each(|switch| switch.set_both(fault));
                tokio::time::sleep(FLAP_EVERY).await;
            }
        });
        vec![Remedy::EndTask(task)]
    }

    fn heal_links(&mut self) {
        self.note("all links work");
        self.severed.clear();
        self.cluster.heal();
        for node in self.cluster.all() {
            self.end(node, &[Trouble::CutOff, Trouble::Alone, Trouble::Strained, Trouble::Shaky]);
        }
    }

    /// Sessions that come, stay for a moment and come again.
    fn storm(&self, node: usize, sessions: usize) -> Remedy {
        let address = self.cluster.address(node);
        let path = room_path(&self.rooms[0]);
        tokio::spawn(async move {
            let mut storm = tokio::task::JoinSet::new();
            for number in 0..sessions {
                let path = path.clone();
                storm.spawn(async move {
                    for _ in 0..2 {
                        let opened = Client::try_open(address, &path, &Opening::default()).await;
                        let Ok(mut client) = opened else { continue };
                        let hello = format!("{{\"name\":\"storm {number}\"}}");
                        let _ = client.try_send(Message::text(hello)).await;
                        // One that was lost would be read again and again without a pause.
                        let stay = async { while client.read().await != Frame::Lost {} };
                        let _ = tokio::time::timeout(STORM_STAY, stay).await;
                    }
                });
            }
            storm.join_all().await;
        });
        Remedy::None
    }

    /// A moment from now until which nobody can complain.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }
}
