//! One change of one deployment: the transaction in which the state, its effects and its events are stored together.

use crate::{Error, Refused, amend, gate, planner::Planned, promotion, rollback};
use chrono::Utc;
use serde_json::json;
use std::{future::Future, pin::Pin};
use uuid::Uuid;
use windlass_contracts::command::CommandOutcome;
use windlass_domain::{
    Timestamp,
    deployment::{Deployment, Effect, Input, Refusal, State},
    event::{Aggregate, NewEvent, Severity},
    ids::{ArtifactId, BundleId, CommandId, DeploymentId, EventId, WorkId},
    work::{Desired, Work},
};
use windlass_store::{
    Store, Tx, decisions, deployments, events,
    latches::{self, Latch},
    marks, tasks, works,
};

/// Who makes the change, for events and audit.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    /// `person:<name>`, `hook:<source>`, `service:scheduler`.
    pub actor: String,
    pub trace: Option<String>,
}

impl Cause {
    pub(crate) fn own(trace: Option<String>) -> Cause {
        Cause { actor: "service:scheduler".into(), trace }
    }
}

/// Doorbells to ring once the change is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ring {
    Work {
        pool: String,
        id: WorkId,
    },
    Outcome(CommandId),
    /// This scheduler (or another) should look at it.
    Deployment(DeploymentId),
    Bundle(BundleId),
    /// Promotions that policies ask for.
    Promotions,
}

/// An open change. Nothing of it exists until [`Change::commit`].
pub(crate) struct Change {
    pub tx: Tx,
    pub now: Timestamp,
    pub cause: Cause,
    /// Rollbacks that were requested in it and have yet to be started.
    pub born: Vec<(Deployment, Planned)>,
    /// A rollback that was planned before the transaction, if one may follow from it.
    pub ready: Option<rollback::Ready>,
    pub rings: Vec<Ring>,
}

pub(crate) fn mint() -> WorkId {
    WorkId(Uuid::now_v7())
}

impl Change {
    pub(crate) async fn begin(store: &Store, cause: Cause) -> Result<Change, Error> {
        let mut tx = store.write().await?;
        let now = tx.now().await?;
        Ok(Change { tx, now, cause, born: Vec::new(), ready: None, rings: Vec::new() })
    }

    pub(crate) async fn commit(self) -> Result<Vec<Ring>, Error> {
        self.tx.commit().await?;
        Ok(self.rings)
    }

    /// Stores a new deployment and what follows from it.
    pub(crate) async fn create(
        &mut self,
        mut d: Deployment,
        effects: Vec<Effect>,
        planned: &Planned,
    ) -> Result<Deployment, Error> {
        deployments::insert_plan(&mut self.tx, d.id, &d.plan_digest, &planned.plan, self.now).await?;
        self.effects(&mut d, effects).await?;
        deployments::insert(&mut self.tx, &d).await?;
        self.unconnected(&d, planned, "planned").await?;
        self.start_if_free(d, 1, Some(planned)).await
    }

