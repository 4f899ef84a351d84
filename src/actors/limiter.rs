//! The actor of one address's limiter. It keeps no state worth storing.

use super::context::{self, Context};
use super::gateway::GatewayMsg;
use super::shard_host::HostMsg;
use crate::chat::limiter::Limiter;
use crate::protocol::names::{GatewayId, LimiterKey, SessionNumber};
use crate::protocol::wire::FromHost;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct LimiterActor;

pub(super) enum LimiterMsg {
    /// A session of this address said something, or only wants to know.
    Count { gateway: GatewayId, session: SessionNumber, actions: u64 },
    /// Perhaps there is nothing left to remember.
    Forget,
}

impl ractor::Message for LimiterMsg {}

pub(super) struct Arguments {
    pub(super) key: LimiterKey,
    pub(super) host: ActorRef<HostMsg>,
    pub(super) context: Arc<Context>,
}

pub(super) struct State {
    arguments: Arguments,
    limiter: Limiter,
    handled: u64,
    timer_armed: bool,
}

impl Actor for LimiterActor {
    type Msg = LimiterMsg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<LimiterMsg>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        arguments.context.metrics.limiters.inc();
        Ok(State { arguments, limiter: Limiter::default(), handled: 0, timer_armed: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<LimiterMsg>,
        message: LimiterMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let context = &state.arguments.context;
        let now_ms = context.clock.uptime_ms();
        match message {
            LimiterMsg::Count { gateway, session, actions } => {
                state.handled += 1;
                let cooldown_ms = state.limiter.act(context.limits, actions, now_ms);
                // Most of the time there is nothing to tell.
                if cooldown_ms > 0
                    && let Some(gateway) = context::gateway(&gateway)
                {
                    let _ = gateway.cast(GatewayMsg::Host(FromHost::Cooldown { session, cooldown_ms }));
                }
            }
            LimiterMsg::Forget => state.timer_armed = false,
        }
        let remaining_ms = state.limiter.forgotten_at_ms().saturating_sub(now_ms);
        if remaining_ms == 0 {
            let key = state.arguments.key.clone();
            let offer = HostMsg::LimiterIdle { key, actor: myself.get_id(), handled: state.handled };
            let _ = state.arguments.host.cast(offer);
        } else if !state.timer_armed {
            state.timer_armed = true;
            drop(myself.send_after(Duration::from_millis(remaining_ms), || LimiterMsg::Forget));
        }
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.arguments.context.metrics.limiters.dec();
    }
}
