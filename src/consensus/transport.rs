//! How the groups of one node speak with those of others: requests and answers of all groups, gathered into one frame a
//! peer and moment. Raft sends little and often; one frame for what sixteen groups have to say costs about as much as
//! one for what a single group has.
//!
//! What bounds the queues: a group has at most one append, one heartbeat, one vote and one copy under way to a peer, and
//! every request is answered at most once. What cannot be sent fails at once; Raft tries again by itself.

use super::machine::SnapshotData;
use super::types::{GroupId, Incarnation, Member, Types};
use crate::storage::store::{Position, Row, Store};
use bytes::Bytes;
use openraft::alias::{SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::debug;

/// Bytes of a shard's history that travel at once when it is copied.
const COPY_BYTES: usize = 128 * 1024;

/// A frame is sent once it has about this size; more waits for the next.
const FRAME_BYTES: usize = 256 * 1024;

/// How long one part of a copy may take to be answered.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an append may take to be answered: the other node first brings to disk what came before. Longer than that
/// only where an answer was lost; a link that ends is noticed at once.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Copies that this node sends at the same time. Others wait: a node that was away for long gets them from several.
const COPIES_MAX: usize = 2;

/// The links to other nodes, as far as agreement needs them.
pub trait Links: Send + Sync + 'static {
    /// Sends `frame` to the node called `peer`; false when it cannot be sent now.
    fn send(&self, peer: &str, frame: Bytes) -> bool;

    /// The incarnation of the node called `peer`, if it is linked.
    fn incarnation_of(&self, peer: &str) -> Option<Incarnation>;
}

/// Nobody to link to.
pub struct Alone;

impl Links for Alone {
    fn send(&self, _peer: &str, _frame: Bytes) -> bool {
        false
    }

    fn incarnation_of(&self, _peer: &str) -> Option<Incarnation> {
        None
    }
}

/// What one group asks its counterpart on another node.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Raft's own.
    Append(AppendEntriesRequest<Types>),
    /// Raft's own.
    Vote(VoteRequest<Types>),
    /// Raft's own.
    PreVote(VoteRequest<Types>),
    /// Raft's own.
    TransferLeader(TransferLeaderRequest<Types>),
    /// A part of the state. Agreed upon, hence true on every node, whoever sends it.
    Rows(Vec<Row>),
    /// All parts have been sent: the state is now that of this snapshot.
    Install(VoteOf<Types>, SnapshotMetaOf<Types>, SnapshotData),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<Types>),
    /// To [`Request::Vote`] and [`Request::PreVote`].
    Vote(VoteResponse<Types>),
    /// To [`Request::TransferLeader`].
    TransferLeader(TransferLeaderResponse<Types>),
    /// To [`Request::Rows`].
    Rows,
    /// To [`Request::Install`].
    Install(SnapshotResponse<Types>),
}

#[derive(Serialize, Deserialize)]
enum Envelope {
    Request(u64, GroupId, Request),
    /// Without an answer: the group cannot give one.
    Answer(u64, Option<Answer>),
}

/// Who answers what other nodes ask.
pub trait Responder: Send + Sync + 'static {
    /// Answers `request` to `group`; `None` when it cannot.
    fn respond(&self, group: GroupId, request: Request) -> impl Future<Output = Option<Answer>> + Send;
}

/// The way out, shared by all groups of a node.
pub struct Transport {
    links: Arc<dyn Links>,
    outboxes: Mutex<HashMap<String, mpsc::UnboundedSender<Envelope>>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    copies: Semaphore,
}

struct Waiting {
    peer: String,
    answer: oneshot::Sender<Option<Answer>>,
}

/// Takes back what was registered when nobody waits any more.
struct Registration<'a> {
    transport: &'a Transport,
    number: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        lock(&self.transport.waiting).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport {
    /// A transport over `links`.
    #[must_use]
    pub fn new(links: Arc<dyn Links>) -> Arc<Self> {
        Arc::new(Self {
            links,
            outboxes: Mutex::new(HashMap::new()),
            waiting: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
            copies: Semaphore::new(COPIES_MAX),
        })
    }

    /// The incarnation of a linked node.
    #[must_use]
    pub fn incarnation_of(&self, peer: &str) -> Option<Incarnation> {
        self.links.incarnation_of(peer)
    }

    /// Takes a frame that the node called `peer` sent.
    pub fn receive<R: Responder>(self: &Arc<Self>, responder: &Arc<R>, peer: &str, frame: &[u8]) {
        let envelopes: Vec<Envelope> = match postcard::from_bytes(frame) {
            Ok(envelopes) => envelopes,
            Err(error) => {
                debug!(peer, %error, "a frame that makes no sense was dropped");
                return;
            }
        };
        for envelope in envelopes {
            match envelope {
                Envelope::Answer(number, answer) => {
                    if let Some(waiting) = lock(&self.waiting).remove(&number) {
                        let _ = waiting.answer.send(answer);
                    }
                }
                Envelope::Request(number, group, request) => {
                    let (transport, responder, peer) =
                        (Arc::clone(self), Arc::clone(responder), peer.to_owned());
                    tokio::spawn(async move {
                        let answer = responder.respond(group, request).await;
                        transport.post(&peer, Envelope::Answer(number, answer));
                    });
                }
            }
        }
    }

    /// The link to `peer` is gone: nobody need wait for its answers.
    pub fn unlinked(&self, peer: &str) {
        lock(&self.waiting).retain(|_, waiting| waiting.peer != peer);
    }

    fn post(self: &Arc<Self>, peer: &str, envelope: Envelope) {
        let mut outboxes = lock(&self.outboxes);
        if let Some(outbox) = outboxes.get(peer) {
            let _ = outbox.send(envelope);
            return;
        }
        let (outbox, envelopes) = mpsc::unbounded_channel();
        let _ = outbox.send(envelope);
        outboxes.insert(peer.to_owned(), outbox);
        tokio::spawn(Arc::clone(self).ship(peer.to_owned(), envelopes));
    }

    /// Sends what is posted for `peer`, for ever.
    async fn ship(self: Arc<Self>, peer: String, mut envelopes: mpsc::UnboundedReceiver<Envelope>) {
        while let Some(first) = envelopes.recv().await {
            let mut frames = Frames::default();
            let mut next = Some(first);
            while let Some(envelope) = next {
                frames.add(&envelope);
                next = if frames.bytes < FRAME_BYTES { envelopes.try_recv().ok() } else { None };
            }
            if !self.links.send(&peer, frames.encode()) {
                let mut waiting = lock(&self.waiting);
                for number in frames.requests {
                    waiting.remove(&number);
                }
            }
        }
    }

    /// Asks `group` on the node called `peer`; `None` when no answer came.
    async fn ask(
        self: &Arc<Self>,
        peer: &str,
        group: GroupId,
        request: Request,
        timeout: Duration,
    ) -> Option<Answer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.waiting).insert(number, Waiting { peer: peer.to_owned(), answer });
        let _registration = Registration { transport: self, number };
        self.post(peer, Envelope::Request(number, group, request));
        tokio::time::timeout(timeout, answered).await.ok()?.ok()?
    }
}

