//! A run: rounds of faults upon a cluster in which people talk, each followed by a judgement.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::arena::{Arena, Remedy};
use crate::checker::{Evidence, Kind, Violation, check};
use crate::cluster::WHOLE;
use crate::copies;
use crate::faults::{Family, Fault, Strike};
use crate::ledger::{Moment, Trouble};
use crate::report::{Outcome, Silence};
use crate::support::{Said, Seed, room_path};
use crate::witness::{Event, Habits, Record, Wish, Witness};

/// Rooms in which people talk at the same time.
const ROOMS: usize = 4;

/// After everything was put right, every room takes messages again within this time.
const DEAF_MAX: Duration = Duration::from_secs(10);

/// The resident memory that a node may have, in bytes; of a build without optimisations.
const MEMORY_MAX: u64 = 300 << 20;

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) nodes: usize,
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// How long people talk before they are judged.
    pub(crate) round: Duration,
    pub(crate) families: Vec<Family>,
    /// A bug that every node has.
    pub(crate) planted: Option<&'static str>,
    /// Instead of what the seed draws, this again and again.
    pub(crate) script: Option<Vec<Strike>>,
}

/// Does it all. Ends early when a promise is broken.
pub(crate) async fn run(config: &Config) -> Outcome {
    let mut seed = Seed::of(config.seed);
    let mut arena = Arena::open(config.nodes, Seed::of(seed.next()), config.planted).await;
    let mut outcome = Outcome::new(config);
    let mut digests = BTreeMap::new();
    for round in 1.. {
        let rest = config.length.saturating_sub(arena.now());
        if rest.is_zero() || !arena.violations.is_empty() {
            break;
        }
        let mut strikes = Strikes { seed: &mut seed, config, next: 0 };
        let limit = arena.now() + rest.min(config.round);
        Round {
            arena: &mut arena,
            outcome: &mut outcome,
            witnesses: Vec::new(),
            round,
            progress_at: Moment::ZERO,
        }
        .run(&mut strikes, limit, &mut digests)
        .await;
    }
    if arena.violations.is_empty() {
        // "For ever": what was agreed upon in an earlier round is still there, and on every node's disk.
        copies::compare(&mut arena, &digests).await;
    }
    for node in arena.cluster.all() {
        if arena.cluster.node(node).has_panicked() {
            let log = arena.cluster.node(node).stderr();
            let line = log.lines().find(|line| line.contains("panic")).unwrap_or_default().to_owned();
            arena.find(Kind::Panicked, format!("n{}: {line}", node + 1));
        }
    }
    if !arena.violations.is_empty() {
        let folder = format!("{}/chaos-{}-{}", env!("CARGO_TARGET_TMPDIR"), config.seed, std::process::id());
        std::fs::create_dir_all(&folder).unwrap();
        for node in arena.cluster.all() {
            std::fs::write(format!("{folder}/n{}.log", node + 1), arena.cluster.node(node).stderr()).unwrap();
        }
        println!("the nodes' logs are in {folder}");
    }
    outcome.length = arena.now();
    outcome.refused_starts = arena.refused_starts;
    outcome.violations.extend(arena.violations.iter().map(|violation| {
        format!("{violation}\n    what was done around it:\n{}", arena.ledger.around(violation.at))
    }));
    outcome.kinds = arena.violations.iter().map(|violation| violation.kind).collect();
    outcome
}

/// Where strikes come from.
struct Strikes<'a> {
    seed: &'a mut Seed,
    config: &'a Config,
    next: usize,
}

impl Strikes<'_> {
    fn draw(&mut self) -> Strike {
        let Some(script) = &self.config.script else {
            return Strike::draw(self.seed, &self.config.families, ROOMS);
        };
        let strike = script[self.next % script.len()].clone();
        self.next += 1;
        strike
    }
}

struct Round<'a> {
    arena: &'a mut Arena,
    outcome: &'a mut Outcome,
    witnesses: Vec<Witness>,
    round: usize,
    progress_at: Moment,
}

/// When something was wrong.
struct Window {
    faults: Vec<Fault>,
    from: Moment,
    to: Moment,
}

