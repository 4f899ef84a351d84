//! Decides from what everyone wrote down whether the promises were kept. Pure: records in, violations out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::ledger::{Ledger, Moment, Trouble};
use crate::support::Said;
use crate::witness::{Event, Record};

/// A leader that is cut off or frozen speaks no longer than its lease; what it said before may take this long to arrive.
const LAST_WORDS: Duration = Duration::from_millis(1_500);

/// What was relayed this long before its node was in trouble was on its way to the others.
const RELAYED_BEFORE: Duration = Duration::from_secs(4);

/// An ack that was on its way when a node lost the majority has arrived after this long.
const ACK_ON_ITS_WAY: Duration = Duration::from_secs(3);

/// How a promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Acknowledged, and not in the history.
    Lost,
    /// In the history twice.
    Twice,
    /// In the history with another author or text, or acknowledged with another timestamp.
    Changed,
    /// In the history, and nobody said it.
    Invented,
    /// Two nodes tell two histories.
    Diverged,
    /// The history's timestamps do not strictly increase.
    Disordered,
    /// Somebody was shown a message twice.
    ShownTwice,
    /// Somebody was shown a message after a later one.
    ShownDisordered,
    /// Somebody was shown what is not in the history, and nothing excuses it.
    Ghost,
    /// Somebody was not shown what is in the history.
    Missed,
    /// A node that reaches nobody, and so no majority of any shard's copies, acknowledged something.
    MinorityAck,
    /// A session was closed on a node that had no trouble.
    Closed,
    /// Somebody was told what no client should be told.
    Strange,
    /// Rosters do not become right.
    Roster,
    /// A room takes nothing although everything was put right.
    Deaf,
    /// The cluster does not become whole although everything was put right.
    NotWhole,
    /// A node ended by itself, or does not start.
    Died,
    /// A node panicked.
    Panicked,
    /// A node takes more memory than it may.
    Grew,
}

/// One broken promise.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) at: Moment,
    pub(crate) words: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.3} s: {}", self.kind, self.at.as_secs_f64(), self.words)
    }
}

/// Everything about one room: its history as each node tells it, and what everyone there wrote down.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    pub(crate) room: String,
    pub(crate) histories: Vec<(usize, Vec<Said>)>,
    pub(crate) records: Vec<Record>,
}

/// All broken promises that a room's evidence shows.
pub(crate) fn check(evidence: &Evidence, ledger: &Ledger) -> Vec<Violation> {
    let mut case = Case { evidence, ledger, found: Vec::new() };
    case.check_history();
    for record in &evidence.records {
        case.check_acks(record);
        case.check_view(record);
        case.check_sessions(record);
    }
    case.found
}

struct Case<'a> {
    evidence: &'a Evidence,
    ledger: &'a Ledger,
    found: Vec<Violation>,
}

