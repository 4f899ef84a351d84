//! The host of a shard on one node: finds or starts its rooms and limiters while this node leads the shard, and sends
//! whoever asks elsewhere while it does not.
//!
//! A turn at leading begins in this order, which is what makes a failover lose nothing:
//! 1. The group says that this node leads, and that everything ever acknowledged is in the history here.
//! 2. All gateways of the cluster are told the new term, and answer with what they relayed and do not know to be
//!    durable. From then on they believe no earlier leader, so that nothing is relayed behind our back.
//! 3. Those rooms are opened and keep what was handed over. Only then does the host show itself as the leader, and
//!    gateways attach.

use super::SCOPE;
use super::context::{self, Context};
use super::gateway::GatewayMsg;
use super::idle::Children;
use super::inheritance::Inheritance;
use super::limiter::{self, LimiterActor, LimiterMsg};
use super::remote;
use super::room::{self, RoomActor, RoomMsg};
use crate::chat::room::Inherited;
use crate::consensus::group::Lead;
use crate::protocol::Timestamp;
use crate::protocol::internal::{ToGateway, ToRoom};
use crate::protocol::names::{GatewayId, LimiterKey, RoomName, ShardId};
use crate::protocol::wire::{self, FromHost, ToHost};
use crate::storage::store::{Found, Range};
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, warn};

/// How long gateways may take to hand over what they know. One whose node falls silent leaves the process groups before
/// that; one that is slower although its node is heard is not waited for.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How soon a turn is taken up again in which something was refused.
const TURN_AGAIN: Duration = Duration::from_millis(50);

/// The actor.
pub struct ShardHost;

/// What a host is told.
pub enum HostMsg {
    /// By a gateway, here or on another node.
    Gateway(ToHost),
    /// A page of a room's history is wanted: `Result<Found, HistoryError>`, written as between nodes.
    History {
        /// The room.
        room: RoomName,
        /// Which part.
        range: Range,
        /// Where to.
        reply: RpcReplyPort<Vec<u8>>,
    },
    /// This node's turn at leading the shard has begun or ended.
    Lead(Option<Lead>),
    /// Something that a room appended was refused in this turn.
    AppendRefused(Lead),
    /// Perhaps the turn goes on in which something was refused.
    TurnAgain,
    /// Gateways had the time to hand over.
    HandOverEnds(Lead),
    /// A room has had nobody for a while.
    RoomIdle {
        /// The room.
        room: RoomName,
        /// Its actor.
        actor: ActorId,
        /// Messages it has handled.
        handled: u64,
    },
    /// A limiter has nothing to remember.
    LimiterIdle {
        /// The address.
        key: LimiterKey,
        /// Its actor.
        actor: ActorId,
        /// Messages it has handled.
        handled: u64,
    },
}

/// Why a page of history was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum HistoryError {
    /// The host that was asked does not lead the shard, or cannot be sure.
    #[error("the node that was asked does not lead the shard")]
    NotLeader,
    /// The store or one of its rows cannot be read.
    #[error("the store cannot be read")]
    Unreadable,
}

impl ractor::Message for HostMsg {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        match self {
            Self::Gateway(message) => Ok(remote::pack(&message)),
            Self::History { room, range, reply } => Ok(SerializedMessage::Call {
                variant: String::new(),
                args: wire::encode(&(room, range)),
                reply,
                metadata: None,
            }),
            Self::Lead(_)
            | Self::AppendRefused(_)
            | Self::TurnAgain
            | Self::HandOverEnds(_)
            | Self::RoomIdle { .. }
            | Self::LimiterIdle { .. } => Err(BoxedDowncastErr),
        }
    }

    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        match message {
            SerializedMessage::Cast { args, .. } => remote::unpack(&args).map(Self::Gateway),
            SerializedMessage::Call { args, reply, .. } => {
                let (room, range) = remote::unpack(&args)?;
                Ok(Self::History { room, range, reply })
            }
            SerializedMessage::CallReply(..) => Err(BoxedDowncastErr),
        }
    }
}

/// What a host is started with.
pub type Arguments = (ShardId, Arc<Context>);