/// Envelopes that leave together, already encoded.
#[derive(Default)]
struct Frames {
    count: u64,
    body: Vec<u8>,
    bytes: usize,
    requests: Vec<u64>,
}

impl Frames {
    fn add(&mut self, envelope: &Envelope) {
        if let Envelope::Request(number, ..) = envelope {
            self.requests.push(*number);
        }
        self.body = postcard::to_extend(envelope, std::mem::take(&mut self.body))
            .unwrap_or_else(|_| unreachable!("a vector takes what is written to it"));
        self.count += 1;
        self.bytes = self.body.len();
    }

    /// The envelopes as one list: its length, then each.
    fn encode(&mut self) -> Bytes {
        let mut frame = postcard::to_extend(&self.count, Vec::with_capacity(self.body.len() + 10))
            .unwrap_or_else(|_| unreachable!("a vector takes what is written to it"));
        frame.append(&mut self.body);
        frame.into()
    }
}

/// Makes the connections of one group.
#[derive(Clone)]
pub struct Network {
    /// The group.
    pub group: GroupId,
    /// The way out.
    pub transport: Arc<Transport>,
    /// Where a copy reads from.
    pub store: Store,
}

/// One group's connection to its counterpart on another node.
pub struct Connection {
    network: Network,
    peer: String,
    target: Incarnation,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: Incarnation, node: &Member) -> Connection {
        Connection { network: self.clone(), peer: node.name.clone(), target }
    }
}

impl Connection {
    async fn ask(
        &self,
        request: Request,
        kind: RPCTypes,
        timeout: Duration,
    ) -> Result<Answer, RPCError<Types>> {
        let transport = &self.network.transport;
        if transport.incarnation_of(&self.peer) != Some(self.target) {
            let reason = format!("{} is not linked", self.peer);
            return Err(RPCError::Unreachable(Unreachable::from_string(reason)));
        }
        let answer = transport.ask(&self.peer, self.network.group, request, timeout).await;
        answer.ok_or_else(|| {
            let reason = format!("{} did not answer a {kind}", self.peer);
            RPCError::Unreachable(Unreachable::from_string(reason))
        })
    }

    fn nonsense(&self) -> RPCError<Types> {
        let reason = format!("{} answered something else than it was asked", self.peer);
        RPCError::Network(NetworkError::from_string(reason))
    }

    /// Copies the state to the other node, part by part.
    async fn copy(
        &self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotData>,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let _turn = self.network.transport.copies.acquire().await;
        let mut position: Position = None;
        if let Some(shard) = self.network.group.shard() {
            loop {
                let (store, from) = (self.network.store.clone(), position.take());
                let read = tokio::task::spawn_blocking(move || store.copy_rows(shard, &from, COPY_BYTES));
                let failed = |error: String| StreamingError::Network(NetworkError::from_string(error));
                let rows = read.await.map_err(|error| failed(error.to_string()))?;
                let rows = rows.map_err(|error| failed(error.to_string()))?;
                let Some((space, key, _)) = rows.last() else { break };
                position = Some((*space, key.clone()));
                self.ask(Request::Rows(rows), RPCTypes::InstallSnapshot, COPY_TIMEOUT).await?;
            }
        }
        let install = Request::Install(vote, snapshot.meta, snapshot.snapshot);
        match self.ask(install, RPCTypes::InstallSnapshot, COPY_TIMEOUT).await? {
            Answer::Install(response) => Ok(response),
            _ => Err(self.nonsense().into()),
        }
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        match self.ask(Request::Append(rpc), RPCTypes::AppendEntries, APPEND_TIMEOUT).await? {
            Answer::Append(response) => Ok(response),
            _ => Err(self.nonsense()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(Request::Vote(rpc), RPCTypes::Vote, option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(self.nonsense()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(Request::PreVote(rpc), RPCTypes::Vote, option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(self.nonsense()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            copied = self.copy(vote, snapshot) => copied,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        match self.ask(Request::TransferLeader(req), RPCTypes::TransferLeader, option.hard_ttl()).await? {
            Answer::TransferLeader(response) => Ok(response),
            _ => Err(self.nonsense()),
        }
    }
}
