//! What a cluster does by itself: it is founded when its first members have met, a node that lost its data is replaced by
//! what it came back as, and leads are spread evenly.
//!
//! Founding, given that every member knows the names of all initial members:
//! 1. All are linked and none has a past: the first by name makes the group `meta` of all their incarnations. A past is
//!    whatever `meta` left on disk, so this happens once.
//! 2. The leader of `meta` writes the charter: the cluster's id and secret, and its founders.
//! 3. Every founder that reads the charter makes the shards' groups it belongs to, if they are not yet made. All make
//!    them of the same founders, so it does not matter who is first.
//!
//! Replacement: the leader of a group sees a node linked whose name is a voter's and whose incarnation is not. It teaches
//! the new incarnation all there is, and then makes it a voter in place of the old.

use super::group::Group;
use super::node::{Consensus, Directory, Peer};
use super::placement;
use super::types::{Charter, Command, GroupId, Incarnation, Member};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How often a cluster that is not whole yet is looked after.
const SOON: Duration = Duration::from_millis(100);

/// How often a cluster that is.
const CALM: Duration = Duration::from_secs(1);

/// Groups that are taught to a new replica at the same time.
const TEACHING_MAX: usize = 2;

/// A node is given leads once it has been there for so long.
const SETTLED: Duration = Duration::from_secs(3);

/// Entries that the next leader may lack when it is given the lead.
const SUCCESSOR_LAG_MAX: u64 = 64;

/// Looks after the cluster for as long as `consensus` lives.
pub(super) async fn tend(consensus: Weak<Consensus>, directory: Directory) {
    let mut tender = Tender {
        teaching: Arc::new(Semaphore::new(TEACHING_MAX)),
        taught: BTreeMap::new(),
        seen_since: HashMap::new(),
        waiting_told: false,
    };
    loop {
        let Some(consensus) = consensus.upgrade() else { return };
        let peers = directory();
        let whole = tender.step(&consensus, &peers).await;
        drop(consensus);
        tokio::time::sleep(if whole { CALM } else { SOON }).await;
    }
}

struct Tender {
    teaching: Arc<Semaphore>,
    /// Replacements under way, by group.
    taught: BTreeMap<GroupId, tokio::task::JoinHandle<()>>,
    seen_since: HashMap<(String, Incarnation), Instant>,
    waiting_told: bool,
}

impl Tender {
    /// Does what can be done now; whether the cluster was found whole.
    async fn step(&mut self, consensus: &Arc<Consensus>, peers: &[Peer]) -> bool {
        self.seen_since.retain(|(name, incarnation), _| {
            peers.iter().any(|peer| peer.name == *name && peer.incarnation == *incarnation)
        });
        for peer in peers {
            self.seen_since.entry((peer.name.clone(), peer.incarnation)).or_insert_with(Instant::now);
        }
        self.taught.retain(|_, task| !task.is_finished());
        let charter = consensus.charter().borrow().clone();
        let Some(charter) = charter else {
            self.found(consensus, peers).await;
            return false;
        };
        let made = make_groups(consensus, &charter).await;
        for group in consensus.groups.values() {
            stand_alone(group, consensus.incarnation).await;
            if group.raft().as_leader().is_ok() {
                self.replace(consensus, group, peers);
                if !self.taught.contains_key(&group.id) {
                    forget_strays(group, peers).await;
                    self.balance(consensus, group, peers).await;
                }
            }
        }
        self.write_replacements(consensus, &charter, peers).await;
        made && self.taught.is_empty()
    }

    async fn found(&mut self, consensus: &Arc<Consensus>, peers: &[Peer]) {
        let Some(meta) = consensus.groups.get(&GroupId::META) else { return };
        if !meta.is_blank() {
            stand_alone(meta, consensus.incarnation).await;
            if meta.raft().as_leader().is_ok() {
                write_charter(consensus, meta).await;
            }
            return;
        }
        let settings = &consensus.settings;
        let linked = |name: &String| peers.iter().find(|peer| peer.name == *name);
        if let Some(peer) = peers.iter().find(|peer| peer.has_past) {
            if !std::mem::replace(&mut self.waiting_told, true) {
                info!(node = peer.name, "this node has no data; it waits for its cluster to teach it");
            }
            return;
        }
        if !settings.peers.iter().all(|name| linked(name).is_some())
            || settings.peers.iter().any(|name| *name < settings.name)
        {
            return;
        }
        let mut members: BTreeMap<Incarnation, Member> = peers
            .iter()
            .filter(|peer| settings.peers.contains(&peer.name))
            .map(|peer| (peer.incarnation, Member { name: peer.name.clone() }))
            .collect();
        members.insert(consensus.incarnation, Member { name: settings.name.clone() });
        info!(members = members.len(), "all members have met: the cluster is founded");
        initialize(meta, members).await;
    }