    /// Applies an input to a stored deployment and saves it. `Ok(Err(_))`: refused, nothing is written.
    pub(crate) async fn apply(
        &mut self,
        d: &Deployment,
        version: u64,
        input: Input,
        planned: Option<&Planned>,
    ) -> Result<Result<Deployment, Refusal>, Error> {
        let asked = match &input {
            Input::Rollback { by, reason, .. } => Some((by.clone(), reason.clone())),
            _ => None,
        };
        let amended = match &input {
            Input::Amend { facts, .. } => Some(facts.digest.clone()),
            _ => d.amendment.as_ref().map(|a| a.facts.digest.clone()),
        };
        let (mut next, effects) = match d.apply(input, self.now, &mut mint) {
            Ok(done) => done,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if next == *d && effects.is_empty() {
            let next = self.start_if_free(next, version, planned).await?;
            return Ok(Ok(next));
        }
        if next.plan_digest != d.plan_digest
            && let Some(p) = planned
        {
            deployments::insert_plan(&mut self.tx, next.id, &next.plan_digest, &p.plan, self.now).await?;
        }
        self.effects(&mut next, effects).await?;
        if next.rolled_back_by.is_some() && next.rolled_back_by != d.rolled_back_by {
            // From the request on, not from the rollback's start: what is aborted for it must not be followed by the next release.
            let (by, reason) = asked.unwrap_or_else(|| {
                let why = next.end.as_ref().map(|e| e.reason.clone()).unwrap_or_default();
                ("windlass".into(), format!("version {} is rolled back: {why}", next.version))
            });
            self.hold(&next, &by, &reason).await?;
        }
        if amended.is_some_and(|digest| next.plan_digest == digest && d.plan_digest != digest) {
            next.release = amend::release_id(d.id, &next.plan_digest);
        }
        deployments::save(&mut self.tx, &next, version, self.now).await?;
        self.rings.extend(next.turn.as_ref().map(|t| Ring::Bundle(t.bundle)));
        for (r, planned) in std::mem::take(&mut self.born) {
            let r = self.start_if_free(r, 1, Some(&planned)).await?;
            if r.state == State::Queued {
                self.rings.push(Ring::Deployment(r.id));
            }
        }
        Ok(Ok(self.start_if_free(next, version + 1, planned).await?))
    }

    /// Starts a queued deployment in the same transaction when the lock is free, it is next, and its plan is what was
    /// approved. `planned` is the plan as of now; without it the start is left to a later look. What was taken up again needs
    /// none: it keeps the plan that was approved.
    ///
    /// Boxed because it and [`Change::apply`] call each other: a changed plan that needs no approval is queued again.
    fn start_if_free<'a>(
        &'a mut self,
        d: Deployment,
        version: u64,
        planned: Option<&'a Planned>,
    ) -> Pin<Box<dyn Future<Output = Result<Deployment, Error>> + Send + 'a>> {
        Box::pin(async move {
            let again = d.run > 1;
            if d.state != State::Queued || (planned.is_none() && !again) {
                return Ok(d);
            }
            // Most that are looked at here have to wait, and lock nothing.
            if !deployments::may_lock(&mut self.tx, d.id, &d.project, &d.environment).await? {
                return Ok(d);
            }
            latches::share(&mut self.tx, Latch::Catalog).await?;
            if let Some(planned) = planned.filter(|_| !again)
                && windlass_store::catalog::stamp(&mut self.tx).await? != planned.stamp
            {
                self.rings.push(Ring::Deployment(d.id));
                return Ok(d);
            }
            // Behind the row nothing else starts here, and nobody says what stands against a start. Who is next is asked again.
            deployments::lock_row(&mut self.tx, &d.project, &d.environment).await?;
            if deployments::next_in_queue(&mut self.tx, &d.project, &d.environment).await? != Some(d.id) {
                return Ok(d);
            }
            let changed = planned.filter(|p| !again && p.facts.digest != d.plan_digest);
            let input = match (self.may_start(&d).await?, changed) {
                (Err((code, reason)), _) => {
                    self.refused_event(d.id, &d.project, &d.environment, code, &reason).await?;
                    Input::Cancel { by: "windlass".into(), reason }
                }
                (Ok(()), Some(p)) => Input::PlanChanged(Box::new(p.facts.clone())),
                (Ok(()), None) => match deployments::try_lock(&mut self.tx, &d, self.now).await? {
                    Some(fence) => Input::LockTaken { fence },
                    None => return Ok(d),
                },
            };
            let trace = self.cause.trace.clone();
            let cause = std::mem::replace(&mut self.cause, Cause::own(trace));
            if let (Input::LockTaken { .. }, Some(planned)) = (&input, planned.filter(|_| !again)) {
                self.unconnected(&d, planned, "started").await?;
            }
            let next = self.apply(&d, version, input, planned).await?;
            self.cause = cause;
            Ok(next.unwrap_or(d))
        })
    }

    /// Whether a queued deployment may start; asked behind the lock's row, so that whatever started meanwhile is seen.
    async fn may_start(&mut self, d: &Deployment) -> Result<Result<(), Refused>, Error> {
        if d.run > 1
            && let Some(why) = gate::superseded(&mut self.tx, d, false).await?
        {
            return Ok(Err(why));
        }
        gate::may_start(self, d).await
    }

    /// Says which hosts are not connected, where that is checked.
    async fn unconnected(&mut self, d: &Deployment, planned: &Planned, moment: &str) -> Result<(), Error> {
        if planned.unconnected.is_empty() {
            return Ok(());
        }
        let left_out = planned.plan.left_out.iter().any(|l| planned.unconnected.contains(&l.host));
        let payload = json!({ "hosts": planned.unconnected, "left_out": left_out, "as_it_is": moment });
        self.event(d, "deployment.hosts_not_connected", Severity::Alert, payload).await
    }

    async fn effects(&mut self, d: &mut Deployment, mut effects: Vec<Effect>) -> Result<(), Error> {
        // Rows are locked in one order everywhere: works before event heads. An executor's turn does the same.
        let locks_works = |e: &Effect| {
            use Effect::*;
            matches!(e, AbortWorks | AbortWork(_) | HoldWorks(_) | StopTasks { .. } | OverrideTasks { .. })
        };
        effects.sort_by_key(|e| !locks_works(e));
        for e in effects {
            match e {
                Effect::Event { what, severity, payload } => self.event(d, what, severity, payload).await?,
                Effect::StartWork { id, spec } => {
                    let work = Work {
                        id,
                        deployment: d.id,
                        project: d.project.clone(),
                        environment: d.environment.clone(),
                        pool: d.pool.clone(),
                        desired: Desired::Run,
                        fence: d.lock.unwrap_or(0),
                        plan_digest: d.plan_digest.clone(),
                        spec,
                        trace: d.trace.clone().or_else(|| self.cause.trace.clone()),
                    };
                    works::insert(&mut self.tx, &work).await?;
                    self.rings.push(Ring::Work { pool: work.pool, id });
                }
                Effect::AbortWorks => {
                    works::abort(&mut self.tx, d.id).await?;
                    let ids = d.works_in_flight();
                    self.rings.extend(ids.into_iter().map(|id| Ring::Work { pool: d.pool.clone(), id }));
                }
                Effect::FreeLock => {
                    deployments::unlock(&mut self.tx, d.id, &d.project, &d.environment).await?;
                    let next = deployments::queue(&mut self.tx, &d.project, &d.environment).await?;
                    self.rings.extend(next.first().map(|id| Ring::Deployment(*id)));
                }
                Effect::RecordGood => self.record_good(d).await?,
                Effect::RequestRollback { mode, id, by } => {
                    Box::pin(rollback::request(self, d, mode, id, &by)).await?;
                }
                Effect::TellRolledBack { of } => self.tell_rolled_back(of).await?,
                Effect::HoldWorks(hold) => {
                    works::hold(&mut self.tx, d.id, hold).await?;
                    let ids = d.works_in_flight();
                    self.rings.extend(ids.into_iter().map(|id| Ring::Work { pool: d.pool.clone(), id }));
                }
                Effect::AbortWork(id) => {
                    works::abort_one(&mut self.tx, id).await?;
                    self.rings.push(Ring::Work { pool: d.pool.clone(), id });
                }
                Effect::StopTasks { hosts, by, reason } => {
                    // A host may have no task yet: then its executor finds the word when it makes the task.
                    for (work, hosts) in d.running_on(&hosts) {
                        tasks::insert_host_stops(&mut self.tx, work, &hosts, (&by, &reason, self.now)).await?;
                        self.ring_work(d, work);
                    }
                    for (task, work) in tasks::open_of_hosts(&mut self.tx, d.id, &hosts, false).await? {
                        let stop = tasks::Stop { task, by: by.clone(), reason: reason.clone(), at: self.now };
                        tasks::insert_stop(&mut self.tx, work, &stop).await?;
                        self.ring_work(d, work);
                    }
                }
                Effect::Hold { by, reason } => self.hold(d, &by, &reason).await?,
                Effect::OverrideTasks { hosts, by, reason } => {
                    for (task, work) in tasks::open_of_hosts(&mut self.tx, d.id, &hosts, true).await? {
                        let word = tasks::Override { task, by: by.clone(), reason: reason.clone(), at: self.now };
                        tasks::insert_override(&mut self.tx, work, &word).await?;
                        self.ring_work(d, work);
                    }
                }
            }
        }
        Ok(())
    }

    /// Wakes the executors of a work, once.
    fn ring_work(&mut self, d: &Deployment, id: WorkId) {
        let ring = Ring::Work { pool: d.pool.clone(), id };
        if !self.rings.contains(&ring) {
            self.rings.push(ring);
        }
    }

    async fn record_good(&mut self, d: &Deployment) -> Result<(), Error> {
        let release = deployments::release(&mut self.tx, d.release).await?.ok_or(Error::Missing("release"))?;
        // What ships nothing is no version to go back to.
        if release.artifact == ArtifactId::NONE {
            return Ok(());
        }
        let good = deployments::Good {
            release: d.release,
            artifact: release.artifact,
            deployment: d.id,
            version: d.version.clone(),
            at: self.now,
        };
        deployments::record_good(&mut self.tx, &d.project, &d.environment, good).await?;
        promotion::verified(self, d, &release).await
    }

    async fn tell_rolled_back(&mut self, of: DeploymentId) -> Result<(), Error> {
        let Some(original) = deployments::get(&mut self.tx, of).await? else { return Ok(()) };
        // It may hold its own opinion by now (rolled back twice over); then there is nothing to tell.
        if let Ok((mut next, effects)) = original.deployment.apply(Input::RolledBack, self.now, &mut mint) {
            for e in effects {
                if let Effect::Event { what, severity, payload } = e {
                    self.event(&next, what, severity, payload).await?;
                }
            }
            next.rolled_back_by = original.deployment.rolled_back_by;
            deployments::save(&mut self.tx, &next, original.version, self.now).await?;
            self.rings.extend(next.turn.as_ref().map(|t| Ring::Bundle(t.bundle)));
        }
        Ok(())
    }

    pub(crate) async fn event(
        &mut self,
        d: &Deployment,
        what: &str,
        severity: Severity,
        payload: serde_json::Value,
    ) -> Result<(), Error> {
        let of = (Aggregate::Deployment, d.id.to_string());
        self.append(of, (&d.project, &d.environment), what, severity, payload).await
    }

    /// An event of the environment that `d` belongs to.
    pub(crate) async fn environment_event(
        &mut self,
        d: &Deployment,
        what: &str,
        severity: Severity,
        payload: serde_json::Value,
    ) -> Result<(), Error> {
        let of = (Aggregate::Environment, marks::aggregate_id(&d.project, Some(&d.environment)));
        self.append(of, (&d.project, &d.environment), what, severity, payload).await
    }

    async fn append(
        &mut self,
        (aggregate, aggregate_id): (Aggregate, String),
        (project, environment): (&str, &str),
        what: &str,
        severity: Severity,
        payload: serde_json::Value,
    ) -> Result<(), Error> {
        let event = NewEvent {
            id: EventId(Uuid::now_v7()),
            aggregate,
            aggregate_id,
            what: what.into(),
            project: Some(project.into()),
            environment: Some(environment.into()),
            severity,
            actor: self.cause.actor.clone(),
            at: self.now,
            payload,
            trace: self.cause.trace.clone(),
        };
        events::append(&mut self.tx, event).await?;
        Ok(())
    }

    /// Writes the one outcome of a command into this change.
    pub(crate) async fn outcome(
        &mut self,
        command: CommandId,
        deployment: Option<DeploymentId>,
        result: Result<String, (&str, String)>,
    ) -> Result<(), Error> {
        let (accepted, code, detail) = match result {
            Ok(detail) => (true, "ok".to_owned(), detail),
            Err((code, detail)) => (false, code.to_owned(), detail),
        };
        let outcome = CommandOutcome { accepted, code, detail, deployment, decided_at: Utc::now() };
        decisions::decide(&mut self.tx, command, &outcome).await?;
        self.rings.push(Ring::Outcome(command));
        Ok(())
    }

    /// Records that something asked for could not be planned: by whom it was asked, why not.
    pub(crate) async fn refused_event(
        &mut self,
        id: DeploymentId,
        project: &str,
        environment: &str,
        code: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let of = (Aggregate::Deployment, id.to_string());
        let payload = json!({ "reason": reason, "code": code });
        self.append(of, (project, environment), "deployment.refused", Severity::Alert, payload).await
    }
}
