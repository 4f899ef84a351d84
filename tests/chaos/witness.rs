//! Somebody in a room who writes down everything: what was shown, acknowledged and refused, where and when. Judges
//! nothing: that is for the checker, afterwards.
//!
//! Behaves as a page does: comes back with the last timestamp seen, to the next node, and says again under the same id
//! what was not acknowledged.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::ledger::{Clock, Moment};
use crate::support::{Client, Frame, Opening, Said, room_path};

/// Messages that a witness leaves unacknowledged at most.
const WINDOW: usize = 40;

/// How long a witness waits for a node to let it in before it tries the next.
const ENTRY_MAX: Duration = Duration::from_secs(4);

/// Between two attempts to get in anywhere.
const KNOCK_EVERY: Duration = Duration::from_millis(100);

/// Longest that a witness waits before it says something again, whatever it was told.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What happened to a witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It gave its name to this node, and has seen everything up to `since`.
    Came {
        node: usize,
        since: Option<u64>,
    },
    /// It is in.
    Ready,
    /// It was told that something was left out.
    Gap,
    Joined(String),
    Quit(String),
    Shown(Said),
    Acked {
        id: String,
        timestamp: u64,
    },
    /// A message may be said again later.
    Refused {
        id: String,
    },
    /// Something that no witness should ever be told.
    Strange(String),
    /// The session ended, with this close code if there was one.
    Ended(Option<u16>),
}

/// A witness's account.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) room: String,
    pub(crate) speaks: bool,
    /// Id and text of everything said, in order.
    pub(crate) said: Vec<(String, String)>,
    pub(crate) events: Vec<(Moment, Event)>,
    pub(crate) acked: usize,
    /// Who is there now, sorted.
    pub(crate) roster: Vec<String>,
    pub(crate) present: bool,
    pub(crate) last_seen: Option<u64>,
    open: VecDeque<Open>,
}

impl Record {
    /// Nothing happened yet.
    pub(crate) fn of(name: &str, room: &str) -> Self {
        Self { name: name.to_owned(), room: room.to_owned(), ..Self::default() }
    }

    /// Whether everything said was acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }
}

/// Something said and not acknowledged.
#[derive(Clone, Debug)]
struct Open {
    id: String,
    text: String,
    /// When to say it again; `None` while an answer is awaited.
    again_at: Option<Moment>,
}

/// What a witness is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Chat,
    /// Read nothing.
    Doze,
    /// Say nothing new.
    Hush,
    Leave,
}

/// How a witness behaves.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    pub(crate) name: String,
    pub(crate) room: String,
    /// Nodes and their addresses, tried in turn.
    pub(crate) homes: Vec<(usize, SocketAddr)>,
    /// How often it says something.
    pub(crate) says_every: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Witness {
    record: Arc<Mutex<Record>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Sends somebody in.
    pub(crate) fn send(clock: Clock, habits: Habits) -> Self {
        let speaks = habits.says_every.is_some();
        let record = Record { speaks, ..Record::of(&habits.name, &habits.room) };
        let record = Arc::new(Mutex::new(record));
        let (wish, watched) = watch::channel(Wish::Chat);
        let life = Life { clock, habits, record: Arc::clone(&record), wish: watched };
        Self { record, wish, task: tokio::spawn(life.live()) }
    }

    /// The account so far.
    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wish(&self, wish: Wish) {
        self.wish.send_replace(wish);
    }

    /// Leaves, whatever is open, and returns the account.
    pub(crate) async fn leave(self) -> Record {
        self.wish.send_replace(Wish::Leave);
        let mut task = self.task;
        if tokio::time::timeout(ENTRY_MAX * 2, &mut task).await.is_err() {
            task.abort();
        }
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.clone()
    }
}

/// The task that is the witness.
struct Life {
    clock: Clock,
    habits: Habits,
    record: Arc<Mutex<Record>>,
    wish: watch::Receiver<Wish>,
}

impl Life {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn live(mut self) {
        let mut visits = 0;
        while *self.wish.borrow() != Wish::Leave {
            let (node, home) = self.habits.homes[visits % self.habits.homes.len()];
            visits += 1;
            let entering = tokio::time::timeout(ENTRY_MAX, self.enter(node, home)).await;
            let Some(mut client) = entering.ok().flatten() else {
                tokio::time::sleep(KNOCK_EVERY).await;
                continue;
            };
            if self.chat(&mut client).await {
                client.leave().await;
            }
            self.record().present = false;
        }
    }

