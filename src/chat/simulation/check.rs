//! What has to be true of the simulation in the end.

use super::{Client, World};
use crate::chat::room::Room;
use crate::protocol::message::Message;
use crate::protocol::names::MessageId;
use crate::protocol::{BACKLOG_DEFAULT, BACKLOG_MAX, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

impl World {
    /// Whether every promise was kept, once things have come to rest.
    pub(super) fn check(&self) {
        self.check_history();
        let present: BTreeMap<&str, usize> =
            self.clients.values().filter(|client| !client.gone).fold(BTreeMap::new(), |mut names, client| {
                *names.entry(client.name.as_str()).or_default() += 1;
                names
            });
        for client in self.clients.values().filter(|client| !client.gone) {
            self.check_messages(client);
            self.check_arrival(client);
            assert_eq!(roster(&client.frames), present, "{}'s roster", client.name);
            if !self.failed {
                self.check_nobody_flickers(client);
            }
            assert_eq!(client.settled, client.said, "{}: everything said is settled", client.name);
        }
        if present.is_empty() {
            let idle = self.room.as_ref().is_none_or(Room::is_idle);
            assert!(idle, "an empty room may be closed: {:?}\n{:?}", self.room, self.audiences);
        }
    }

    fn check_history(&self) {
        assert!(self.history.is_sorted_by(|a, b| a.timestamp < b.timestamp), "timestamps strictly increase");
        let ids: BTreeSet<&MessageId> = self.history.iter().map(|message| &message.id).collect();
        assert_eq!(ids.len(), self.history.len(), "no message is there twice");
        let by_id: HashMap<&str, &Message> =
            self.history.iter().filter_map(|message| Some((message.id.client()?, message))).collect();
        for frame in self.clients.values().flat_map(|client| &client.frames) {
            if let Some(id) = frame["ack"].as_str() {
                let message = by_id.get(id).unwrap_or_else(|| panic!("acknowledged {id} is lost"));
                assert_eq!(frame["timestamp"], message.timestamp, "the ack's timestamp is the message's");
            }
        }
    }

    /// A client has seen its backlog and everything since, in the history's order, nothing twice.
    fn check_messages(&self, client: &Client) {
        let seen: Vec<&Value> = client.frames.iter().filter(|frame| frame["message"].is_string()).collect();
        let start = match (client.since, seen.first()) {
            (Some(since), _) => {
                let wanted = self.history.partition_point(|message| message.timestamp <= since);
                let gap = client.frames.iter().any(|frame| frame["gap"] == true);
                let first = seen.first().map_or(Timestamp::MAX, |frame| frame["timestamp"].as_u64().unwrap());
                if gap { self.history.partition_point(|message| message.timestamp < first) } else { wanted }
            }
            (None, Some(first)) => {
                let first = first["timestamp"].as_u64().unwrap();
                self.history.partition_point(|message| message.timestamp < first)
            }
            (None, None) => self.history.len(),
        };
        let expected: Vec<Value> = self.history[start..].iter().map(as_json).collect();
        assert_eq!(seen, expected.iter().collect::<Vec<_>>(), "{}'s view", client.name);
        if client.since.is_some() {
            return;
        }
        assert!(
            expected.len() >= self.history.len().min(BACKLOG_DEFAULT),
            "{}'s backlog is short",
            client.name
        );
        if let Some((came_at, on_its_way)) = client.came_at {
            // A hundred from before it came, or all there were, and everything since. What was on its way then may have
            // counted among the hundred, and got a later place in the end.
            let before = self.history.partition_point(|message| message.timestamp <= came_at);
            let since = self.history.len() - before;
            let due = before.min(BACKLOG_DEFAULT).min(BACKLOG_MAX.saturating_sub(since));
            let due = due.saturating_sub(on_its_way);
            let shown_before = expected.len().saturating_sub(since);
            assert!(shown_before >= due, "{}: {shown_before} of {due} from before", client.name);
        }
    }

    /// Whoever is seen to leave has left: names are unique here.
    fn check_nobody_flickers(&self, client: &Client) {
        for quit in client.frames.iter().filter_map(|frame| frame["quit"].as_str()) {
            let who = self.clients.values().find(|other| other.name == quit);
            assert!(
                who.is_some_and(|who| who.gone || self.half_in.contains(&who.name)),
                "{} saw {quit} leave, who is still there",
                client.name
            );
        }
    }

    /// Roster, backlog, own arrival, ready; `ready` once and nothing but acks of others' doing in between.
    fn check_arrival(&self, client: &Client) {
        let ready = client.frames.iter().position(|frame| frame["ready"] == true);
        let ready = ready.unwrap_or_else(|| panic!("{} is never ready", client.name));
        assert_eq!(client.frames.iter().filter(|frame| frame["ready"] == true).count(), 1);
        let own = client.frames.iter().position(|frame| frame["joined"] == client.name.as_str());
        assert!(own.is_some_and(|own| own < ready), "{}'s own arrival comes before ready", client.name);
        let first_message = client.frames.iter().position(|frame| frame["message"].is_string());
        let last_of_roster = client.frames.iter().take_while(|frame| frame["joined"].is_string()).count();
        assert!(first_message.is_none_or(|first| first >= last_of_roster), "the roster comes first");
    }
}

fn roster(frames: &[Value]) -> BTreeMap<&str, usize> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for frame in frames {
        if let Some(name) = frame["joined"].as_str() {
            *names.entry(name).or_default() += 1;
        } else if let Some(name) = frame["quit"].as_str() {
            *names.get_mut(name).expect("nobody quits who was not there") -= 1;
        }
    }
    names.retain(|_, count| *count > 0);
    names
}

fn as_json(message: &Message) -> Value {
    serde_json::to_value(message.as_chat()).unwrap()
}
