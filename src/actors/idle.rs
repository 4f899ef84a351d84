//! How a child that nobody needs is stopped without losing a message: it offers to stop, naming how many messages it
//! has handled, and its host, through which every message comes, agrees only if that is all it ever forwarded.

use ractor::{ActorId, ActorRef, Message};
use std::collections::HashMap;
use std::hash::Hash;

/// The children of one kind, by name.
pub(super) struct Children<K, M: Message, X> {
    by_name: HashMap<K, Child<M, X>>,
    names: HashMap<ActorId, K>,
}

/// A child and what its host knows of it.
pub(super) struct Child<M: Message, X> {
    pub(super) actor: ActorRef<M>,
    /// Messages forwarded so far.
    forwarded: u64,
    pub(super) extra: X,
}

impl<K: Clone + Eq + Hash, M: Message, X> Children<K, M, X> {
    pub(super) fn new() -> Self {
        Self { by_name: HashMap::new(), names: HashMap::new() }
    }

    pub(super) fn insert(&mut self, name: K, actor: ActorRef<M>, extra: X) {
        self.names.insert(actor.get_id(), name.clone());
        self.by_name.insert(name, Child { actor, forwarded: 0, extra });
    }

    pub(super) fn get_mut(&mut self, name: &K) -> Option<&mut Child<M, X>> {
        self.by_name.get_mut(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &Child<M, X>)> {
        self.by_name.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Child<M, X>> {
        self.by_name.values_mut()
    }

    /// Stops the child that offered to, unless more is on its way to it.
    pub(super) fn stop_if_idle(&mut self, name: &K, actor: ActorId, handled: u64) -> bool {
        let idle = self
            .by_name
            .get(name)
            .is_some_and(|child| child.actor.get_id() == actor && child.forwarded == handled);
        if idle && let Some(child) = self.remove(actor) {
            child.1.actor.stop(None);
        }
        idle
    }

    /// Stops and forgets all children.
    pub(super) fn stop_all(&mut self) {
        self.names.clear();
        for (_, child) in self.by_name.drain() {
            child.actor.stop(None);
        }
    }

    /// Forgets a child that has ended.
    pub(super) fn remove(&mut self, actor: ActorId) -> Option<(K, Child<M, X>)> {
        let name = self.names.remove(&actor)?;
        let child = self.by_name.remove(&name)?;
        Some((name, child))
    }
}

impl<M: Message, X> Child<M, X> {
    pub(super) fn forward(&mut self, message: M) {
        self.forwarded += 1;
        // A child that has just failed takes nothing; whoever sent this is told when the host hears of the failure.
        let _ = self.actor.cast(message);
    }
}
