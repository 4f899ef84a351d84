//! One group on this node: what it is asked to keep, and whether this node leads it.

use super::log::LogStore;
use super::machine::StateMachine;
use super::transport::Network;
use super::types::{Append, Callback, Command, GroupId, Incarnation, Types};
use crate::metrics::Metrics;
use crate::planted::{Bug, is_planted};
use crate::protocol::message::Message;
use crate::protocol::names::RoomName;
use openraft::alias::CommittedLeaderIdOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::{Config, Instant, Raft, ReadPolicy, ServerState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info};

/// How often a leader tells its followers that it is there.
pub const HEARTBEAT_MS: u64 = 100;

/// How long a leader waits for the answer to one beat before it lets go of it. A follower answers when what it has got
/// before is on disk, which takes longer than the next beat when much is said.
const ANSWER_MS: u64 = 200;

/// The least time without a word from the leader after which a follower stands for election.
pub const ELECTION_MIN_MS: u64 = 300;

/// The most; for so long after a leader's word followers elect no other.
pub const ELECTION_MAX_MS: u64 = 600;

/// A leader speaks only for so long after a majority last confirmed it: what followers grant, less a margin for clocks
/// that run at different speeds and for the way from the check to the sockets.
const LEASE: Duration = Duration::from_millis(ELECTION_MAX_MS - 150);

/// A leader that has been without its lease for so long stands aside: its rooms are closed, and those who speak in them
/// are told so, rather than left waiting.
const STAND_ASIDE: Duration = Duration::from_millis(1500);

/// How often a leader looks after its lease.
const WATCH: Duration = Duration::from_millis(250);

/// And while it does not lead yet, though it was elected.
const WATCH_CLOSELY: Duration = Duration::from_millis(10);

/// A lead that is being given away is taken back when nobody has taken it for so long.
const GIVEN_FOR: Duration = Duration::from_secs(2);

/// Before a lead is given away, what is on its way is waited for, for so long at most.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);

/// How often it is looked whether that has happened.
const SETTLED_POLL: Duration = Duration::from_millis(5);

/// Messages of a group that may be on their way into its log; beyond it, rooms refuse more.
const PROPOSED_MAX: usize = 16 * 1024;

/// Most messages in one entry, and most bytes of their texts: entries must be small beside a frame.
const ENTRY_MESSAGES_MAX: usize = 1024;
const ENTRY_BYTES_MAX: usize = 48 * 1024;

/// Why a message was not kept, or it is not known whether it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads, or soon will: its rooms decide.
    #[error("this node does not lead the shard any more")]
    NotLeader,
    /// The store has failed, or the node is stopping.
    #[error("the store has failed")]
    Failed,
}

/// Called once, when the outcome is known.
pub type Done = Box<dyn FnOnce(Result<(), ProposeError>) + Send>;

/// This node's turn at leading a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lead {
    id: CommittedLeaderIdOf<Types>,
    /// The term: later leaders have higher ones.
    pub term: u64,
}

/// The turn at leading that is being given away, and until when: nothing is said in it any more.
#[derive(Default)]
struct Given {
    lead: Mutex<Option<(Lead, std::time::Instant)>>,
    changed: Notify,
}

impl Given {
    fn set(&self, lead: Lead) {
        let until = std::time::Instant::now() + GIVEN_FOR;
        *self.lead.lock().unwrap_or_else(PoisonError::into_inner) = Some((lead, until));
        self.changed.notify_one();
    }

    fn is(&self, lead: Lead) -> bool {
        let given = *self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        given.is_some_and(|(given, until)| given == lead && std::time::Instant::now() < until)
    }
}

struct Proposal {
    lead: Lead,
    append: Append,
    done: Done,
}

/// A group on this node.
pub struct Group {
    /// Which.
    pub id: GroupId,
    raft: Raft<Types, StateMachine>,
    log: LogStore,
    proposals: mpsc::UnboundedSender<Proposal>,
    /// Messages that were proposed and whose outcome is not known.
    proposed: Arc<AtomicUsize>,
    /// Proposals, empty ones too, whose outcome is not known.
    open: Arc<AtomicUsize>,
    lead: watch::Receiver<Option<Lead>>,
    given: Arc<Given>,
    tasks: [JoinHandle<()>; 2],
}

