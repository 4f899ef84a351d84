//! Someone who chats as a page does: stays, or comes back with the last timestamp seen, says again under the same id
//! what was not acknowledged, and keeps an account of everything shown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::cluster::Cluster;
use crate::support::{Client, Frame, Opening, SOON, Said, room_path};

/// Messages that a person leaves unacknowledged at most.
const WINDOW: usize = 40;

/// How long a person waits for a node to let it in before it tries the next.
const ENTRY_MAX: Duration = Duration::from_secs(4);

/// Between two attempts to get in anywhere.
const KNOCK_EVERY: Duration = Duration::from_millis(50);

/// Longest that a person waits before it says something again, whatever it was told.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// An acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Acked {
    pub(crate) id: String,
    pub(crate) timestamp: u64,
    pub(crate) at: Instant,
}

/// A refusal of a message that may be said again.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) said_at: Instant,
    pub(crate) at: Instant,
}

/// The end of a session that the person did not end.
#[derive(Clone, Debug)]
pub(crate) struct Parted {
    pub(crate) code: Option<u16>,
    /// How long it took until the person was `ready` again.
    pub(crate) away: Option<Duration>,
}

/// Everything that one person has seen and done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// Who is there now, as far as this person was told; sorted, one entry a session.
    pub(crate) roster: Vec<String>,
    /// Who was seen to leave, in order.
    pub(crate) quits: Vec<String>,
    /// All messages, in the order in which they were shown. Their timestamps strictly increase.
    pub(crate) shown: Vec<Said>,
    /// Id and text of everything said, in order.
    pub(crate) sent: Vec<(String, String)>,
    pub(crate) acked: Vec<Acked>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) parted: Vec<Parted>,
    present: bool,
    /// What has not been acknowledged, in the order of saying.
    open: VecDeque<Open>,
}

/// Something said and not acknowledged.
#[derive(Clone, Debug)]
struct Open {
    id: String,
    text: String,
    said_at: Instant,
    /// When to say it again.
    again_at: Option<Instant>,
}

impl Account {
    /// The longest time from `since` on without an ack, up to the last one.
    pub(crate) fn longest_silence(&self, since: Instant) -> Duration {
        let mut longest = Duration::ZERO;
        let mut last = since;
        for acked in self.acked.iter().filter(|acked| acked.at >= since) {
            longest = longest.max(acked.at - last);
            last = acked.at;
        }
        assert!(last > since, "nothing was acked since then");
        longest
    }

    /// How many of this person's own messages were shown and are not acknowledged.
    pub(crate) fn unacked(&self) -> usize {
        let shown = |open: &&Open| self.shown.iter().rev().any(|said| said.id.as_ref() == Some(&open.id));
        self.open.iter().filter(shown).count()
    }

    fn last_seen(&self) -> Option<u64> {
        self.shown.last().map(|said| said.timestamp)
    }
}

/// What a person is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Chat,
    Hush,
    Leave,
}

/// How a person behaves.
#[derive(Clone, Debug)]
struct Habits {
    name: String,
    room: String,
    homes: Vec<SocketAddr>,
    comes_back: bool,
    says_every: Option<Duration>,
}

/// A person in a room. See the module.
#[derive(Debug)]
pub(crate) struct Person {
    habits: Habits,
    /// Its node may have shown it what nobody else has ever seen.
    may_see_ghosts: bool,
    account: Arc<Mutex<Account>>,
    wish: watch::Sender<Wish>,
    task: Option<JoinHandle<()>>,
}

impl Person {
    /// Somebody who is going to be on the first of these nodes, and whose session there must never be closed.
    pub(crate) fn on(cluster: &Cluster, homes: &[usize], room: &str, name: &str) -> Self {
        Self::at(homes.iter().map(|&home| cluster.address(home)).collect(), room, name)
    }

    /// Like [`Person::on`], by the nodes' addresses.
    pub(crate) fn at(homes: Vec<SocketAddr>, room: &str, name: &str) -> Self {
        let (name, room) = (name.to_owned(), room.to_owned());
        Self {
            habits: Habits { name, room, homes, comes_back: false, says_every: None },
            may_see_ghosts: false,
            account: Arc::default(),
            wish: watch::channel(Wish::Chat).0,
            task: None,
        }
    }

    /// Comes back when the session ends, to each of its nodes in turn.
    pub(crate) fn coming_back(mut self) -> Self {
        self.habits.comes_back = true;
        self
    }

    /// Says something every so often.
    pub(crate) fn talking_every(mut self, pause_ms: u64) -> Self {
        self.habits.says_every = Some(Duration::from_millis(pause_ms));
        self
    }

