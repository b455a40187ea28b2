//! The transition function: requests, approvals, time, lock, abort, rollback and the end. What happens inside a run is in
//! `run.rs`, what people do about failures in `intervene.rs`.

use super::{
    amend::Wish,
    table::{self, Answer, Verb},
    *,
};
use crate::approval::{self, Decision};
use serde_json::json;

/// Everything a new deployment needs besides its plan.
#[derive(Debug, Clone, PartialEq)]
pub struct New {
    pub id: DeploymentId,
    pub project: String,
    pub environment: String,
    pub release: ReleaseId,
    pub version: String,
    pub kind: ReleaseKind,
    pub rollback: Option<Rollback>,
    pub requested_by: String,
    pub note: String,
    pub trace: Option<String>,
    pub pool: String,
    pub only_hosts: Vec<String>,
    pub not_before: Option<Timestamp>,
    pub expires_at: Timestamp,
    pub plan: PlanFacts,
}

/// A transition under way: the deployment being changed and what it leads to.
pub(super) struct Step<'a> {
    pub d: Deployment,
    pub effects: Vec<Effect>,
    pub now: Timestamp,
    pub mint: &'a mut dyn FnMut() -> WorkId,
}

type Applied = (Deployment, Vec<Effect>);

impl Deployment {
    /// A requested and planned deployment, moved on as far as it can go by itself.
    pub fn request(new: New, now: Timestamp, mint: &mut dyn FnMut() -> WorkId) -> Applied {
        Deployment::request_in_turn(new, None, now, mint)
    }

    /// [`Deployment::request`] of a member of a bundle.
    pub fn request_in_turn(
        new: New,
        turn: Option<crate::bundle::Turn>,
        now: Timestamp,
        mint: &mut dyn FnMut() -> WorkId,
    ) -> Applied {
        let d = Deployment {
            turn,
            id: new.id,
            project: new.project,
            environment: new.environment,
            release: new.release,
            version: new.version,
            kind: new.kind,
            rollback: new.rollback,
            state: State::AwaitingApproval,
            requested_by: new.requested_by,
            requested_at: now,
            note: new.note,
            trace: new.trace,
            pool: new.pool,
            only_hosts: new.only_hosts,
            plan_digest: new.plan.digest,
            rules: new.plan.rules,
            approvals: Vec::new(),
            not_before: new.not_before,
            expires_at: new.expires_at,
            on_failure: new.plan.on_failure,
            steps: new.plan.steps,
            context: new.plan.context,
            drifted_from: None,
            claim: None,
            patience: new.plan.patience,
            attention: None,
            run: 1,
            reopened: None,
            resume: None,
            amendment: None,
            automatic: new.plan.automatic,
            pause: None,
            end: None,
            then_rollback: None,
            then_automatic: None,
            rolled_back_by: None,
            lock: None,
            started_at: None,
            ended_at: None,
        };
        let mut s = Step { d, effects: Vec::new(), now, mint };
        s.event("deployment.requested", Severity::Info, json!({ "by": s.d.requested_by, "note": s.d.note }));
        s.event(
            "deployment.planned",
            Severity::Info,
            json!({ "digest": s.d.plan_digest, "hosts": s.d.hosts().count() }),
        );
        s.approval_progress(true);
        (s.d, s.effects)
    }

    /// The one way a deployment changes.
    pub fn apply(&self, input: Input, now: Timestamp, mint: &mut dyn FnMut() -> WorkId) -> Result<Applied, Refusal> {
        if let Some(verb) = Verb::of(&input) {
            match table::answer(self.state, verb) {
                Answer::Moves(_) => {}
                Answer::Idempotent(_) => return Ok((self.clone(), Vec::new())),
                Answer::Refused { code, remedy } => {
                    return Err(Refusal::Verb { state: self.state, verb, code, remedy });
                }
            }
        }
        let mut s = Step { d: self.clone(), effects: Vec::new(), now, mint };
        s.take(input)?;
        s.progress();
        s.settle_claim(self.claim.as_ref());
        Ok((s.d, s.effects))
    }
}

