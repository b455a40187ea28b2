//! Turns at load balancers: who counts the members that are up and then takes one off must not be passed by another who
//! counted the same, in this process or in another executor, and an agent is not given more drains at once than leave it a
//! place for what brings members back.
//!
//! Among processes a turn is a lease (`traffic/<name>`) of the database. A load balancer knows no fences, so a turn is only
//! acted under for [`ACT`], well before the lease ends: who is late gives the turn back and counts again.

use super::{Fault, Says};
use crate::central::chain;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use windlass_domain::traffic::Share;
use windlass_store::{
    Store,
    leases::{self, Lease},
};

/// Drains that a load balancer's own host is given at once; an agent takes four tasks, and the others bring members back.
const DRAINS: usize = 2;
/// How long a turn may be acted under.
const ACT: Duration = Duration::from_secs(10);
/// How long others keep away. The last call that was begun in time may take ten seconds itself.
const LEASE: Duration = Duration::from_secs(25);
/// Between two looks at a turn that another executor has.
const LOOK: Duration = Duration::from_millis(200);

/// The least number of members that must stay, and where to count them undisturbed.
#[derive(Clone, Copy)]
pub(super) struct Minimum<'a> {
    pub(super) share: Share,
    pub(super) turns: &'a Turns,
}

#[derive(Debug)]
pub(crate) struct Turns {
    store: Store,
    /// This process among all executors.
    owner: String,
    counts: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// Nobody else of this process counts there.
pub(super) struct Here<'a> {
    turns: &'a Turns,
    names: BTreeSet<String>,
    held: Vec<OwnedMutexGuard<()>>,
}

/// Nobody else counts there. Goes back when it is dropped, the leases first: the next one of this process would otherwise
/// take them, and lose them by that.
#[derive(Debug)]
pub(super) struct Turn {
    store: Store,
    here: Vec<OwnedMutexGuard<()>>,
    leases: Vec<Lease>,
    /// Nothing is begun under it after this.
    pub(super) ends: Instant,
}

impl Turn {
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (here, leases) = (std::mem::take(&mut self.here), std::mem::take(&mut self.leases));
        // Without a runtime the process ends, and the leases by themselves.
        if let (false, Ok(runtime)) = (leases.is_empty(), tokio::runtime::Handle::try_current()) {
            let store = self.store.clone();
            runtime.spawn(async move {
                for lease in leases {
                    if let Err(error) = leases::release(&store, &lease).await {
                        tracing::debug!(lease = lease.name, error = &error as &dyn std::error::Error, "not released");
                    }
                }
                drop(here);
            });
        }
    }
}

fn late(name: &str) -> Fault {
    Fault::Timeout(format!("others counted the members at {name} all the time"))
}

impl Here<'_> {
    /// The turn among all executors; waits for it until `until`. It costs two transactions, so look first whether it is worth
    /// them, and once more under it.
    pub(super) async fn everywhere(self, until: Instant, says: &Says) -> Result<Turn, Fault> {
        let Here { turns, names, held } = self;
        let mut turn = Turn { store: turns.store.clone(), here: held, leases: Vec::new(), ends: until };
        loop {
            let begun = Instant::now();
            let (leases, missing) = turns.leases(&names).await;
            // Those there are will be asked for again, and thereby renewed.
            turn.leases = leases;
            let why = match missing {
                None => {
                    turn.ends = until.min(begun + ACT);
                    return Ok(turn);
                }
                Some(Ok(name)) => {
                    says.waits(&format!("another executor counts the members at {name}"));
                    late(name)
                }
                Some(Err(error)) => Fault::Broken(format!("no turn to count its members: {}", chain(&error))),
            };
            if Instant::now() >= until {
                return Err(why);
            }
            sleep(LOOK).await;
        }
    }
}

impl Turns {
    pub(crate) fn new(store: Store, owner: String) -> Turns {
        Turns { store, owner, counts: Mutex::default(), hosts: Mutex::default() }
    }

    /// The turn in this process at all of these, in an order that is the same for everybody; waits for it until `until`.
    pub(super) async fn here(
        &self,
        names: impl IntoIterator<Item = String>,
        until: Instant,
    ) -> Result<Here<'_>, Fault> {
        let names: BTreeSet<String> = names.into_iter().collect();
        let mut held = Vec::with_capacity(names.len());
        for name in &names {
            let lock = {
                let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
                // Forget what nobody waits for, so that names of long ago do not stay.
                counts.retain(|_, t| Arc::strong_count(t) > 1);
                Arc::clone(counts.entry(name.clone()).or_default())
            };
            held.push(timeout_at(until, lock.lock_owned()).await.map_err(|_| late(name))?);
        }
        Ok(Here { turns: self, names, held })
    }

    /// The leases of these, up to the first that another executor has or that could not be asked for.
    async fn leases<'n>(
        &self,
        names: &'n BTreeSet<String>,
    ) -> (Vec<Lease>, Option<Result<&'n str, windlass_store::Error>>) {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            match leases::acquire(&self.store, &format!("traffic/{name}"), &self.owner, LEASE).await {
                Ok(Some(lease)) => all.push(lease),
                Ok(None) => return (all, Some(Ok(name))),
                Err(error) => return (all, Some(Err(error))),
            }
        }
        (all, None)
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