    async fn enter(&self, node: usize, home: SocketAddr) -> Option<Client> {
        let since = self.record().last_seen;
        // A small buffer, so that a node soon notices who does not read.
        let opening = Opening { since, receive_buffer: Some(16 * 1024), ..Opening::default() };
        let mut client = Client::try_open(home, &room_path(&self.habits.room), &opening).await.ok()?;
        client.try_send(Message::text(json!({ "name": self.habits.name }).to_string())).await.ok()?;
        self.note(Event::Came { node, since });
        self.record().roster.clear();
        loop {
            match client.read().await {
                Frame::Ready => {
                    self.note(Event::Ready);
                    self.record().present = true;
                    return Some(client);
                }
                Frame::Close(code) => {
                    self.note(Event::Ended(code));
                    return None;
                }
                Frame::Lost => {
                    self.note(Event::Ended(None));
                    return None;
                }
                frame => self.hear(frame),
            }
        }
    }

    /// Chats until the session ends (`false`) or it is time to leave (`true`).
    async fn chat(&mut self, client: &mut Client) -> bool {
        let mut ticks = tokio::time::interval(self.habits.says_every.unwrap_or(RETRY_MAX / 10));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut code = None;
        let now = self.clock.now();
        // Everything that is open goes out again, in its order.
        self.record().open.iter_mut().for_each(|open| open.again_at = Some(now));
        loop {
            let wish = *self.wish.borrow_and_update();
            match wish {
                Wish::Leave => return true,
                Wish::Doze => {
                    if self.wish.changed().await.is_err() {
                        return true;
                    }
                    continue;
                }
                Wish::Chat | Wish::Hush => {}
            }
            tokio::select! {
                frame = client.read() => match frame {
                    Frame::Close(with) => code = with,
                    Frame::Lost => {
                        self.note(Event::Ended(code));
                        return false;
                    }
                    frame => self.hear(frame),
                },
                _ = ticks.tick() => {
                    if self.habits.says_every.is_some() && wish == Wish::Chat {
                        self.think();
                    }
                    for (id, text) in self.due() {
                        // That the session has ended is told to who reads.
                        let frame = json!({ "message": text, "id": id }).to_string();
                        let _ = client.try_send(Message::text(frame)).await;
                    }
                }
                changed = self.wish.changed() => if changed.is_err() { return true },
            }
        }
    }

    /// Has something new to say, unless too much is unanswered.
    fn think(&self) {
        let now = self.clock.now();
        let mut record = self.record();
        if record.open.len() >= WINDOW {
            return;
        }
        let number = record.said.len();
        let (id, text) =
            (format!("{}-{number}", self.habits.name), format!("{} says {number}", self.habits.name));
        record.said.push((id.clone(), text.clone()));
        record.open.push_back(Open { id, text, again_at: Some(now) });
    }

    /// What is to be said now, for the first time or again.
    fn due(&self) -> Vec<(String, String)> {
        let now = self.clock.now();
        let mut record = self.record();
        let due = record.open.iter_mut().filter(|open| open.again_at.is_some_and(|at| at <= now));
        due.map(|open| {
            open.again_at = None;
            (open.id.clone(), open.text.clone())
        })
        .collect()
    }

    fn note(&self, event: Event) {
        let at = self.clock.now();
        self.record().events.push((at, event));
    }

    fn hear(&self, frame: Frame) {
        let now = self.clock.now();
        let mut record = self.record();
        let event = match frame {
            Frame::Joined(name) => {
                record.roster.push(name.clone());
                record.roster.sort_unstable();
                Event::Joined(name)
            }
            Frame::Quit(name) => {
                if let Some(place) = record.roster.iter().position(|there| *there == name) {
                    record.roster.remove(place);
                }
                Event::Quit(name)
            }
            Frame::Said(said) => {
                record.last_seen = record.last_seen.max(Some(said.timestamp));
                Event::Shown(said)
            }
            Frame::Ack { id, timestamp } => {
                let before = record.open.len();
                record.open.retain(|open| open.id != id);
                record.acked += before - record.open.len();
                Event::Acked { id, timestamp }
            }
            Frame::Error(refusal) => match (refusal.id, refusal.retry_after_ms) {
                (Some(id), Some(wait_ms)) => {
                    let again_at = now + Duration::from_millis(wait_ms).min(RETRY_MAX);
                    // A message may be acked just before its retry is refused.
                    if let Some(open) = record.open.iter_mut().find(|open| open.id == id) {
                        open.again_at = Some(again_at);
                    }
                    Event::Refused { id }
                }
                // The node's store has failed: it says so and stops, and the message goes to another.
                (Some(id), None) => Event::Refused { id },
                (None, _) => Event::Strange(refusal.text),
            },
            Frame::Gap => Event::Gap,
            Frame::Ready | Frame::Pong(_) | Frame::Close(_) | Frame::Lost => {
                Event::Strange(format!("{frame:?}"))
            }
        };
        record.events.push((now, event));
    }
}
