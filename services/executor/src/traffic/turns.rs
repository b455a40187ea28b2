//! Turns in this process: who counts the members that are up and then takes one off must not be passed by another who
//! counted the same, and an agent is not given more drains at once than leave it a place for what brings members back.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Drains that a load balancer's own host is given at once; an agent takes four tasks, and the others bring members back.
const DRAINS: usize = 2;

#[derive(Debug, Default)]
pub(crate) struct Turns {
    counts: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Turns {
    /// The turn at all of these, in an order that is the same for everybody.
    pub(super) async fn all(&self, names: impl IntoIterator<Item = String>) -> Vec<OwnedMutexGuard<()>> {
        let names: BTreeSet<String> = names.into_iter().collect();
        let mut held = Vec::with_capacity(names.len());
        for name in names {
            let turn = {
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                // Forget what nobody waits for, so that names of long ago do not stay.
                counts.retain(|_, t| Arc::strong_count(t) > 1);
                Arc::clone(counts.entry(name).or_default())
            };
            held.push(turn.lock_owned().await);
        }
        held
    }

    /// A place for a drain on this host. `None` cannot be: the places are never closed.
    pub(super) async fn drain_on(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            hosts.retain(|_, p| Arc::strong_count(p) > 1);
            Arc::clone(hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(DRAINS))))
        };
        places.acquire_owned().await.ok()
    }
}