    /// Writes the incarnations of nodes that came back without their past into the charter.
    async fn write_replacements(&self, consensus: &Arc<Consensus>, charter: &Charter, peers: &[Peer]) {
        let Some(meta) = consensus.groups.get(&GroupId::META) else { return };
        if meta.raft().as_leader().is_err() {
            return;
        }
        for Peer { name, incarnation, .. } in peers {
            if charter.members.get(name).is_some_and(|known| known != incarnation) {
                let command = Command::Replace { name: name.clone(), incarnation: *incarnation };
                if let Err(error) = meta.raft().client_write(command).await {
                    debug!(%error, "a replacement could not be written now");
                }
            }
        }
    }

    /// Puts a linked node's new incarnation in place of the one that the group still believes in.
    fn replace(&mut self, consensus: &Arc<Consensus>, group: &Group, peers: &[Peer]) {
        if self.taught.contains_key(&group.id) {
            return;
        }
        let voters = voters_of(group);
        for Peer { name, incarnation, .. } in peers {
            let old =
                voters.iter().find(|(id, voter)| *voter == name && *id != incarnation).map(|(id, _)| *id);
            let Some(old) = old else { continue };
            let (consensus, id) = (Arc::clone(consensus), group.id);
            let (name, new) = (name.clone(), *incarnation);
            let teaching = Arc::clone(&self.teaching);
            let task = tokio::spawn(async move {
                let Ok(_permit) = teaching.acquire().await else { return };
                let Some(group) = consensus.groups.get(&id) else { return };
                if let Err(error) = teach(group, old, new, &name).await {
                    warn!(group = %id, node = name, error, "a replica could not be replaced yet; it is tried again");
                }
            });
            self.taught.insert(group.id, task);
            return;
        }
    }

    /// Gives the group to the node whose turn it is, once that one has settled.
    async fn balance(&self, consensus: &Arc<Consensus>, group: &Group, peers: &[Peer]) {
        let voters = voters_of(group);
        let mut names: Vec<&str> = voters.values().map(String::as_str).collect();
        names.sort_unstable();
        let Some(preferred) = placement::preferred_leader(group.id, &names) else { return };
        if preferred == consensus.settings.name {
            return;
        }
        let settled = peers.iter().find(|peer| {
            peer.name == preferred
                && !peer.leaving
                && peer.sees_all
                && voters.contains_key(&peer.incarnation)
                && self
                    .seen_since
                    .get(&(peer.name.clone(), peer.incarnation))
                    .is_some_and(|since| since.elapsed() >= SETTLED)
        });
        if let Some(peer) = settled
            && is_up_to_date(group, peer.incarnation)
            && group.lead().borrow().is_some()
        {
            debug!(group = %group.id, to = preferred, "the lead is handed on");
            group.give_lead_to(peer.incarnation).await;
        }
    }
}

/// A group whose only voter is this node need not wait for anybody's silence.
async fn stand_alone(group: &Group, incarnation: Incarnation) {
    let alone = {
        let metrics = group.raft().metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics.membership_config.voter_ids();
        metrics.current_leader.is_none() && voters.next() == Some(incarnation) && voters.next().is_none()
    };
    if alone {
        let _ = group.raft().trigger().elect(false).await;
    }
}

async fn write_charter(consensus: &Arc<Consensus>, meta: &Group) {
    let mut id = [0; 16];
    if let Err(error) = getrandom::fill(&mut id) {
        warn!(%error, "the system gives no random bytes; the cluster cannot be founded yet");
        return;
    }
    let founders: BTreeMap<String, Incarnation> =
        voters_of(meta).into_iter().map(|(incarnation, name)| (name, incarnation)).collect();
    let charter = Charter {
        cluster_id: u128::from_be_bytes(id),
        secret: consensus.secret_to_propose,
        members: founders.clone(),
        founders,
    };
    if let Err(error) = meta.raft().client_write(Command::Found(charter)).await {
        debug!(%error, "the charter could not be written now");
    }
}