impl Step<'_> {
    /// A person's verb comes here only in states that take it: the table has answered for all others.
    fn take(&mut self, input: Input) -> Result<(), Refusal> {
        let state = self.d.state;
        match input {
            Input::Decide(a) if state == State::AwaitingApproval => self.decide(a)?,
            Input::Decide(a) if self.d.amendment.is_some() => self.decide_amendment(a)?,
            Input::Decide(_) => {
                return Err(Refusal::NothingToDo(
                    "its plan is approved, and no other plan waits for a decision".into(),
                ));
            }
            Input::Accept { by, digest } => self.accept(&by, &digest)?,
            // What has run is not as if it had never been asked for.
            Input::Cancel { by, reason } if self.d.run > 1 => self.end(State::Aborted, &by, &reason),
            Input::Cancel { by, reason } => self.end(State::Cancelled, &by, &reason),
            Input::Pause { by, reason } => self.pause(by, reason)?,
            Input::Resume { by } => self.resume(&by)?,
            Input::Confirm { by, wave } => self.confirm(&by, wave)?,
            Input::Choose { by, step, branch } => self.choose(&by, &step, &branch)?,
            Input::Claim { by, take_over, reason } => self.claim(&by, take_over, &reason)?,
            Input::Unclaim { by } => self.unclaim(&by)?,
            Input::Retry { by, hosts, step, whole_wave } => {
                let scope = Scope { hosts, step, whole_wave };
                if state.is_terminal() { self.reopen(&by, scope)? } else { self.retry(&by, &scope)? }
            }
            Input::Amend { by, inputs, facts, hosts, reason } => {
                let by = By { who: by, reason, at: self.now };
                self.amend(Wish { by, inputs, facts: *facts, hosts })?;
            }
            Input::Skip { by, hosts } => self.skip(&by, &hosts)?,
            Input::Ignore { by, hosts, reason } => self.ignore(&by, &hosts, &reason)?,
            Input::Exclude { by, hosts, reason } => self.exclude(&by, &hosts, &reason)?,
            Input::Stop { by, hosts, reason } => self.stop(&by, hosts, &reason)?,
            Input::Fail { by, step, reason } => self.fail(&by, &step, &reason)?,
            Input::Succeed { by, step, hosts, reason } => self.call_well(&by, step.as_deref(), &hosts, &reason)?,
            Input::Override { by, hosts, reason } => self.override_unknown(&by, hosts, &reason)?,
            Input::Abort { by, reason } => self.abort(&by, &reason),
            Input::Rollback { by, mode, rollback, reason } => self.rollback(&by, mode, rollback, &reason)?,
            Input::RolledBack if state.is_terminal() && self.d.rolled_back_by.is_some() => {
                self.d.state = State::RolledBack;
                self.event("deployment.rolled_back", Severity::Notice, json!({ "by": self.d.rolled_back_by }));
            }
            Input::RolledBack => return Err(self.wrong("marked as rolled back", "")),
            Input::PlanChanged(_) if self.d.run > 1 => {
                return Err(self.wrong("planned anew", ": it was taken up again, and keeps the plan it began with"));
            }
            Input::PlanChanged(plan) if state.is_before_running() => self.plan_changed(*plan),
            Input::PlanChanged(_) => return Err(self.wrong("planned anew", "")),
            Input::TurnCame => match &mut self.d.turn {
                Some(t) if !t.released && state.is_before_running() => {
                    t.released = true;
                    // It waited for others; its own time to wait begins now.
                    self.d.expires_at = self.d.expires_at.max(self.now + (self.d.expires_at - self.d.requested_at));
                }
                _ => return Err(self.wrong("told that its turn has come", "")),
            },
            Input::LockTaken { fence } if state == State::Queued => self.start(fence),
            Input::LockTaken { .. } => return Err(self.wrong("started", "")),
            Input::WorkSettled { work, result } => {
                let result = self.forced_result(work, result);
                self.work_settled(work, result)?;
            }
            Input::Tick => {}
        }
        Ok(())
    }

    fn start(&mut self, fence: u64) {
        self.d.state = State::Running;
        self.d.lock = Some(fence);
        // Taken up again, it is still the run that began then.
        self.d.started_at.get_or_insert(self.now);
        let payload = json!({ "fence": fence, "digest": self.d.plan_digest, "run": self.d.run });
        self.event("deployment.started", Severity::Notice, payload);
        self.take_up();
    }

    /// Nothing new starts, in works that run neither.
    fn pause(&mut self, by: String, reason: String) -> Result<(), Refusal> {
        if self.d.pause.is_some() {
            return Err(Refusal::NothingToDo("the deployment is already paused by an operator".into()));
        }
        self.event("deployment.paused", Severity::Notice, json!({ "by": by, "reason": reason }));
        self.d.pause = Some(By { who: by, reason, at: self.now });
        self.effects.push(Effect::HoldWorks(true));
        Ok(())
    }

    fn resume(&mut self, by: &str) -> Result<(), Refusal> {
        if self.d.pause.take().is_none() {
            return Err(Refusal::NothingToDo("no operator paused it; `waiting_on` says what it waits for".into()));
        }
        self.event("deployment.resumed", Severity::Info, json!({ "by": by }));
        self.effects.push(Effect::HoldWorks(false));
        Ok(())
    }

    /// What follows by itself, from the state alone.
    fn progress(&mut self) {
        if self.d.state.is_before_running() && self.now >= self.d.expires_at && !self.held() {
            // What has run is not as if it had never been asked for.
            let state = if self.d.run > 1 { State::Failed } else { State::Expired };
            self.end(state, "windlass", "it was not started in time");
        }
        if self.d.state == State::AwaitingApproval {
            self.approval_progress(false);
        }
        if self.d.state == State::Scheduled && !self.held() && self.d.not_before.is_none_or(|t| t <= self.now) {
            self.d.state = State::Queued;
            self.event("deployment.queued", Severity::Info, json!({}));
        }
        // Before anything starts: when nobody came in time, nothing does.
        self.attend();
        if matches!(self.d.state, State::Running | State::Paused) {
            self.run_progress();
        }
        self.attend();
        if self.d.state == State::Aborting && self.d.works_in_flight().is_empty() {
            let end = self.d.end.clone();
            self.close("the deployment was aborted before its turn");
            self.d.state = State::Aborted;
            self.d.ended_at = Some(self.now);
            let unknown = self.d.unknown_hosts();
            self.event("deployment.aborted", Severity::Alert, json!({ "end": end, "unknown_hosts": unknown }));
            if let Some((mode, id)) = self.d.then_rollback.take() {
                let by = end.map(|e| e.who).unwrap_or_default();
                self.effects.push(Effect::RequestRollback { mode, id: Some(id), by });
            }
            if let Some(mode) = self.d.then_automatic.take() {
                self.effects.push(Effect::RequestRollback { mode, id: None, by: "windlass".into() });
            }
        }
        // An unknown host keeps the lock: what it may still be doing must not meet another release.
        if self.d.state.is_terminal() && self.d.lock.is_some() && self.d.unknown_hosts().is_empty() {
            self.d.lock = None;
            self.effects.push(Effect::FreeLock);
        }
        if self.d.state.is_terminal() {
            self.attend();
        }
    }

    /// A person takes a plan that changed where nobody has to approve.
    fn accept(&mut self, by: &str, digest: &str) -> Result<(), Refusal> {
        let Some(asked_for) = self.d.drifted_from.clone() else {
            return Err(Refusal::NothingToDo("its plan waits for approvals: approve or reject it".into()));
        };
        if digest != self.d.plan_digest {
            let current = self.d.plan_digest.clone();
            return Err(approval::Refusal::OtherPlan { given: digest.into(), current }.into());
        }
        self.d.drifted_from = None;
        self.event("deployment.plan_accepted", Severity::Info, json!({ "by": by, "digest": digest, "old": asked_for }));
        Ok(())
    }

    fn approval_progress(&mut self, announce: bool) {
        if let Some(old) = &self.d.drifted_from {
            if announce {
                let payload =
                    json!({ "drift": { "old": old, "new": self.d.plan_digest }, "digest": self.d.plan_digest });
                self.event("deployment.awaiting_approval", Severity::Action, payload);
            }
            return;
        }
        let missing = approval::missing(&self.d.rules, &self.d.requested_by, &self.d.plan_digest, &self.d.approvals);
        if !missing.is_empty() {
            if announce {
                self.event(
                    "deployment.awaiting_approval",
                    Severity::Action,
                    json!({ "missing": missing, "digest": self.d.plan_digest }),
                );
            }
            return;
        }
        let people: Vec<&str> = self.d.approvals.iter().map(|a| a.person.as_str()).collect();
        let payload = json!({ "digest": self.d.plan_digest, "by": people, "rules": self.d.rules.len() });
        self.event("deployment.approved", Severity::Info, payload);
        match self.d.not_before {
            Some(at) if at > self.now => {
                self.d.state = State::Scheduled;
                self.event("deployment.scheduled", Severity::Info, json!({ "not_before": at }));
            }
            _ if self.held() => {
                self.d.state = State::Scheduled;
                self.event("deployment.scheduled", Severity::Info, json!({ "turn": self.d.turn }));
            }
            _ => {
                self.d.state = State::Queued;
                self.event("deployment.queued", Severity::Info, json!({}));
            }
        }
    }

    /// Its turn in its bundle has not come.
    fn held(&self) -> bool {
        self.d.is_held()
    }

    fn decide(&mut self, a: Approval) -> Result<(), Refusal> {
        let d = &self.d;
        approval::check(
            &d.rules,
            &d.requested_by,
            &d.plan_digest,
            &d.approvals,
            &a.person,
            &a.plan_digest,
            a.decision,
        )?;
        let payload = json!({ "by": a.person, "digest": a.plan_digest, "comment": a.comment });
        match a.decision {
            Decision::Approve => {
                self.event("deployment.approval_given", Severity::Info, payload);
                self.d.approvals.push(a);
            }
            Decision::Reject => {
                let (person, comment) = (a.person.clone(), a.comment.clone());
                self.d.approvals.push(a);
                self.end(State::Rejected, &person, &comment);
            }
        }
        Ok(())
    }

    fn plan_changed(&mut self, plan: PlanFacts) {
        let old = std::mem::replace(&mut self.d.plan_digest, plan.digest);
        let voided = self.d.approvals.len();
        self.d.rules = plan.rules;
        self.d.on_failure = plan.on_failure;
        self.d.steps = plan.steps;
        self.d.context = plan.context;
        self.d.patience = plan.patience;
        self.d.automatic = plan.automatic;
        self.d.approvals.clear();
        self.d.state = State::AwaitingApproval;
        // Who approves decides anew; where nobody does, what was asked for is not what would run: somebody has to accept it.
        let asked_for = self.d.drifted_from.take().unwrap_or_else(|| old.clone());
        self.d.drifted_from = Some(asked_for).filter(|a| self.d.rules.is_empty() && *a != self.d.plan_digest);
        let payload = json!({ "old": old, "new": self.d.plan_digest, "voided_approvals": voided });
        self.event("deployment.plan_changed", Severity::Action, payload);
        self.approval_progress(true);
    }

    pub(super) fn abort(&mut self, by: &str, reason: &str) {
        self.d.state = State::Aborting;
        (self.d.pause, self.d.amendment) = (None, None);
        self.d.end = Some(By { who: by.into(), reason: reason.into(), at: self.now });
        self.event("deployment.aborting", Severity::Notice, json!({ "by": by, "reason": reason }));
        self.effects.push(Effect::AbortWorks);
    }

    fn rollback(&mut self, by: &str, mode: RollbackMode, id: DeploymentId, reason: &str) -> Result<(), Refusal> {
        if self.d.kind == ReleaseKind::Rollback {
            return Err(Refusal::Invalid("a rollback is not rolled back; release the version you want instead".into()));
        }
        if self.d.rolled_back_by.is_some() {
            return Err(Refusal::NothingToDo("a rollback of it was requested already".into()));
        }
        match self.d.state {
            State::Running | State::Paused => {
                self.d.rolled_back_by = Some(id);
                self.d.then_rollback = Some((mode, id));
                self.abort(by, reason);
            }
            _ => {
                self.d.rolled_back_by = Some(id);
                self.effects.push(Effect::RequestRollback { mode, id: Some(id), by: by.into() });
            }
        }
        self.event(
            "deployment.rollback_requested",
            Severity::Notice,
            json!({ "by": by, "reason": reason, "rollback": id }),
        );
        Ok(())
    }

    /// Ends the deployment; the lock is freed by `progress` when no host is unknown.
    pub(super) fn end(&mut self, state: State, by: &str, reason: &str) {
        self.d.state = state;
        (self.d.pause, self.d.amendment, self.d.resume) = (None, None, None);
        self.d.ended_at = Some(self.now);
        if state == State::Failed {
            self.close("the deployment failed before its turn");
        }
        if state != State::Succeeded {
            self.d.end = Some(By { who: by.into(), reason: reason.into(), at: self.now });
        }
        let (what, severity) = match state {
            State::Succeeded => ("deployment.succeeded", Severity::Notice),
            State::Failed => ("deployment.failed", Severity::Alert),
            State::Rejected => ("deployment.rejected", Severity::Notice),
            State::Expired => ("deployment.expired", Severity::Notice),
            State::Aborted => ("deployment.aborted", Severity::Alert),
            _ => ("deployment.cancelled", Severity::Notice),
        };
        let unknown = self.d.unknown_hosts();
        self.event(what, severity, json!({ "by": by, "reason": reason, "unknown_hosts": unknown }));
    }

    /// At an end that is no success nothing is left that looks as if it would still happen.
    fn close(&mut self, reason: &str) {
        for i in 0..self.d.steps.len() {
            // A subflow that a step within has failed has failed itself.
            let mut failed = match &self.d.steps[i].kind {
                StepRunKind::Leave { scope } => self
                    .d
                    .within(scope)
                    .iter()
                    .any(|w| self.d.steps[*w].state == StepState::Failed || self.d.has_failed(*w)),
                _ => false,
            };
            let s = &mut self.d.steps[i];
            s.end_tries();
            if let StepRunKind::Rollout(r) = &mut s.kind {
                r.stop(reason);
                failed = r.waves.iter().any(|w| w.state == WaveState::Failed);
            }
            s.asks = None;
            if let Some(r) = &mut s.repeat {
                r.next_at = None;
            }
            s.state = match s.state {
                StepState::Running if failed => StepState::Failed,
                StepState::Waiting if failed && matches!(s.kind, StepRunKind::Leave { .. }) => StepState::Failed,
                StepState::Running | StepState::Waiting => StepState::Stopped,
                over => over,
            };
        }
    }

    pub(super) fn event(&mut self, what: &'static str, severity: Severity, mut payload: serde_json::Value) {
        if let Some(o) = payload.as_object_mut() {
            o.entry("version").or_insert_with(|| self.d.version.clone().into());
            o.insert("state".into(), self.d.state.as_str().into());
        }
        self.effects.push(Effect::Event { what, severity, payload });
    }

    pub(super) fn wrong(&self, verb: &'static str, hint: &'static str) -> Refusal {
        Refusal::WrongState { state: self.d.state, verb, hint }
    }
}