impl Round<'_> {
    async fn run(mut self, strikes: &mut Strikes<'_>, limit: Moment, digests: &mut BTreeMap<String, u64>) {
        self.arena.rooms = (1..=ROOMS).map(|room| format!("round {} room {room}", self.round)).collect();
        self.enter(strikes.seed);
        self.until_all_have_acks(WHOLE).await;
        let mut windows = Vec::new();
        // At least one, however short the round is.
        while windows.is_empty() || self.arena.now() < limit && self.arena.violations.is_empty() {
            let strike = strikes.draw();
            self.pause(strike.calm).await;
            if strike.faults.iter().any(|fault| fault.is_exclusive()) {
                self.until_whole().await;
            }
            windows.push(self.strike(&strike).await);
        }
        self.until_whole().await;
        let records = self.dismiss().await;
        if self.arena.violations.is_empty() {
            self.judge(&records, digests).await;
        }
        self.outcome.add(&records);
        for window in windows {
            self.measure(&window, &records);
        }
    }

    /// Three people in every room: two talk, one listens, each with another node as its first.
    fn enter(&mut self, seed: &mut Seed) {
        let nodes = self.arena.cluster.all();
        for (number, room) in self.arena.rooms.iter().enumerate() {
            let first = seed.next() as usize;
            for role in 0..3 {
                let homes = (0..nodes.len()).map(|step| {
                    let node = nodes[(first + role + step) % nodes.len()];
                    (node, self.arena.cluster.address(node))
                });
                let habits = Habits {
                    name: format!("r{}-{number}-{role}", self.round),
                    room: room.clone(),
                    homes: homes.collect(),
                    says_every: (role < 2).then(|| Duration::from_millis(seed.between(40, 200))),
                };
                self.witnesses.push(Witness::send(self.arena.clock, habits));
            }
        }
    }

    async fn strike(&mut self, strike: &Strike) -> Window {
        let from = self.arena.now();
        let mut remedies = Vec::new();
        for fault in &strike.faults {
            if *fault == Fault::SlowReaders {
                self.doze(true);
            }
            remedies.extend(self.arena.strike(*fault).await);
            self.outcome.count(*fault);
            self.pause(strike.lasts / strike.faults.len() as u32).await;
        }
        for remedy in remedies {
            if matches!(remedy, Remedy::Wake) {
                self.doze(false);
            }
            self.arena.remedy(remedy).await;
        }
        self.until_all_have_acks(DEAF_MAX).await;
        self.watch_memory();
        Window { faults: strike.faults.clone(), from, to: self.arena.now() }
    }

    /// Every third reads nothing from now on, or reads again.
    fn doze(&self, doze: bool) {
        for witness in self.witnesses.iter().skip(2).step_by(3) {
            witness.wish(if doze { Wish::Doze } else { Wish::Chat });
        }
    }

    /// Waits, with an eye on the nodes and a line of progress now and then.
    async fn pause(&mut self, pause: Duration) {
        let end = self.arena.now() + pause;
        loop {
            self.arena.watch().await;
            self.tell_progress();
            let rest = end.saturating_sub(self.arena.now());
            if rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest.min(Duration::from_millis(200))).await;
        }
    }

    fn tell_progress(&mut self) {
        let now = self.arena.now();
        if now < self.progress_at {
            return;
        }
        self.progress_at = now + PROGRESS_EVERY;
        let (mut said, mut acked, mut present) = (0, 0, 0);
        for witness in &self.witnesses {
            let record = witness.record();
            said += record.said.len();
            acked += record.acked;
            present += usize::from(record.present);
        }
        println!(
            "[{:7.1}s] round {}: {said} said, {acked} acknowledged, {present} of {} present, {} of {} nodes run",
            now.as_secs_f64(),
            self.round,
            self.witnesses.len(),
            self.arena.cluster.live().len(),
            self.arena.cluster.all().len()
        );
    }

    /// Everyone who talks is acknowledged something: every room is there for every node.
    async fn until_all_have_acks(&mut self, limit: Duration) {
        let start = self.arena.now();
        let before: Vec<usize> = self.witnesses.iter().map(|witness| witness.record().acked).collect();
        loop {
            let late: Vec<String> = self
                .witnesses
                .iter()
                .map(Witness::record)
                .zip(&before)
                // Who only listens needs to be there.
                .filter(|(record, before)| !record.present || record.speaks && record.acked == **before)
                .map(|(record, _)| format!("{} in \"{}\"", record.name, record.room))
                .collect();
            if late.is_empty() {
                return;
            }
            if self.arena.now() > start + limit {
                let words =
                    format!("{limit:?} after everything was put right nothing is acknowledged to {late:?}");
                return self.arena.find(Kind::Deaf, words);
            }
            self.pause(Duration::from_millis(50)).await;
        }
    }

    async fn until_whole(&mut self) {
        if !self.arena.violations.is_empty() {
            return;
        }
        let start = self.arena.now();
        // In parts, since a node may find damage and end meanwhile.
        while self.arena.now() < start + WHOLE {
            match self.arena.cluster.becomes_whole(Duration::from_secs(2)).await {
                Ok(()) => return,
                Err(_) => self.arena.watch().await,
            }
        }
        let Err(views) = self.arena.cluster.becomes_whole(Duration::from_secs(2)).await else { return };
        self.arena.find(Kind::NotWhole, format!("{views:#?}"));
    }

    /// Everyone finishes; rosters are compared; everyone leaves.
    async fn dismiss(&mut self) -> Vec<Record> {
        self.witnesses.iter().for_each(|witness| witness.wish(Wish::Hush));
        let start = self.arena.now();
        while self.arena.violations.is_empty() {
            let unsettled = self.unsettled();
            if unsettled.is_empty() {
                break;
            }
            if self.arena.now() > start + DEAF_MAX * 2 {
                self.arena.find(Kind::Deaf, format!("in the end {}", unsettled.join("; ")));
            }
            self.pause(Duration::from_millis(50)).await;
        }
        let start = self.arena.now();
        while self.arena.violations.is_empty() {
            let wrong = self.wrong_rosters();
            if wrong.is_empty() {
                break;
            }
            if self.arena.now() > start + DEAF_MAX {
                self.arena.find(Kind::Roster, wrong.join("; "));
            }
            self.pause(Duration::from_millis(50)).await;
        }
        let mut records = Vec::new();
        for witness in std::mem::take(&mut self.witnesses) {
            records.push(witness.leave().await);
        }
        records
    }

    /// Who is not there, has something unacknowledged, or has not seen what others have.
    fn unsettled(&self) -> Vec<String> {
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for witness in &self.witnesses {
            let record = witness.record();
            let seen = newest.entry(record.room.clone()).or_default();
            *seen = (*seen).max(record.last_seen.unwrap_or_default());
        }
        self.witnesses
            .iter()
            .map(Witness::record)
            .filter(|record| {
                !record.present
                    || !record.is_settled()
                    || record.last_seen.unwrap_or_default() < newest[&record.room]
            })
            .map(|record| format!("{} waits (present: {})", record.name, record.present))
            .collect()
    }

    fn wrong_rosters(&self) -> Vec<String> {
        let mut present: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for witness in &self.witnesses {
            let record = witness.record();
            present.entry(record.room.clone()).or_default().push(record.name.clone());
        }
        present.values_mut().for_each(|names| names.sort_unstable());
        self.witnesses
            .iter()
            .map(Witness::record)
            .filter(|record| record.roster != present[&record.room])
            .map(|record| {
                format!("{} sees {:?}, there are {:?}", record.name, record.roster, present[&record.room])
            })
            .collect()
    }

    async fn judge(&mut self, records: &[Record], digests: &mut BTreeMap<String, u64>) {
        for room in self.arena.rooms.clone() {
            let mut histories = Vec::new();
            for node in self.arena.cluster.live() {
                match read_history(self.arena, node, &room).await {
                    Some(history) => histories.push((node, history)),
                    None => self
                        .arena
                        .find(Kind::Deaf, format!("n{} does not tell the history of \"{room}\"", node + 1)),
                }
            }
            if let Some((_, history)) = histories.first() {
                digests.insert(room.clone(), digest_of(history));
            }
            let own = records.iter().filter(|record| record.room == room).cloned().collect();
            let evidence = Evidence { room, histories, records: own };
            let found: Vec<Violation> = check(&evidence, &self.arena.ledger);
            self.arena.violations.extend(found);
        }
    }

    fn watch_memory(&mut self) {
        for node in self.arena.cluster.live() {
            let bytes = self.arena.cluster.node(node).resident_bytes().unwrap_or_default();
            self.outcome.memory = self.outcome.memory.max(bytes);
            if bytes > MEMORY_MAX {
                self.arena.find(Kind::Grew, format!("n{} takes {} MB", node + 1, bytes >> 20));
            }
        }
    }

    /// How long people on nodes to which nothing was done were without an ack.
    fn measure(&mut self, window: &Window, records: &[Record]) {
        let hit = [Trouble::Down, Trouble::Frozen, Trouble::CutOff];
        for record in records.iter().filter(|record| !record.said.is_empty()) {
            let mut node = None;
            let mut longest = Duration::ZERO;
            let mut last = window.from;
            for (at, event) in &record.events {
                match event {
                    Event::Came { node: home, .. } if *at <= window.from => node = Some(*home),
                    Event::Acked { .. } if *at >= window.from && last <= window.to => {
                        longest = longest.max(*at - last);
                        last = *at;
                    }
                    _ => {}
                }
            }
            let Some(node) = node else { continue };
            let elsewhere = !self.arena.ledger.was(node, &hit, window.from, window.to);
            for fault in &window.faults {
                self.outcome.silences.push(Silence { fault: fault.name(), elsewhere, length: longest });
            }
        }
    }
}

/// A room's history as a node tells it, unchecked; `None` when it does not.
async fn read_history(arena: &Arena, node: usize, room: &str) -> Option<Vec<Said>> {
    let (start, path) = (arena.now(), room_path(room));
    let (mut history, mut cursor) = (Vec::new(), 0);
    loop {
        let path = format!("{path}/history?after={cursor}&limit=1000");
        let reply = arena.cluster.node(node).try_get(&path).await.ok().filter(|reply| reply.status == 200);
        let Some(reply) = reply else {
            if arena.now() > start + DEAF_MAX {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let page = reply.json();
        for message in page["messages"].as_array()? {
            history.push(Said::from_json(message)?);
        }
        cursor = history.last().map_or(cursor, |said: &Said| said.timestamp);
        if page["more"] != true {
            return Some(history);
        }
    }
}

pub(crate) fn digest_of(history: &[Said]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for said in history {
        (said.timestamp, &said.id, &said.name, &said.text).hash(&mut hasher);
    }
    hasher.finish()
}
