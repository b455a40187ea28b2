//! Secrets on the way into a GRANT. An ACCEPT of a task that needs secrets waits until they are sealed to its key; what
//! cannot be had ends the task before anything is granted. And what host steps gave on earlier attempts, which the steps
//! after them may refer to.

use super::Wave;
use crate::{
    dispatch::{Frame, Input, Say},
    plans::PlanView,
    secrets,
    shared::{Shared, Signal},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tokio::{
    task::JoinSet,
    time::{Duration, timeout},
};
use windlass_contracts::{frames::SealedSecrets, sealed::SealedError};
use windlass_domain::{
    ids::TaskId,
    plan::SpecProof,
    task::{TaskSpec, TaskState},
    work::{FailureClass, WaveWork, Work},
};
use windlass_store::{Error, Tx, tasks};

/// For the secrets of one task, however many places in Vault they are in.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of the secrets of one ACCEPT.
#[derive(Debug)]
pub(crate) enum Fetched {
    Sealed(SealedSecrets),
    /// It may be otherwise soon.
    NotNow(String),
    Never(String),
}

#[derive(Debug, Default)]
pub(super) struct Grants {
    /// Sealed to the ACCEPT with this nonce.
    sealed: HashMap<TaskId, (String, SealedSecrets)>,
    /// Nonces of the ACCEPTs whose secrets are being fetched.
    asked: HashMap<TaskId, String>,
    /// Why the last try brought none.
    why: HashMap<TaskId, String>,
    fetches: JoinSet<()>,
}

impl Grants {
    pub(super) fn sealed(&self, task: TaskId, nonce: &str) -> Option<&SealedSecrets> {
        self.sealed.get(&task).filter(|(n, _)| n == nonce).map(|(_, s)| s)
    }

    pub(super) fn why(&self, task: TaskId) -> Option<&String> {
        self.why.get(&task)
    }

    /// It has started, or never will.
    pub(super) fn forget(&mut self, task: TaskId) {
        self.sealed.remove(&task);
        self.why.remove(&task);
    }
}

impl Wave {
    /// What the plan has for a host in this segment, with its proof.
    pub(super) fn made(&self, view: &PlanView, host: &str) -> Option<Arc<(TaskSpec, SpecProof)>> {
        view.offer_at(&self.board.wave.step, self.board.segment, host).ok()
    }

    /// Names of the secrets a host's task needs.
    pub(super) fn needs(&self, host: &str) -> BTreeSet<String> {
        let offer = self.plan.as_ref().ok().and_then(|view| self.made(view, host));
        offer.map(|o| secrets::names(&o.0)).unwrap_or_default()
    }

    /// The ACCEPT as an input, if it may be granted now.
    pub(super) fn accept(
        &mut self,
        task: TaskId,
        instance: String,
        nonce: String,
        seal_to: Option<String>,
    ) -> Option<Input> {
        let row = self.board.tasks.get(&task)?;
        let names = self.needs(&row.task.host);
        let said = |nonce, instance| Input::Said { task, instance, say: Say::Accept { nonce, seal_to: None } };
        if names.is_empty() || row.task.state.is_settled() || self.grants.sealed(task, &nonce).is_some() {
            return Some(said(nonce, instance));
        }
        let Some(seal_to) = seal_to else {
            let reason = "the agent cannot take secrets: install the version of this control plane there".into();
            return Some(Input::TimedOut { task, reason, class: FailureClass::Refused });
        };
        if self.grants.asked.get(&task) == Some(&nonce) {
            return None;
        }
        self.grants.asked.insert(task, nonce.clone());
        while self.grants.fetches.try_join_next().is_some() {}
        let (shared, work, host) = (Arc::clone(&self.shared), self.claim.work.clone(), row.task.host.clone());
        let inbox = self.to_inbox.clone();
        self.grants.fetches.spawn(async move {
            let fetched = match timeout(PATIENCE, fetch(&shared, &work, &host, &names, &seal_to)).await {
                Ok(f) => f,
                Err(_) => Fetched::NotNow(format!("the secrets could not be had within {} s", PATIENCE.as_secs())),
            };
            // A wave that has ended listens no more, and needs them no more.
            let _ = inbox.send(Signal::Secrets { task, instance, nonce, fetched }).await;
        });
        None
    }

    /// What came of it, as an input.
    pub(super) fn fetched(&mut self, task: TaskId, instance: String, nonce: String, fetched: Fetched) -> Option<Input> {
        self.grants.asked.remove(&task);
        let why = match fetched {
            Fetched::Sealed(s) => {
                self.grants.why.remove(&task);
                self.grants.sealed.insert(task, (nonce.clone(), s));
                return Some(Input::Said { task, instance, say: Say::Accept { nonce, seal_to: None } });
            }
            Fetched::NotNow(why) => {
                tracing::warn!(%task, why, "no secrets yet");
                self.grants.why.insert(task, why);
                return None;
            }
            Fetched::Never(why) => why,
        };
        tracing::warn!(%task, why, "no secrets");
        let granted = self.board.tasks.get(&task).is_some_and(|t| t.task.state == TaskState::Granted);
        if granted {
            // An earlier executor granted it, and the agent never got that grant. Only its word that it will not start it
            // can settle the task.
            self.grants.why.insert(task, why);
            self.fences.push(task);
            return None;
        }
        Some(Input::TimedOut { task, reason: format!("not started: {why}"), class: FailureClass::Refused })
    }

    pub(super) async fn send_fences(&mut self) {
        for task in std::mem::take(&mut self.fences) {
            self.send(task, Frame::Fence).await;
        }
    }

    /// Outputs that the host's steps refer to: of earlier steps of the flow, and of its own on earlier attempts.
    pub(super) fn outputs(&self, host: &str) -> Map<String, Value> {
        let Ok(view) = &self.plan else { return Map::new() };
        let Some(offer) = self.made(view, host) else { return Map::new() };
        let own = self.board.carried.get(host);
        secrets::steps(&offer.0)
            .into_iter()
            .filter_map(|step| {
                let value = own.and_then(|o| o.get(&step)).or_else(|| self.board.wave.outputs.get(&step))?;
                Some((step, value.clone()))
            })
            .collect()
    }
}

async fn fetch(shared: &Shared, work: &Work, host: &str, names: &BTreeSet<String>, seal_to: &str) -> Fetched {
    match secrets::resolve(shared, work, Some(host), names).await {
        Ok(values) => match SealedSecrets::seal(&values, seal_to) {
            Ok(s) => Fetched::Sealed(s),
            Err(e @ (SealedError::Key | SealedError::Open | SealedError::Seal)) => Fetched::Never(e.to_string()),
        },
        Err(why) if why.may_pass() => Fetched::NotNow(why.to_string()),
        Err(why) => Fetched::Never(why.to_string()),
    }
}

/// Outputs of host steps by host and step.
pub(crate) type Carried = BTreeMap<String, Map<String, Value>>;

/// What hosts that are tried again gave before: the steps before `start_at` do not run once more.
pub(crate) async fn carried(
    tx: &mut Tx,
    work: &Work,
    wave: &WaveWork,
    names: &BTreeMap<String, Arc<Vec<String>>>,
) -> Result<Carried, Error> {
    let mut out = Carried::new();
    for h in wave.hosts.iter().filter(|h| h.attempt > 1 && h.start_at > 0) {
        let Some(names) = names.get(&h.host) else { continue };
        let given = out.entry(h.host.clone()).or_default();
        for row in tasks::earlier_attempts(tx, work.deployment, &wave.step, 0, &h.host, h.attempt).await? {
            given.extend(crate::dispatch::outputs_of(&row.task, names));
        }
        given.retain(|step, _| names.iter().take(h.start_at as usize).any(|n| n == step));
    }
    Ok(out)
}