/// Makes the groups that a founder belongs to; whether none is left to make.
async fn make_groups(consensus: &Arc<Consensus>, charter: &Charter) -> bool {
    let settings = &consensus.settings;
    if charter.founders.get(&settings.name) != Some(&consensus.incarnation) {
        return true;
    }
    let mut made = true;
    for group in consensus.groups.values().filter(|group| group.is_blank()) {
        let names = charter.founders.keys().map(String::as_str);
        let voters = placement::voters(group.id, names, usize::from(settings.replicas));
        if !voters.contains(&settings.name.as_str()) {
            continue;
        }
        made = false;
        let members = voters
            .into_iter()
            .filter_map(|name| Some((*charter.founders.get(name)?, Member { name: name.to_owned() })))
            .collect();
        initialize(group, members).await;
    }
    made
}

async fn initialize(group: &Group, members: BTreeMap<Incarnation, Member>) {
    if let Err(error) = group.raft().initialize(members).await {
        // Another member was faster, and this one has heard of it meanwhile.
        debug!(group = %group.id, %error, "the group is made already");
    }
}

/// Teaches `new` everything, and lets it vote in place of `old`.
async fn teach(group: &Group, old: Incarnation, new: Incarnation, name: &str) -> Result<(), String> {
    let raft = group.raft();
    info!(group = %group.id, node = name, "a replica that lost its data is taught anew");
    raft.add_learner(new, Member { name: name.to_owned() }, true).await.map_err(|error| error.to_string())?;
    let change = ChangeMembers::Batch(vec![
        ChangeMembers::AddVoterIds(BTreeSet::from([new])),
        ChangeMembers::RemoveVoters(BTreeSet::from([old])),
    ]);
    raft.change_membership(change, false).await.map_err(|error| error.to_string())?;
    info!(group = %group.id, node = name, "a replica is whole again");
    Ok(())
}

/// Lets go of incarnations that a replacement which was interrupted has left behind as learners.
async fn forget_strays(group: &Group, peers: &[Peer]) {
    let strays: BTreeSet<Incarnation> = {
        let metrics = group.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let replaced = |id, name: &str| peers.iter().any(|peer| peer.name == name && peer.incarnation != id);
        let learners = membership.learner_ids();
        learners
            .filter(|id| membership.get_node(id).is_some_and(|member| replaced(*id, &member.name)))
            .collect()
    };
    if !strays.is_empty()
        && let Err(error) = group.raft().change_membership(ChangeMembers::RemoveNodes(strays), false).await
    {
        debug!(group = %group.id, %error, "a stray learner could not be let go of now");
    }
}

/// The group's voters and their names.
fn voters_of(group: &Group) -> BTreeMap<Incarnation, String> {
    let metrics = group.raft().metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    membership.voter_ids().filter_map(|id| Some((id, membership.get_node(&id)?.name.clone()))).collect()
}

/// Whether a follower lacks hardly anything.
fn is_up_to_date(group: &Group, follower: Incarnation) -> bool {
    let metrics = group.raft().metrics();
    let metrics = metrics.borrow_watched();
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&follower)?.as_ref());
    matched.is_some_and(|matched| matched.index + SUCCESSOR_LAG_MAX >= last)
}

/// Who could lead `group` after this node: of the linked voters that reach everyone the most advanced.
pub(super) fn successor(group: &Group, incarnation: Incarnation, peers: &[Peer]) -> Option<Incarnation> {
    if group.raft().as_leader().is_err() {
        return None;
    }
    let voters = voters_of(group);
    let metrics = group.raft().metrics();
    let metrics = metrics.borrow_watched();
    let replication = metrics.replication.as_ref()?;
    let matched = |id| replication.get(id).and_then(|matched| matched.as_ref().map(|id| id.index));
    peers
        .iter()
        .filter(|peer| !peer.leaving && voters.contains_key(&peer.incarnation))
        .filter(|peer| peer.incarnation != incarnation)
        .max_by_key(|peer| (peer.sees_all, matched(&peer.incarnation)))
        .map(|peer| peer.incarnation)
}