/// The configuration of every group. `kept_entries` stay in the log although their effects are in the state: who was
/// away for less catches up from the log, who was away for longer gets a copy. A node that is `alone` has nobody to beat
/// for and nobody's silence to wait for: its groups need no clock, and cost nothing while nothing is said.
pub(super) fn config(kept_entries: u64, alone: bool) -> Result<Arc<Config>, openraft::ConfigError> {
    let config = Config {
        cluster_name: "parley".to_owned(),
        // Not the beats themselves, which this node sends for all its groups at once, but what openraft derives from it:
        // how often a group looks at the time, and how long it waits for an answer to a beat.
        enable_heartbeat: false,
        heartbeat_interval: ANSWER_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        enable_pre_vote: Some(true),
        enable_tick: !alone,
        max_payload_entries: 256,
        // Building one costs nothing; it only marks how much of the log may go.
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(kept_entries.div_ceil(10)),
        max_in_snapshot_log_to_keep: kept_entries,
        purge_batch_size: kept_entries.div_ceil(20),
        replication_lag_threshold: 100_000,
        install_snapshot_timeout: 600_000,
        backoff: "100ms".to_owned(),
        // A node that was restarted stands for election like any other: a new process, a new term.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

impl Group {
    pub(super) async fn start(
        id: GroupId,
        incarnation: Incarnation,
        config: Arc<Config>,
        network: Network,
        log: LogStore,
        machine: StateMachine,
        metrics: Arc<Metrics>,
    ) -> Result<Self, openraft::errors::Fatal<Types>> {
        let raft = Raft::new(incarnation, config, network, log.clone(), machine).await?;
        let (proposals, queue) = mpsc::unbounded_channel();
        let (proposed, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (lead_sender, lead) = watch::channel(None);
        let proposer = tokio::spawn(propose_all(raft.clone(), queue));
        let given = Arc::new(Given::default());
        let watcher = tokio::spawn(watch_lead(id, raft.clone(), lead_sender, Arc::clone(&given), metrics));
        Ok(Self { id, raft, log, proposals, proposed, open, lead, given, tasks: [proposer, watcher] })
    }

    /// Raft itself.
    #[must_use]
    pub fn raft(&self) -> &Raft<Types, StateMachine> {
        &self.raft
    }

    /// Whether the group has never heard of anything on this node.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.log.is_blank()
    }

    /// This node's turn at leading, whenever it begins and ends. It begins once everything that earlier leaders may
    /// have acknowledged is in the state here.
    #[must_use]
    pub fn lead(&self) -> watch::Receiver<Option<Lead>> {
        self.lead.clone()
    }

    /// Whether `lead` is certainly still on: no other node can have been elected by now.
    #[must_use]
    pub fn holds_lease(&self, lead: Lead) -> bool {
        lease(&self.raft, LEASE).is_some_and(|held| held == lead) && !self.given.is(lead)
    }

    /// Gives this node's lead to another voter, if it has it. The rooms fall silent first, and what they have said is
    /// agreed upon: whoever leads next has all of it in the history, even if it does not reach all who heard it.
    pub async fn give_lead_to(&self, successor: Incarnation) {
        let mut lead = self.lead();
        let ours = *lead.borrow();
        if let Some(ours) = ours {
            self.given.set(ours);
            let settled = async {
                // The rooms are told; their last words are in the queue then.
                let _ = lead.wait_for(Option::is_none).await;
                tokio::time::sleep(SETTLED_POLL).await;
                while self.open.load(Ordering::Acquire) > 0 {
                    tokio::time::sleep(SETTLED_POLL).await;
                }
            };
            let _ = tokio::time::timeout(SETTLES_WITHIN, settled).await;
        }
        // A group that has stopped has nothing to give away.
        let _ = self.raft.trigger().transfer_leader(successor).await;
    }

    /// Whether so much is on its way that rooms should refuse more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.proposed.load(Ordering::Relaxed) >= PROPOSED_MAX
    }

    /// Keeps `messages` of one room, in order and after everything proposed before, if `lead` is still on. Without
    /// messages it only waits for what came before.
    pub fn propose(&self, lead: Lead, room: RoomName, messages: Vec<Message>, done: Done) {
        if messages.is_empty() && self.open.load(Ordering::Acquire) == 0 {
            return done(Ok(()));
        }
        let count = messages.len();
        self.proposed.fetch_add(count, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::AcqRel);
        let (proposed, open) = (Arc::clone(&self.proposed), Arc::clone(&self.open));
        let done: Done = Box::new(move |outcome| {
            proposed.fetch_sub(count, Ordering::Relaxed);
            open.fetch_sub(1, Ordering::AcqRel);
            done(outcome);
        });
        let proposal = Proposal { lead, append: Append { room, messages }, done };
        if let Err(unsent) = self.proposals.send(proposal) {
            (unsent.0.done)(Err(ProposeError::Failed));
        }
    }

    /// Tells the followers, if this node leads, that it is there.
    pub(super) async fn beat(&self) {
        if self.raft.as_leader().is_ok() {
            // A group that has stopped beats no more.
            let _ = self.raft.trigger().heartbeat().await;
        }
    }

    /// Stops the group on this node.
    pub async fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Err(error) = self.raft.shutdown().await {
            debug!(group = %self.id, %error, "a group did not end well");
        }
    }
}