/// What a host keeps.
pub struct State {
    shard: ShardId,
    context: Arc<Context>,
    turn: Turn,
    /// When the turn began, by the clock of whoever led before, if that is ahead of ours.
    began_at: Timestamp,
    /// With each room, the gateways that may count on it.
    rooms: Children<RoomName, RoomMsg, BTreeSet<GatewayId>>,
    limiters: Children<LimiterKey, LimiterMsg, ()>,
}

/// Whether it is this node's turn to lead the shard.
enum Turn {
    Others,
    /// Gateways are handing over.
    Begins(Lead, Inheritance),
    Ours(Lead),
}

impl Actor for ShardHost {
    type Msg = HostMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<HostMsg>,
        (shard, context): Arguments,
    ) -> Result<State, ActorProcessingErr> {
        pg::monitor_scope(SCOPE.into(), myself.get_cell());
        pg::join_scoped(SCOPE.into(), shard.group(), vec![myself.get_cell()]);
        pg::join_scoped(SCOPE.into(), shard.host_group(&context.node), vec![myself.get_cell()]);
        Ok(State {
            shard,
            context,
            turn: Turn::Others,
            began_at: 0,
            rooms: Children::new(),
            limiters: Children::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<HostMsg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let group = state.context.consensus.shard(state.shard).ok_or("the shard has no group")?;
        let mut lead = group.lead();
        tokio::spawn(async move {
            loop {
                let now = *lead.borrow_and_update();
                // Ends with the host, or with the group.
                if myself.cast(HostMsg::Lead(now)).is_err() || lead.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<HostMsg>,
        message: HostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HostMsg::Gateway(ToHost::Room { room, message }) => {
                state.forward_to_room(&myself, room, message).await?;
            }
            HostMsg::Gateway(ToHost::Count { key, gateway, session, actions }) => {
                let message = LimiterMsg::Count { gateway, session, actions };
                state.forward_to_limiter(&myself, key, message, actions > 0).await?;
            }
            HostMsg::Gateway(ToHost::HandedOver { gateway, term, rooms, complete }) => {
                if let Turn::Begins(lead, inheritance) = &mut state.turn
                    && lead.term == term
                {
                    inheritance.take(&gateway, rooms, complete);
                    state.begin_if_complete(&myself).await?;
                }
            }
            HostMsg::History { room, range, reply } => state.history(room, range, reply),
            HostMsg::Lead(lead) => state.turn_changes(&myself, lead).await?,
            HostMsg::AppendRefused(lead) => {
                if state.lead() == Some(lead) {
                    warn!(shard = state.shard.0, "what rooms appended was refused; they are opened anew");
                    state.turn_changes(&myself, None).await?;
                    // The turn may be over: then the group says so meanwhile.
                    drop(myself.send_after(TURN_AGAIN, || HostMsg::TurnAgain));
                }
            }
            HostMsg::TurnAgain => {
                let group = state.context.consensus.shard(state.shard).ok_or("the shard has no group")?;
                let lead = *group.lead().borrow();
                if matches!(state.turn, Turn::Others) && lead.is_some() {
                    state.turn_changes(&myself, lead).await?;
                }
            }
            HostMsg::HandOverEnds(lead) => {
                if let Turn::Begins(ours, inheritance) = &mut state.turn
                    && *ours == lead
                {
                    for gateway in inheritance.give_up() {
                        warn!(shard = state.shard.0, ?gateway, "a gateway hands nothing over in time");
                    }
                    state.begin_if_complete(&myself).await?;
                }
            }
            HostMsg::RoomIdle { room, actor, handled } => {
                state.rooms.stop_if_idle(&room, actor, handled);
            }
            HostMsg::LimiterIdle { key, actor, handled } => {
                state.limiters.stop_if_idle(&key, actor, handled);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<HostMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, reason) => state.child_ended(&actor, &reason.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, _) => state.child_ended(&actor, "stopped unasked"),
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Leave(_, group, _)) => {
                if let Some(gateway) = GatewayId::of_group(&group) {
                    match context::gateway(&gateway) {
                        None => state.gateway_left(&myself, &gateway).await?,
                        Some(back) => state.gateway_is_back(&gateway, &back),
                    }
                }
            }
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Join(..))
            | SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

impl State {
    /// The turn at leading that has fully begun.
    fn lead(&self) -> Option<Lead> {
        match self.turn {
            Turn::Ours(lead) => Some(lead),
            Turn::Others | Turn::Begins(..) => None,
        }
    }

    async fn turn_changes(
        &mut self,
        myself: &ActorRef<HostMsg>,
        lead: Option<Lead>,
    ) -> Result<(), ActorProcessingErr> {
        if self.lead().is_some() {
            pg::leave_scoped(SCOPE.into(), self.shard.leader_group(), vec![myself.get_cell()]);
        }
        // Whatever the rooms still had to say would not be believed.
        self.rooms.stop_all();
        self.limiters.stop_all();
        let Some(lead) = lead else {
            self.turn = Turn::Others;
            return Ok(());
        };
        self.began_at = self.context.neighbours.clock_of_earlier_leader(self.shard, lead.term);
        let question =
            FromHost::HandOver { shard: self.shard, term: lead.term, node: self.context.node.clone() };
        let mut asked = BTreeSet::new();
        for (id, gateway) in self.context.gateways() {
            if gateway.cast(GatewayMsg::Host(question.clone())).is_ok() {
                asked.insert(id);
            }
        }
        self.turn = Turn::Begins(lead, Inheritance::expected_from(asked));
        drop(myself.send_after(HAND_OVER_TIMEOUT, move || HostMsg::HandOverEnds(lead)));
        self.begin_if_complete(myself).await
    }

    async fn begin_if_complete(&mut self, myself: &ActorRef<HostMsg>) -> Result<(), ActorProcessingErr> {
        let Turn::Begins(lead, inheritance) = &mut self.turn else { return Ok(()) };
        if !inheritance.is_complete() {
            return Ok(());
        }
        let (lead, rooms) = (*lead, inheritance.rooms());
        self.turn = Turn::Ours(lead);
        for (room, inherited) in rooms {
            self.open(myself, lead, room, inherited).await?;
        }
        pg::join_scoped(SCOPE.into(), self.shard.leader_group(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn open(
        &mut self,
        myself: &ActorRef<HostMsg>,
        lead: Lead,
        room: RoomName,
        inherited: Inherited,
    ) -> Result<(), ActorProcessingErr> {
        // Counted on from now on: should one of them be lost before it attaches, the room is told.
        let gateways = inherited.members.iter().map(|member| member.session.gateway.clone()).collect();
        let arguments = room::Arguments {
            room: room.clone(),
            host: myself.clone(),
            context: Arc::clone(&self.context),
            lead,
            epoch: self.context.next_epoch(lead.term),
            began_at: self.began_at,
            inherited,
        };
        let (actor, _) = RoomActor::spawn_linked(None, RoomActor, arguments, myself.get_cell()).await?;
        self.rooms.insert(room, actor, gateways);
        Ok(())
    }

    /// Hands `message` to its room. Only an attach opens a room: everything else was meant for an instance that is
    /// gone, whose gateways are told so and attach again.
    async fn forward_to_room(
        &mut self,
        myself: &ActorRef<HostMsg>,
        room: RoomName,
        message: ToRoom,
    ) -> Result<(), ActorProcessingErr> {
        let Some(lead) = self.lead() else {
            if let ToRoom::Attach(attach) = message {
                self.send_elsewhere(&attach.gateway);
            }
            return Ok(());
        };
        if self.rooms.get_mut(&room).is_none() && matches!(message, ToRoom::Attach(_)) {
            self.open(myself, lead, room.clone(), Inherited::default()).await?;
        }
        if let Some(child) = self.rooms.get_mut(&room) {
            match &message {
                ToRoom::Detach(gateway) => {
                    child.extra.remove(gateway);
                }
                ToRoom::Attach(attach) => {
                    child.extra.insert(attach.gateway.clone());
                }
                ToRoom::Say { .. } | ToRoom::Leave(_) => {}
            }
            child.forward(RoomMsg::Gateway(message));
        }
        Ok(())
    }

    fn send_elsewhere(&self, gateway: &GatewayId) {
        let leader = self.context.consensus.leader_of(self.shard);
        let answer = FromHost::NotLeader { shard: self.shard, node: self.context.node.clone(), leader };
        if let Some(gateway) = context::gateway(gateway) {
            let _ = gateway.cast(GatewayMsg::Host(answer));
        }
    }

    /// Hands `message` to the address's limiter. An address without one has nothing to remember: only an action makes
    /// it worth starting.
    async fn forward_to_limiter(
        &mut self,
        myself: &ActorRef<HostMsg>,
        key: LimiterKey,
        message: LimiterMsg,
        start: bool,
    ) -> Result<(), ActorProcessingErr> {
        if self.lead().is_none() {
            return Ok(());
        }
        if start && self.limiters.get_mut(&key).is_none() {
            let arguments = limiter::Arguments {
                key: key.clone(),
                host: myself.clone(),
                context: Arc::clone(&self.context),
            };
            let (actor, _) =
                LimiterActor::spawn_linked(None, LimiterActor, arguments, myself.get_cell()).await?;
            self.limiters.insert(key.clone(), actor, ());
        }
        if let Some(child) = self.limiters.get_mut(&key) {
            child.forward(message);
        }
        Ok(())
    }

    /// Reads a page of history, if this node is certain to have all of it.
    fn history(&self, room: RoomName, range: Range, reply: RpcReplyPort<Vec<u8>>) {
        let context = Arc::clone(&self.context);
        let answer = |reply: RpcReplyPort<Vec<u8>>, result: Result<Found, HistoryError>| {
            // Whoever asked may have gone.
            let _ = reply.send(wire::encode(&result));
        };
        let group = context.consensus.shard(self.shard);
        if !self.lead().zip(group).is_some_and(|(lead, group)| group.holds_lease(lead)) {
            return answer(reply, Err(HistoryError::NotLeader));
        }
        tokio::spawn(async move {
            let Some(found) = context.read(move |store| store.read(&room, range)).await else { return };
            answer(
                reply,
                found.map_err(|error| {
                    error!(%error, "history cannot be read");
                    HistoryError::Unreadable
                }),
            );
        });
    }

    fn child_ended(&mut self, actor: &ActorCell, reason: &str) {
        if let Some((room, child)) = self.rooms.remove(actor.get_id()) {
            self.context.metrics.actor_failures.inc();
            error!(
                ?room,
                shard = self.shard.0,
                reason,
                "a room failed; its gateways attach to a new instance"
            );
            for id in child.extra {
                if let Some(gateway) = context::gateway(&id) {
                    let failed = FromHost::Room { room: room.clone(), message: ToGateway::Failed };
                    let _ = gateway.cast(GatewayMsg::Host(failed));
                }
            }
        } else if self.limiters.remove(actor.get_id()).is_some() {
            self.context.metrics.actor_failures.inc();
            warn!(shard = self.shard.0, reason, "a limiter failed; its address starts afresh");
        }
    }

    /// The gateway is here over a new link, and this is old news of the old one: it may have attached meanwhile, or have
    /// had no more reason to. It is asked.
    fn gateway_is_back(&self, id: &GatewayId, gateway: &ActorRef<GatewayMsg>) {
        for (room, child) in self.rooms.iter() {
            if child.extra.contains(id) {
                let lost = FromHost::Room { room: room.clone(), message: ToGateway::Lost };
                let _ = gateway.cast(GatewayMsg::Host(lost));
            }
        }
    }

    async fn gateway_left(
        &mut self,
        myself: &ActorRef<HostMsg>,
        gateway: &GatewayId,
    ) -> Result<(), ActorProcessingErr> {
        for child in self.rooms.iter_mut() {
            if child.extra.remove(gateway) {
                child.forward(RoomMsg::Gateway(ToRoom::Detach(gateway.clone())));
            }
        }
        if let Turn::Begins(_, inheritance) = &mut self.turn {
            inheritance.lose(gateway);
            self.begin_if_complete(myself).await?;
        }
        Ok(())
    }
}