impl Case<'_> {
    fn find(&mut self, kind: Kind, at: Moment, words: &str) {
        let words = format!("room \"{}\": {words}", self.evidence.room);
        self.found.push(Violation { kind, at, words });
    }

    fn history(&self) -> &[Said] {
        self.evidence.histories.first().map_or(&[], |(_, history)| history)
    }

    fn check_history(&mut self) {
        let Evidence { histories, records, .. } = self.evidence;
        let end = records.iter().filter_map(|record| record.events.last()).map(|(at, _)| *at).max();
        let end = end.unwrap_or_default();
        let Some(((first_node, first), others)) = histories.split_first() else { return };
        for (node, other) in others {
            let same = first.iter().zip(other).take_while(|(one, other)| one == other).count();
            if same < first.len() || same < other.len() {
                let words = format!(
                    "after {same} messages n{} has {:?} and n{} has {:?}",
                    first_node + 1,
                    first.get(same),
                    node + 1,
                    other.get(same)
                );
                self.find(Kind::Diverged, end, &words);
            }
        }
        for pair in first.windows(2).filter(|pair| pair[0].timestamp >= pair[1].timestamp) {
            self.find(Kind::Disordered, end, &format!("{:?} comes after {:?}", pair[1], pair[0]));
        }
        let said: BTreeMap<&str, (&str, &str)> = records
            .iter()
            .flat_map(|record| record.said.iter().map(|(id, text)| (&**id, (&*record.name, &**text))))
            .collect();
        let mut ids = BTreeSet::new();
        for message in first {
            let Some(id) = message.id.as_deref() else {
                self.find(Kind::Invented, end, &format!("{message:?} has no id"));
                continue;
            };
            if !ids.insert(id) {
                self.find(Kind::Twice, end, &format!("{message:?} is there for the second time"));
            }
            match said.get(id) {
                None => self.find(Kind::Invented, end, &format!("nobody said {message:?}")),
                Some((name, text)) if *name == message.name && *text == message.text => {}
                Some(said) => self.find(Kind::Changed, end, &format!("{message:?} was said as {said:?}")),
            }
        }
    }

    fn check_acks(&mut self, record: &Record) {
        let history: BTreeMap<&str, u64> =
            self.history().iter().filter_map(|said| Some((said.id.as_deref()?, said.timestamp))).collect();
        let history: BTreeMap<String, u64> =
            history.into_iter().map(|(id, at)| (id.to_owned(), at)).collect();
        let mut node = 0;
        for (at, event) in &record.events {
            match event {
                Event::Came { node: home, .. } => node = *home,
                Event::Acked { id, timestamp } => {
                    let where_and_when = format!("{id}, acknowledged by n{} under {timestamp}", node + 1);
                    match history.get(id) {
                        None => self.find(Kind::Lost, *at, &format!("{where_and_when}, is lost")),
                        Some(there) if there != timestamp => {
                            let words = format!("{where_and_when}, is in the history under {there}");
                            self.find(Kind::Changed, *at, &words);
                        }
                        Some(_) => {}
                    }
                    let before = at.saturating_sub(ACK_ON_ITS_WAY);
                    if self.ledger.was_throughout(node, &[Trouble::Alone], before, *at) {
                        let words = format!("{where_and_when}, which reaches nobody");
                        self.find(Kind::MinorityAck, *at, &words);
                    }
                }
                _ => {}
            }
        }
    }

    /// Everything in the history since the first message shown was shown, in order, once; and nothing else.
    fn check_view(&mut self, record: &Record) {
        let name = &record.name;
        let history: BTreeMap<u64, Said> =
            self.history().iter().map(|said| (said.timestamp, said.clone())).collect();
        let mut node = 0;
        let mut last: Option<&Said> = None;
        let mut shown_real: BTreeSet<u64> = BTreeSet::new();
        let mut shown_ids: BTreeMap<&str, u64> = BTreeMap::new();
        let mut ghosts: BTreeSet<u64> = BTreeSet::new();
        let mut skipped: Vec<(u64, u64)> = Vec::new();
        let mut gap_after = None;
        let mut since = None;
        for (at, event) in &record.events {
            match event {
                Event::Came { node: home, since: seen } => (node, since) = (*home, *seen),
                Event::Gap => gap_after = since,
                Event::Shown(said) => {
                    if let Some(after) = gap_after.take() {
                        skipped.push((after, said.timestamp));
                    }
                    let home = format!("{name} on n{}", node + 1);
                    if let Some(last) = last.filter(|last| last.timestamp >= said.timestamp) {
                        let kind = if shown_real.contains(&said.timestamp) || ghosts.contains(&said.timestamp)
                        {
                            Kind::ShownTwice
                        } else {
                            Kind::ShownDisordered
                        };
                        self.find(kind, *at, &format!("{home} was shown {said:?} after {last:?}"));
                    }
                    last = Some(said);
                    if let Some(id) = said.id.as_deref() {
                        let before = shown_ids.insert(id, said.timestamp);
                        if let Some(before) =
                            before.filter(|before| *before != said.timestamp && !ghosts.contains(before))
                        {
                            let words = format!("{home} was shown {said:?}, and under {before} before");
                            self.find(Kind::ShownTwice, *at, &words);
                        }
                    }
                    if history.get(&said.timestamp) == Some(said) {
                        shown_real.insert(said.timestamp);
                    } else {
                        ghosts.insert(said.timestamp);
                        if !self.may_vanish(node, *at) {
                            self.find(
                                Kind::Ghost,
                                *at,
                                &format!("{home} was shown {said:?}, which is not in the history"),
                            );
                        }
                    }
                }
                _ => {}
            }
        }
        let end = record.events.last().map_or(Moment::ZERO, |(at, _)| *at);
        let Some(first) = shown_real.first().copied() else {
            if !history.is_empty() {
                self.find(Kind::Missed, end, &format!("{name} was shown nothing"));
            }
            return;
        };
        let is_skipped =
            |timestamp| skipped.iter().any(|(after, before)| timestamp > *after && timestamp < *before);
        for (timestamp, said) in history.range(first..) {
            if !shown_real.contains(timestamp) && !is_skipped(*timestamp) {
                self.find(Kind::Missed, end, &format!("{name} was never shown {said:?}"));
            }
        }
    }

    /// Whether what a node showed at that moment, and nobody else, may be gone: it got into trouble before it could
    /// tell.
    fn may_vanish(&self, node: usize, shown: Moment) -> bool {
        let all = [Trouble::Down, Trouble::Frozen, Trouble::CutOff, Trouble::Strained];
        let before = shown.saturating_sub(LAST_WORDS);
        self.ledger.was(node, &[Trouble::Shaky], before, shown + RELAYED_BEFORE)
            || self
                .ledger
                .beginnings(node, &all)
                .any(|began| (before..=shown + RELAYED_BEFORE).contains(&began))
    }

    fn check_sessions(&mut self, record: &Record) {
        let (mut node, mut came) = (0, Moment::ZERO);
        for (at, event) in &record.events {
            match event {
                Event::Came { node: home, .. } => (node, came) = (*home, *at),
                Event::Strange(what) => {
                    self.find(
                        Kind::Strange,
                        *at,
                        &format!("{} on n{} was told {what}", record.name, node + 1),
                    );
                }
                // Who reads too slowly, or comes with too many others, is sent away and comes back.
                Event::Ended(Some(1013)) => {}
                Event::Ended(code) if !self.ledger.was(node, &[Trouble::Down], came, *at + LAST_WORDS) => {
                    let words = format!("{}'s session on n{} ended with {code:?}", record.name, node + 1);
                    self.find(Kind::Closed, *at, &words);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Duration::from_millis(ms)
    }

    fn said(number: u64) -> Said {
        Said {
            name: "alice".to_owned(),
            text: format!("alice says {number}"),
            timestamp: 1_000 + number,
            id: Some(format!("alice-{number}")),
        }
    }

    /// Alice says three things, which she and bob are shown.
    fn sound() -> Evidence {
        let history: Vec<Said> = (0..3).map(said).collect();
        let mut alice = Record::of("alice", "lobby");
        let mut bob = Record::of("bob", "lobby");
        for (node, record) in [&mut alice, &mut bob].into_iter().enumerate() {
            record.events.push((at(0), Event::Came { node, since: None }));
            record.events.push((at(1), Event::Ready));
        }
        for message in &history {
            let id = message.id.clone().unwrap();
            let number = message.timestamp - 1_000;
            alice.said.push((id.clone(), message.text.clone()));
            for record in [&mut alice, &mut bob] {
                record.events.push((at(10 + 10 * number), Event::Shown(message.clone())));
            }
            let ack = Event::Acked { id, timestamp: message.timestamp };
            alice.events.push((at(15 + 10 * number), ack));
        }
        let histories = vec![(0, history.clone()), (1, history)];
        Evidence { room: "lobby".to_owned(), histories, records: vec![alice, bob] }
    }

    fn kinds(evidence: &Evidence, ledger: &Ledger) -> BTreeSet<Kind> {
        check(evidence, ledger).into_iter().map(|violation| violation.kind).collect()
    }

    fn shown(evidence: &mut Evidence, who: usize, number: usize) -> &mut Said {
        let shown = evidence.records[who].events.iter_mut().filter_map(|(_, event)| match event {
            Event::Shown(said) => Some(said),
            _ => None,
        });
        shown.into_iter().nth(number).unwrap()
    }

    #[test]
    fn what_is_right_is_found_to_be_right() {
        assert_eq!(kinds(&sound(), &Ledger::default()), BTreeSet::new());
    }

    /// Breaks a promise.
    type Spoil = fn(&mut Evidence);

    #[test]
    fn every_broken_promise_is_found() {
        let cases: &[(Kind, Spoil)] = &[
            (Kind::Lost, |evidence| {
                evidence.histories.iter_mut().for_each(|(_, history)| drop(history.pop()));
            }),
            (Kind::Twice, |evidence| {
                for (_, history) in &mut evidence.histories {
                    history.push(Said { timestamp: 2_000, ..said(0) });
                }
            }),
            (Kind::Changed, |evidence| {
                evidence.histories.iter_mut().for_each(|(_, history)| history[1].text = "else".to_owned());
            }),
            (Kind::Changed, |evidence| {
                evidence.records[0]
                    .events
                    .push((at(99), Event::Acked { id: "alice-0".to_owned(), timestamp: 7 }));
            }),
            (Kind::Invented, |evidence| {
                evidence.histories.iter_mut().for_each(|(_, history)| history.push(said(9)));
            }),
            (Kind::Diverged, |evidence| drop(evidence.histories[1].1.pop())),
            (Kind::Disordered, |evidence| {
                evidence.histories.iter_mut().for_each(|(_, history)| history.swap(0, 1));
            }),
            (Kind::ShownTwice, |evidence| {
                evidence.records[1].events.push((at(99), Event::Shown(said(2))));
            }),
            (Kind::ShownTwice, |evidence| {
                let again = Said { timestamp: 3_000, ..said(2) };
                evidence.records[1].events.push((at(99), Event::Shown(again)));
            }),
            (Kind::ShownDisordered, |evidence| {
                let late = shown(evidence, 1, 0).clone();
                *shown(evidence, 1, 0) = said(1);
                *shown(evidence, 1, 1) = late;
            }),
            (Kind::Ghost, |evidence| {
                let ghost = Said { timestamp: 3_000, ..said(7) };
                evidence.records[1].events.push((at(99), Event::Shown(ghost)));
            }),
            (Kind::Missed, |evidence| {
                evidence.records[1].events.retain(|(_, event)| *event != Event::Shown(said(1)));
            }),
            (Kind::Closed, |evidence| evidence.records[1].events.push((at(99), Event::Ended(Some(1011))))),
            (Kind::Strange, |evidence| {
                evidence.records[1].events.push((at(99), Event::Strange("hm".to_owned())));
            }),
        ];
        for (kind, spoil) in cases {
            let mut evidence = sound();
            spoil(&mut evidence);
            let found = kinds(&evidence, &Ledger::default());
            assert!(found.contains(kind), "{kind:?}: {found:?}");
        }
    }

    #[test]
    fn only_trouble_excuses() {
        let mut evidence = sound();
        let ghost = Said { timestamp: 3_000, ..said(7) };
        evidence.records[1].events.push((at(10_000), Event::Shown(ghost)));
        evidence.records[1].events.push((at(10_100), Event::Ended(None)));
        // Alice's node is in trouble, not bob's; then bob's, but long before; then bob's, just then.
        for (node, from, excused) in [(0, 10_050, false), (1, 5_000, false), (1, 10_050, true)] {
            let mut ledger = Ledger::default();
            ledger.begin(at(from), node, Trouble::Down);
            ledger.end(at(from + 200), node, &[Trouble::Down]);
            let found = kinds(&evidence, &ledger);
            assert_eq!(!found.contains(&Kind::Ghost), excused, "{node} {from}: {found:?}");
            assert_eq!(!found.contains(&Kind::Closed), excused || node == 1, "{node} {from}: {found:?}");
        }
    }

    #[test]
    fn an_ack_of_a_minority_is_found() {
        let mut evidence = sound();
        evidence.records[0]
            .events
            .push((at(10_000), Event::Acked { id: "alice-0".to_owned(), timestamp: 1_000 }));
        for (from, found) in [(9_000, false), (5_000, true)] {
            let mut ledger = Ledger::default();
            ledger.begin(at(from), 0, Trouble::Alone);
            assert_eq!(kinds(&evidence, &ledger).contains(&Kind::MinorityAck), found);
            ledger.end(at(9_500), 0, &[Trouble::Alone]);
            assert!(!kinds(&evidence, &ledger).contains(&Kind::MinorityAck));
        }
    }

    #[test]
    fn a_gap_that_was_told_is_no_loss() {
        let mut evidence = sound();
        let bob = &mut evidence.records[1].events;
        bob.retain(|(_, event)| *event != Event::Shown(said(1)));
        let place = bob.iter().position(|(_, event)| *event == Event::Shown(said(2))).unwrap();
        bob.insert(place, (at(25), Event::Gap));
        bob.insert(place, (at(25), Event::Came { node: 0, since: Some(1_000) }));
        assert_eq!(kinds(&evidence, &Ledger::default()), BTreeSet::new());
    }
}
