//! A group's state: the history of a shard, or the cluster's charter.
//!
//! Applying writes rows and the applied index together, without an fsync of its own: the log has had its own, and
//! replays what a crash takes. A snapshot copies nothing either: the state only ever grows by what was agreed on, so its
//! rows, whenever they are read, are right for every later index too.

use super::log::write;
use super::types::{Charter, Command, GroupId, Types, decode, encode};
use crate::storage::keys;
use crate::storage::rows;
use crate::storage::store::Store;
use crate::storage::writer::{Change, Flush, Space, Writer};
use futures_util::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

const ROW_APPLIED: u8 = 2;
const ROW_SNAPSHOT: u8 = 3;
const ROW_CHARTER: u8 = 4;

/// Changes that are gathered before they are written.
const APPLY_CHANGES_MAX: usize = 4096;

/// What a snapshot carries beside rows, which travel on their own: the charter, in the group that has one.
pub type SnapshotData = Option<Charter>;

/// The state of one group. Clones share it.
#[derive(Clone)]
pub struct StateMachine {
    group: GroupId,
    writer: Writer,
    state: Arc<Mutex<State>>,
    charter: Arc<watch::Sender<Option<Charter>>>,
}

struct State {
    applied: Applied,
    snapshot: Option<SnapshotMetaOf<Types>>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Applied {
    last: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

/// What the cluster agreed on, by what the store holds.
pub(super) fn charter_in(store: &Store) -> io::Result<Option<Charter>> {
    let row = store.raft_row(GroupId::META.0, ROW_CHARTER).map_err(io::Error::other)?;
    row.map(|row| decode(&row)).transpose()
}

impl StateMachine {
    /// The state of `group` as the database holds it. `charter` is told what the cluster agreed on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(
        group: GroupId,
        store: &Store,
        writer: Writer,
        charter: Arc<watch::Sender<Option<Charter>>>,
    ) -> io::Result<Self> {
        let read = |kind| store.raft_row(group.0, kind).map_err(io::Error::other);
        let applied = read(ROW_APPLIED)?.map(|row| decode(&row)).transpose()?.unwrap_or_default();
        let snapshot = read(ROW_SNAPSHOT)?.map(|row| decode(&row)).transpose()?;
        if group == GroupId::META {
            charter.send_replace(charter_in(store)?);
        }
        let state = Arc::new(Mutex::new(State { applied, snapshot }));
        Ok(Self { group, writer, state, charter })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, kind: u8, value: &impl Serialize) -> Change {
        Change::Put(Space::Raft, keys::raft(self.group.0, kind), encode(value))
    }

    /// The rows that `command` makes; what it makes of the charter is in `charter`.
    fn rows_of(&self, command: Command, charter: &mut Option<Charter>, changes: &mut Vec<Change>) {
        match command {
            Command::Append(appends) => {
                if let Some(shard) = self.group.shard() {
                    for append in &appends {
                        rows::of_messages(shard, &append.room, &append.messages, changes);
                    }
                }
                return;
            }
            Command::Found(founding) => {
                charter.get_or_insert(founding);
            }
            Command::Replace { name, incarnation } => {
                if let Some(charter) = charter {
                    charter.members.insert(name, incarnation);
                }
            }
        }
        if let Some(charter) = charter {
            changes.push(self.row(ROW_CHARTER, charter));
        }
    }

    async fn commit(&self, applied: Applied, mut changes: Vec<Change>, flush: Flush) -> io::Result<()> {
        changes.push(self.row(ROW_APPLIED, &applied));
        write(&self.writer, changes, flush).await?;
        self.state().applied = applied;
        Ok(())
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let Applied { last, membership } = self.state().applied.clone();
        Ok((last, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied = self.state().applied.clone();
        let mut charter = self.charter.borrow().clone();
        let mut responders: Vec<ApplyResponder<Types>> = Vec::new();
        let mut changes = Vec::new();
        let mut next = entries.try_next().await?;
        while let Some((entry, responder)) = next {
            applied.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => self.rows_of(command, &mut charter, &mut changes),
                EntryPayload::Membership(_) => {
                    if let Some(membership) = entry.payload.get_membership() {
                        applied.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                    }
                }
            }
            responders.extend(responder);
            next = entries.try_next().await?;
            if next.is_none() || changes.len() >= APPLY_CHANGES_MAX {
                self.commit(applied.clone(), std::mem::take(&mut changes), Flush::Lazy).await?;
                if self.group == GroupId::META {
                    self.charter.send_if_modified(|known| {
                        let changed = *known != charter;
                        known.clone_from(&charter);
                        changed
                    });
                }
                // Only now: whoever is answered may look for what it wrote.
                responders.drain(..).for_each(|responder| responder.send(()));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        // The rows have come before, through the same writer: this fsync covers them.
        let mut changes = vec![self.row(ROW_SNAPSHOT, meta)];
        if let Some(charter) = &snapshot {
            changes.push(self.row(ROW_CHARTER, charter));
        }
        let applied = Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.commit(applied, changes, Flush::Sync).await?;
        self.state().snapshot = Some(meta.clone());
        if snapshot.is_some() {
            self.charter.send_replace(snapshot);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotData>>, io::Error> {
        let meta = self.state().snapshot.clone();
        Ok(meta.map(|meta| SnapshotOf::<Types, SnapshotData> { meta, snapshot: self.charter_here() }))
    }
}

impl StateMachine {
    fn charter_here(&self) -> SnapshotData {
        if self.group == GroupId::META { self.charter.borrow().clone() } else { None }
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotData>, io::Error> {
        let Applied { last, membership } = self.state().applied.clone();
        let meta = SnapshotMetaOf::<Types> { last_log_id: last, last_membership: membership };
        // On disk before any entry it stands for is purged, because that is written later.
        write(&self.writer, vec![self.row(ROW_SNAPSHOT, &meta)], Flush::Lazy).await?;
        self.state().snapshot = Some(meta.clone());
        Ok(SnapshotOf::<Types, SnapshotData> { meta, snapshot: self.charter_here() })
    }
}