    /// Is on a node that is going to die, freeze or be cut off: what that node relayed in this very moment may have
    /// reached nobody else, and is then gone, or comes again later, unless it was acknowledged.
    pub(crate) fn in_danger(mut self) -> Self {
        self.may_see_ghosts = true;
        self
    }

    /// Comes into the room and waits for `ready`.
    pub(crate) async fn come(mut self) -> Self {
        let life = Life {
            habits: self.habits.clone(),
            account: Arc::clone(&self.account),
            wish: self.wish.subscribe(),
        };
        self.task = Some(tokio::spawn(life.live()));
        self.until("it is in the room", SOON, |account| account.present).await;
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.habits.name
    }

    pub(crate) fn account(&self) -> MutexGuard<'_, Account> {
        // A failure of the task has been told, and is told again by who waits for it.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, limit: Duration, condition: impl Fn(&Account) -> bool) {
        let start = Instant::now();
        loop {
            if condition(&self.account()) {
                return;
            }
            if self.task.as_ref().is_some_and(JoinHandle::is_finished) {
                self.task.take().unwrap().await.unwrap();
                panic!("{} has left, so it is in vain to wait until {what}", self.habits.name);
            }
            if start.elapsed() > limit {
                let Account { roster, quits, shown, sent, acked, refused, parted, present, open } =
                    self.account().clone();
                panic!(
                    "{} waited {limit:?} in vain until {what}: {} shown (last {:?}), {} sent, {} acked, present: \
                     {present}, roster {roster:?}, quits {quits:?}, parted {parted:?}, last refused {:?}, open {open:?}",
                    self.habits.name,
                    shown.len(),
                    shown.last(),
                    sent.len(),
                    acked.len(),
                    refused.last(),
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until so many more messages of this person are acked.
    pub(crate) async fn until_acked(&mut self, more: usize, limit: Duration) {
        let wanted = self.account().acked.len() + more;
        self.until(&format!("{more} more messages are acked"), limit, |account| {
            account.acked.len() >= wanted
        })
        .await;
    }

    /// Waits until exactly these are in the room.
    pub(crate) async fn until_roster(&mut self, names: &[&str], limit: Duration) {
        let mut wanted = names.to_vec();
        wanted.sort_unstable();
        self.until(&format!("the roster is {wanted:?}"), limit, |account| account.roster == wanted).await;
    }

    /// Says nothing new from now on.
    pub(crate) fn hush(&self) {
        // With the account in hand, so that nobody is in the midst of thinking.
        let _account = self.account();
        self.wish.send_replace(Wish::Hush);
    }

    /// Leaves, and returns the whole account.
    pub(crate) async fn leave(mut self) -> Account {
        self.wish.send_replace(Wish::Leave);
        if let Some(task) = self.task.take() {
            let left = tokio::time::timeout(SOON + SOON, task).await;
            left.unwrap_or_else(|_| panic!("{} could not leave", self.habits.name)).unwrap();
        }
        self.account().clone()
    }

    /// Checks what was shown against the history of the room, which this person has seen from its first message on.
    fn check_shown(&self, account: &Account, history: &[Said]) {
        let name = &self.habits.name;
        let known: BTreeMap<u64, &Said> = history.iter().map(|said| (said.timestamp, said)).collect();
        let (real, ghosts): (Vec<&Said>, Vec<&Said>) =
            account.shown.iter().partition(|said| known.get(&said.timestamp) == Some(said));
        let shown: BTreeSet<u64> = real.iter().map(|said| said.timestamp).collect();
        if let Some(missed) = history.iter().find(|said| !shown.contains(&said.timestamp)) {
            panic!("{name} was never shown {missed:?}, which is in the history");
        }
        assert_eq!(real.len(), history.len(), "{name} was shown everything once");
        if self.may_see_ghosts {
            println!("{name} was shown {} messages that are not in the history", ghosts.len());
        } else {
            assert!(ghosts.is_empty(), "{name} was shown what is not in the history: {ghosts:?}");
        }
    }

    /// Checks what became of what this person said: all of it is in the history once, at the time of its ack.
    fn check_said(&self, account: &Account, history: &[Said]) {
        let name = &self.habits.name;
        let own: BTreeMap<&str, &Said> = history
            .iter()
            .filter(|said| said.name == *name)
            .filter_map(|said| Some((said.id.as_deref()?, said)))
            .collect();
        for (id, text) in &account.sent {
            let there = own.get(id.as_str()).unwrap_or_else(|| panic!("{name}: {id} is lost"));
            assert_eq!(there.text, *text, "{name}: {id} is unchanged");
        }
        assert_eq!(
            account.sent.len(),
            own.len(),
            "{name}: what was said is in the history, and nothing else"
        );
        for acked in &account.acked {
            let there = own.get(acked.id.as_str()).unwrap_or_else(|| panic!("{acked:?} is lost"));
            assert_eq!(there.timestamp, acked.timestamp, "{name}: {} has the time of its ack", acked.id);
        }
        // Only who has to say something again may be heard in another order.
        if account.refused.is_empty() && account.parted.is_empty() && !self.may_see_ghosts {
            let heard: Vec<&str> = history
                .iter()
                .filter(|said| said.name == *name)
                .filter_map(|said| said.id.as_deref())
                .collect();
            let said: Vec<&str> = account.sent.iter().map(|(id, _)| id.as_str()).collect();
            assert_eq!(heard, said, "{name} is heard in the order of speaking");
        }
    }
}

/// Ends a conversation, and checks that all that was said is in the history once, that every node tells the same
/// history, and that everyone was shown it, in its order. The room was empty before these people came. Returns the
/// history, and everyone's account.
pub(crate) async fn conclude(
    cluster: &Cluster,
    mut people: Vec<Person>,
    limit: Duration,
) -> (Vec<Said>, Vec<Account>) {
    people.iter().for_each(Person::hush);
    for person in &mut people {
        person.until("all is acked", limit, |account| account.open.is_empty()).await;
    }
    let room = people[0].habits.room.clone();
    let history = cluster.history(&room).await;
    let mut ids = BTreeSet::new();
    for said in &history {
        assert!(ids.insert((&said.name, &said.id)) || said.id.is_none(), "{said:?} is there twice");
    }
    let last = history.last().map(|said| said.timestamp);
    for person in &mut people {
        person.until("the last message is shown", limit, |account| account.last_seen() >= last).await;
    }
    let mut accounts = Vec::new();
    for person in &people {
        let account = person.account().clone();
        person.check_shown(&account, &history);
        person.check_said(&account, &history);
        accounts.push(account);
    }
    for person in people {
        person.leave().await;
    }
    (history, accounts)
}

/// The task that is the person.
struct Life {
    habits: Habits,
    account: Arc<Mutex<Account>>,
    wish: watch::Receiver<Wish>,
}

impl Life {
    async fn live(mut self) {
        let mut visits = 0;
        let mut left_at = None;
        loop {
            let mut client = self.enter(&mut visits, left_at).await;
            let Some(code) = self.chat(&mut client).await else {
                return client.leave().await;
            };
            if !self.habits.comes_back {
                client.fail(&format!("the session was closed with {code:?}, and must not have been"));
            }
            left_at = Some(Instant::now());
            let mut account = self.account.lock().unwrap();
            account.present = false;
            account.parted.push(Parted { code, away: None });
        }
    }

    /// Tries each home in turn until one lets it in.
    async fn enter(&self, visits: &mut usize, left_at: Option<Instant>) -> Client {
        let start = Instant::now();
        loop {
            let home = self.habits.homes[*visits % self.habits.homes.len()];
            *visits += 1;
            let why = match tokio::time::timeout(ENTRY_MAX, self.try_enter(home, left_at.is_some())).await {
                Ok(Ok(client)) => {
                    let mut account = self.account.lock().unwrap();
                    account.present = true;
                    if let (Some(left_at), Some(parted)) = (left_at, account.parted.last_mut()) {
                        parted.away = Some(left_at.elapsed());
                    }
                    return client;
                }
                Ok(Err(why)) => why,
                Err(_) => format!("not ready after {ENTRY_MAX:?}"),
            };
            let name = &self.habits.name;
            assert!(self.habits.comes_back || start.elapsed() < SOON, "{name} cannot get in: {why}");
            tokio::time::sleep(KNOCK_EVERY).await;
        }
    }

    async fn try_enter(&self, home: SocketAddr, again: bool) -> Result<Client, String> {
        let seen = self.account.lock().unwrap().last_seen();
        let since = if again { seen.or(Some(0)) } else { None };
        let opening = Opening { since, ..Opening::default() };
        let opened = Client::try_open(home, &room_path(&self.habits.room), &opening).await;
        let mut client = opened.map_err(|why| format!("{why:?}"))?;
        let hello = json!({ "name": self.habits.name }).to_string();
        client.try_send(Message::text(hello)).await.map_err(|error| error.to_string())?;
        self.account.lock().unwrap().roster.clear();
        loop {
            match client.read().await {
                Frame::Ready => return Ok(client),
                end @ (Frame::Close(_) | Frame::Lost) => return Err(format!("{end:?} before ready")),
                frame => self.note(&client, frame),
            }
        }
    }

    /// Chats until the session ends (with this code), or until everything is said and it is wished to leave (`None`).
    async fn chat(&mut self, client: &mut Client) -> Option<Option<u16>> {
        let mut ticks = tokio::time::interval(self.habits.says_every.unwrap_or(RETRY_MAX / 10));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut code = None;
        // Everything that is open goes out again, in its order.
        self.account.lock().unwrap().open.iter_mut().for_each(|open| open.again_at = Some(Instant::now()));
        loop {
            let wish = *self.wish.borrow_and_update();
            if wish == Wish::Leave && self.account.lock().unwrap().open.is_empty() {
                return None;
            }
            tokio::select! {
                frame = client.read() => match frame {
                    Frame::Close(with) => code = with,
                    Frame::Lost => return Some(code),
                    frame => self.note(client, frame),
                },
                _ = ticks.tick() => {
                    if self.habits.says_every.is_some() {
                        self.think();
                    }
                    for (id, text) in self.due() {
                        // That the session has ended is told to who reads.
                        let frame = json!({ "message": text, "id": id }).to_string();
                        let _ = client.try_send(Message::text(frame)).await;
                    }
                }
                changed = self.wish.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// Has something new to say, unless it is to hush or too much is unanswered.
    fn think(&self) {
        let mut account = self.account.lock().unwrap();
        if *self.wish.borrow() != Wish::Chat || account.open.len() >= WINDOW {
            return;
        }
        let number = account.sent.len();
        let (id, text) =
            (format!("{}-{number}", self.habits.name), format!("{} says {number}", self.habits.name));
        account.sent.push((id.clone(), text.clone()));
        let now = Instant::now();
        account.open.push_back(Open { id, text, said_at: now, again_at: Some(now) });
    }

    /// What is to be said now, for the first time or again.
    fn due(&self) -> Vec<(String, String)> {
        let now = Instant::now();
        let mut account = self.account.lock().unwrap();
        let due = account.open.iter_mut().filter(|open| open.again_at.is_some_and(|at| at <= now));
        due.map(|open| {
            open.again_at = None;
            open.said_at = now;
            (open.id.clone(), open.text.clone())
        })
        .collect()
    }

    /// Writes down what a frame says, and fails when it must not say that.
    fn note(&self, client: &Client, frame: Frame) {
        let mut account = self.account.lock().unwrap();
        match frame {
            Frame::Joined(name) => {
                account.roster.push(name);
                account.roster.sort_unstable();
            }
            Frame::Quit(name) => match account.roster.iter().position(|there| *there == name) {
                Some(index) => {
                    account.roster.remove(index);
                    account.quits.push(name);
                }
                None => client.fail(&format!("{name} quits, who is not in the room: {:?}", account.roster)),
            },
            Frame::Said(said) => {
                if let Some(last) = account.shown.last().filter(|last| last.timestamp >= said.timestamp) {
                    client.fail(&format!("shown {said:?} after {last:?}"));
                }
                account.shown.push(said);
            }
            Frame::Ack { id, timestamp } => {
                account.open.retain(|open| open.id != id);
                match account.acked.iter().find(|acked| acked.id == id) {
                    Some(before) if before.timestamp == timestamp => {}
                    Some(before) => client.fail(&format!("acked again with {timestamp}: {before:?}")),
                    None if account.sent.iter().any(|(sent, _)| *sent == id) => {
                        account.acked.push(Acked { id, timestamp, at: Instant::now() });
                    }
                    None => client.fail(&format!("{id} is acked and was never said")),
                }
            }
            Frame::Error(refusal) => {
                let (Some(id), Some(wait_ms)) = (refusal.id, refusal.retry_after_ms) else {
                    client
                        .fail(&format!("an error that does not say what to say again when: {}", refusal.text))
                };
                let now = Instant::now();
                // A message may be acked just before its retry is refused.
                if let Some(open) = account.open.iter_mut().find(|open| open.id == id) {
                    open.again_at = Some(now + Duration::from_millis(wait_ms).min(RETRY_MAX));
                    let said_at = open.said_at;
                    account.refused.push(Refused { said_at, at: now });
                }
            }
            Frame::Ready | Frame::Gap | Frame::Pong(_) | Frame::Close(_) | Frame::Lost => {
                client.fail(&format!("did not expect {frame:?}"));
            }
        }
    }
}
