//! The courier: the one actor of a node that other nodes' couriers talk to.

use super::links::Shared;
use super::peer::Peer;
use super::wire::{CourierMsg, Header, Hello, Kind, Unreadable};
use crate::protocol::names::{SCOPE, node_group};
use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent, pg};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The actor. It never waits: what it hands to the handler is the handler's to queue, within bounds.
pub(super) struct Courier;

impl Actor for Courier {
    type Msg = CourierMsg;
    type State = Arc<Shared>;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<CourierMsg>,
        shared: Arc<Shared>,
    ) -> Result<Arc<Shared>, ActorProcessingErr> {
        pg::join_scoped(SCOPE.into(), node_group(&shared.name), vec![myself.get_cell()]);
        Ok(shared)
    }

    async fn handle(
        &self,
        _myself: ActorRef<CourierMsg>,
        message: CourierMsg,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CourierMsg::Letter(header, payload) => shared.letter(&header, payload),
            CourierMsg::Unreadable(why) => shared.unreadable("a peer", why),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<CourierMsg>,
        _event: SupervisionEvent,
        _shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl Shared {
    fn letter(&self, header: &Header, payload: Bytes) {
        let Some(peer) = self.peer(&header.from) else {
            if self.seldom_strange.due(self.now()) {
                tracing::warn!(
                    from = header.from,
                    "a message from a node that is no peer of this one was dropped"
                );
            }
            return;
        };
        if let Some((link, acquainted)) = peer.link() {
            let now = self.now();
            link.heard(now);
            let us = self.hello();
            match header.kind {
                Kind::Beat { seq, acquainted: with_us } => {
                    link.post(us.header(Kind::Beaten { seq }), Bytes::new());
                    // Ours can have been lost to them when an earlier session ended; theirs is asked for by our beats.
                    if !with_us && acquainted {
                        self.greet(&link);
                    }
                }
                Kind::Beaten { seq } => peer.beaten(&link, seq, now),
                Kind::Hello | Kind::Frame => {}
            }
        }
        match header.kind {
            Kind::Hello => self.hear_hello(&peer, header, &payload),
            Kind::Frame => self.frame(&peer, header, payload),
            Kind::Beat { .. } | Kind::Beaten { .. } => {}
        }
    }

    fn frame(&self, peer: &Peer, header: &Header, payload: Bytes) {
        if peer.up_as(header.incarnation).is_none() {
            tracing::debug!(peer = peer.name, "a frame of a peer that is not up was dropped");
            return;
        }
        // A handler that fails must not take the courier with it: beats would go unanswered on every link.
        if catch_unwind(AssertUnwindSafe(|| (self.handler)(&peer.name, payload))).is_err() {
            self.metrics.actor_failures.inc();
            tracing::error!(peer = peer.name, "handling a frame failed");
        }
    }

    fn hear_hello(&self, peer: &Arc<Peer>, header: &Header, payload: &[u8]) {
        let us = self.hello();
        match Hello::read(payload, us.version) {
            Ok(Ok(hello)) if hello.name == header.from && hello.incarnation == header.incarnation => {
                self.judge(peer, hello);
            }
            Ok(Ok(_)) => self.unreadable(&peer.name, Unreadable::Hello),
            Ok(Err(version)) => {
                self.refuse(
                    peer,
                    &format!(
                        "{} speaks version {version} of the cluster's protocol, this node version {}",
                        peer.name, us.version
                    ),
                );
            }
            Err(why) => self.unreadable(&peer.name, why),
        }
    }

    /// Works with the peer from now on, or refuses it.
    pub(super) fn judge(&self, peer: &Arc<Peer>, hello: Hello) {
        if let Some(why) = self.hello().objection(&hello) {
            self.refuse(peer, &why);
            return;
        }
        let (url, incarnation) = (hello.url.clone(), hello.incarnation);
        if peer.accept(hello, self.now()) {
            tracing::info!(peer = peer.name, url, incarnation = format!("{incarnation:016x}"), "linked");
        }
    }

    fn refuse(&self, peer: &Peer, why: &str) {
        let (link, news) = peer.refuse(why);
        if let Some(link) = link {
            self.cut(&link.session, "refused");
        }
        if news {
            tracing::warn!(peer = peer.name, "the link is refused: {why}");
        }
    }

    fn unreadable(&self, from: &str, why: Unreadable) {
        if self.seldom_unreadable.due(self.now()) {
            tracing::warn!("a message from {from} could not be read: {why}");
        }
    }
}
