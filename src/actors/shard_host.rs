//! The host of a shard: finds or starts its rooms and limiters, and looks after them.

use super::SCOPE;
use super::context::{self, Context};
use super::gateway::GatewayMsg;
use super::idle::Children;
use super::limiter::{self, LimiterActor, LimiterMsg};
use super::room::{self, RoomActor, RoomMsg};
use crate::protocol::internal::{ToGateway, ToRoom};
use crate::protocol::names::{GatewayId, LimiterKey, RoomName, SessionNumber, ShardId};
use crate::storage::store::{Found, Range, ReadError};
use ractor::pg::{self, GroupChangeMessage};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::{error, warn};

/// The actor.
pub struct ShardHost;

/// What a host is asked.
pub enum HostMsg {
    /// For one of its rooms.
    Room {
        /// The room.
        room: RoomName,
        /// What for.
        message: ToRoom,
    },
    /// A session said something from an address, or comes from it and is to know how long to be quiet.
    Count {
        /// The address.
        key: LimiterKey,
        /// The session's gateway.
        gateway: GatewayId,
        /// The session.
        session: SessionNumber,
        /// How often it said something.
        actions: u64,
    },
    /// A page of a room's history.
    History {
        /// The room.
        room: RoomName,
        /// Which part.
        range: Range,
        /// Where to.
        reply: oneshot::Sender<Result<Found, ReadError>>,
    },
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

impl ractor::Message for HostMsg {}

/// What a host is started with.
pub type Arguments = (ShardId, Arc<Context>);

/// What a host keeps.
pub struct State {
    shard: ShardId,
    context: Arc<Context>,
    /// With each room, the gateways that may count on it.
    rooms: Children<RoomName, RoomMsg, BTreeSet<GatewayId>>,
    limiters: Children<LimiterKey, LimiterMsg, ()>,
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
        pg::join_scoped(SCOPE.into(), shard.leader_group(), vec![myself.get_cell()]);
        Ok(State { shard, context, rooms: Children::new(), limiters: Children::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<HostMsg>,
        message: HostMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HostMsg::Room { room, message } => state.forward_to_room(&myself, room, message).await?,
            HostMsg::Count { key, gateway, session, actions } => {
                let message = LimiterMsg::Count { gateway, session, actions };
                state.forward_to_limiter(&myself, key, message, actions > 0).await?;
            }
            HostMsg::History { room, range, reply } => state.history(room, range, reply),
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
        _myself: ActorRef<HostMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, reason) => state.child_ended(&actor, &reason.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, _) => state.child_ended(&actor, "stopped unasked"),
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Leave(_, group, _)) => {
                if let Some(gateway) = GatewayId::of_group(&group) {
                    state.gateway_left(&gateway);
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
    /// Hands `message` to its room. Only an attach opens a room: everything else was meant for an instance that is
    /// gone, whose gateways are told so and attach again.
    async fn forward_to_room(
        &mut self,
        myself: &ActorRef<HostMsg>,
        room: RoomName,
        message: ToRoom,
    ) -> Result<(), ActorProcessingErr> {
        if self.rooms.get_mut(&room).is_none() && matches!(message, ToRoom::Attach(_)) {
            let arguments = room::Arguments {
                room: room.clone(),
                host: myself.clone(),
                context: Arc::clone(&self.context),
                epoch: self.context.next_epoch(),
            };
            let (actor, _) = RoomActor::spawn_linked(None, RoomActor, arguments, myself.get_cell()).await?;
            self.rooms.insert(room.clone(), actor, BTreeSet::new());
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

    /// Hands `message` to the address's limiter. An address without one has nothing to remember: only an action makes
    /// it worth starting.
    async fn forward_to_limiter(
        &mut self,
        myself: &ActorRef<HostMsg>,
        key: LimiterKey,
        message: LimiterMsg,
        start: bool,
    ) -> Result<(), ActorProcessingErr> {
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

    fn history(&self, room: RoomName, range: Range, reply: oneshot::Sender<Result<Found, ReadError>>) {
        let context = Arc::clone(&self.context);
        tokio::spawn(async move {
            if let Some(found) = context.read(move |store| store.read(&room, range)).await {
                // Whoever asked may have gone.
                let _ = reply.send(found);
            }
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
                    let _ = gateway.cast(GatewayMsg::Room { room: room.clone(), message: ToGateway::Lost });
                }
            }
        } else if self.limiters.remove(actor.get_id()).is_some() {
            self.context.metrics.actor_failures.inc();
            warn!(shard = self.shard.0, reason, "a limiter failed; its address starts afresh");
        }
    }

    fn gateway_left(&mut self, gateway: &GatewayId) {
        for child in self.rooms.iter_mut() {
            if child.extra.remove(gateway) {
                child.forward(RoomMsg::Gateway(ToRoom::Detach(gateway.clone())));
            }
        }
    }
}
