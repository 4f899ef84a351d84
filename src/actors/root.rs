//! The node's root supervisor: starts the gateways and shard hosts, and starts them again when they fail.

use super::context::Context;
use super::gateway::{self, Gateway};
use super::shard_host::{self, ShardHost};
use crate::protocol::names::{GatewayId, ShardId};
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::error;

/// How long a child that failed stays down: enough that one which fails at once does not spin.
const RESTART_AFTER: Duration = Duration::from_millis(100);

/// The actor.
pub struct Root;

/// What the root tells itself.
pub enum RootMsg {
    /// Start this child again.
    Restart(Child),
}

impl ractor::Message for RootMsg {}

/// What the root is to keep running.
#[derive(Debug, Clone)]
pub enum Child {
    /// A gateway.
    Gateway(GatewayId),
    /// The host of a shard.
    Host(ShardId),
}

/// What the root keeps.
pub struct State {
    context: Arc<Context>,
    children: HashMap<ActorId, Child>,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = State;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        myself: ActorRef<RootMsg>,
        context: Arc<Context>,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State { context, children: HashMap::new() };
        // Hosts first: a gateway finds them there.
        for shard in 0..state.context.shards {
            state.start(&myself, Child::Host(ShardId(shard))).await?;
        }
        for index in 0..state.context.gateways {
            let id = GatewayId::new(&state.context.node, index);
            state.start(&myself, Child::Gateway(id)).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let RootMsg::Restart(child) = message;
        state.start(&myself, child).await?;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, reason) => {
                state.child_ended(&myself, &actor, &reason.to_string());
            }
            SupervisionEvent::ActorTerminated(actor, _, _) => {
                state.child_ended(&myself, &actor, "stopped unasked");
            }
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<RootMsg>, child: Child) -> Result<(), SpawnErr> {
        let context = Arc::clone(&self.context);
        let actor = match child.clone() {
            Child::Gateway(id) => {
                let arguments: gateway::Arguments = (id, context);
                Gateway::spawn_linked(None, Gateway, arguments, myself.get_cell()).await?.0.get_id()
            }
            Child::Host(shard) => {
                let arguments: shard_host::Arguments = (shard, context);
                ShardHost::spawn_linked(None, ShardHost, arguments, myself.get_cell()).await?.0.get_id()
            }
        };
        self.children.insert(actor, child);
        Ok(())
    }

    fn child_ended(&mut self, myself: &ActorRef<RootMsg>, actor: &ActorCell, reason: &str) {
        if let Some(child) = self.children.remove(&actor.get_id()) {
            self.context.metrics.actor_failures.inc();
            error!(?child, reason, "an actor failed and is started again");
            drop(myself.send_after(RESTART_AFTER, move || RootMsg::Restart(child)));
        }
    }
}