/// Makes entries of proposals: as few as possible, in order.
async fn propose_all(raft: Raft<Types, StateMachine>, mut queue: mpsc::UnboundedReceiver<Proposal>) {
    let mut next = queue.recv().await;
    while let Some(Proposal { lead, append, done }) = next.take() {
        let (mut messages, mut bytes) = (append.messages.len(), size(&append));
        let (mut appends, mut dones) = (vec![append], vec![done]);
        while messages < ENTRY_MESSAGES_MAX && bytes < ENTRY_BYTES_MAX {
            let Ok(proposal) = queue.try_recv() else { break };
            if proposal.lead != lead {
                next = Some(proposal);
                break;
            }
            messages += proposal.append.messages.len();
            bytes += size(&proposal.append);
            appends.push(proposal.append);
            dones.push(proposal.done);
        }
        appends.retain(|append| !append.messages.is_empty());
        let respond = Callback::new(move |outcome| {
            let outcome = match outcome {
                Some(Ok(_)) => Ok(()),
                Some(Err(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_))) => {
                    Err(ProposeError::NotLeader)
                }
                Some(Err(_)) | None => Err(ProposeError::Failed),
            };
            for done in dones {
                done(outcome);
            }
        });
        // A group that has stopped drops the callback, which then says so.
        let _ = raft.write(Command::Append(appends)).with_leader(lead.id).responder(respond).await;
        if next.is_none() {
            next = queue.recv().await;
        }
    }
}

fn size(append: &Append) -> usize {
    append.messages.iter().map(|message| message.text.len() + message.name.len() + 64).sum()
}

/// This node's lead, if a majority confirmed it within `within`.
fn lease(raft: &Raft<Types, StateMachine>, within: Duration) -> Option<Lead> {
    let leader = raft.as_leader().ok()?;
    // A leader that is its own majority has no rivals.
    let confirmed = leader.last_quorum_acked().is_some_and(|acked| acked.elapsed() < within)
        || is_alone(raft)
        || is_planted(Bug::NoLease);
    let id = leader.to_committed_leader_id();
    confirmed.then_some(Lead { id, term: leader.leader_id().term })
}

fn is_alone(raft: &Raft<Types, StateMachine>) -> bool {
    raft.voter_ids().take(2).count() == 1
}

/// Says when this node begins and ends to lead.
async fn watch_lead(
    id: GroupId,
    raft: Raft<Types, StateMachine>,
    lead: watch::Sender<Option<Lead>>,
    given: Arc<Given>,
    metrics: Arc<Metrics>,
) {
    let mut changes = raft.server_metrics();
    loop {
        let held = lease(&raft, STAND_ASIDE).filter(|held| !given.is(*held));
        let known = *lead.borrow();
        if held != known {
            if known.is_some() {
                info!(group = %id, "this node leads no more");
                metrics.leaders.dec();
                lead.send_replace(None);
            }
            // Everything an earlier leader may have acknowledged is in the log; it must be in the state too.
            if let Some(new) = held
                && raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_ok()
                && lease(&raft, LEASE) == Some(new)
            {
                info!(group = %id, term = new.term, "this node leads");
                metrics.elections.inc();
                metrics.leaders.inc();
                lead.send_replace(Some(new));
            }
        }
        // What changes is told here a moment before `lease` can see it; and a lease runs out without anything changing.
        let leads = changes.borrow_watched().state == ServerState::Leader;
        let patience = if leads && lead.borrow().is_none() { WATCH_CLOSELY } else { WATCH };
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            () = given.changed.notified() => Ok(()),
            () = tokio::time::sleep(patience), if leads => Ok(()),
        };
        if changed.is_err() {
            // The group has stopped, because the node stops or its store has failed: its rooms still have to tell
            // those whose messages were not kept.
            return;
        }
    }
}
