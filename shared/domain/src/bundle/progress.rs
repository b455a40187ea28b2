//! The transition function of bundles: what people ask, what members do, and what follows by itself.

use super::*;
use serde_json::json;

type Applied = (Bundle, Vec<Effect>);

impl Bundle {
    /// A new bundle, moved on as far as it can go by itself.
    pub fn request(new: New, now: Timestamp) -> Applied {
        let members: Vec<Member> = new
            .members
            .into_iter()
            .map(|m| Member {
                name: m.name,
                project: m.project,
                environment: m.environment,
                version: m.version,
                needs: m.needs,
                state: MemberState::Waiting,
                deployment: m.deployment,
                plan_digest: m.plan_digest,
                unapproved: m.unapproved,
                touched: false,
                success: 0,
                reason: None,
                earlier: Vec::new(),
            })
            .collect();
        let b = Bundle {
            id: new.id,
            title: new.title,
            state: State::AwaitingApproval,
            requested_by: new.requested_by,
            requested_at: now,
            note: new.note,
            on_failure: new.on_failure,
            digest: String::new(),
            members,
            pause: None,
            stop: None,
            rollback: None,
            end: None,
            expires_at: new.expires_at,
            started_at: None,
            ended_at: None,
        };
        let mut s = Step { b, effects: Vec::new(), now };
        s.b.digest = s.digest();
        let names: Vec<String> =
            s.b.members.iter().map(|m| format!("{}/{} {}", m.project, m.environment, m.version)).collect();
        let payload = json!({ "by": s.b.requested_by, "digest": s.b.digest, "members": names, "note": s.b.note });
        s.event("bundle.requested", Severity::Info, payload);
        s.progress();
        if s.b.state == State::AwaitingApproval {
            let payload = json!({ "digest": s.b.digest });
            s.event("bundle.awaiting_approval", Severity::Action, payload);
        }
        (s.b, s.effects)
    }

    /// The one way a bundle changes.
    pub fn apply(&self, input: Input, now: Timestamp) -> Result<Applied, Refusal> {
        let mut s = Step { b: self.clone(), effects: Vec::new(), now };
        s.take(input)?;
        s.progress();
        Ok((s.b, s.effects))
    }
}

struct Step {
    b: Bundle,
    effects: Vec<Effect>,
    now: Timestamp,
}

impl Step {
    fn take(&mut self, input: Input) -> Result<(), Refusal> {
        use State::*;
        let state = self.b.state;
        match input {
            Input::Approve { by, digest, members, comment } => {
                if !matches!(state, AwaitingApproval | Running | Paused) {
                    return Err(self.wrong("approved", " any more"));
                }
                self.same(&digest)?;
                if members.is_empty() {
                    return Err(Refusal::NothingToDo(format!("no member's plan waits for an approval by {by}")));
                }
                let payload = json!({ "by": by, "digest": digest, "members": members, "comment": comment });
                self.event("bundle.approval_given", Severity::Info, payload);
            }
            Input::Reject { by, digest, comment } => {
                if state != AwaitingApproval {
                    return Err(self.wrong("rejected", " any more"));
                }
                self.same(&digest)?;
                self.cancel_waiting(&by, "the bundle was rejected");
                self.end(Rejected, &by, &comment);
            }
            Input::Cancel { by, reason } => match state {
                AwaitingApproval => {
                    self.cancel_waiting(&by, "the bundle was cancelled");
                    self.end(Cancelled, &by, &reason);
                }
                Running | Paused if self.b.stop.is_some() => {
                    return Err(Refusal::NothingToDo("it is being cancelled already".into()));
                }
                Running | Paused => self.stop(Cancelled, &by, &reason),
                RollingBack => return Err(self.wrong("cancelled", ": it ends when its members are back")),
                _ => return Err(self.wrong("cancelled", "")),
            },
            Input::Pause { by, reason } => match state {
                Running | Paused if self.b.pause.is_some() => {
                    return Err(Refusal::NothingToDo("an operator has paused it already".into()));
                }
                Running | Paused => {
                    self.event("bundle.paused", Severity::Notice, json!({ "by": by, "reason": reason }));
                    self.b.pause = Some(By { who: by, reason, at: self.now });
                }
                _ => return Err(self.wrong("paused", "")),
            },
            Input::Resume { by } => match state {
                Running | Paused if self.b.pause.is_some() => {
                    self.b.pause = None;
                    self.event("bundle.resumed", Severity::Info, json!({ "by": by }));
                }
                Running | Paused => {
                    return Err(Refusal::NothingToDo(
                        "no operator paused it; `waiting_on` says what it waits for".into(),
                    ));
                }
                _ => return Err(self.wrong("resumed", "")),
            },
            Input::Retry { by, members } => self.retry(&by, &members)?,
            Input::Skip { by, member, reason } => self.skip(&by, &member, &reason)?,
            Input::Rollback { by, mode, reason, members } => self.rollback(&by, mode, &reason, &members)?,
            Input::Seen(seen) => self.seen(&seen),
            Input::Refused { deployment, reason } => {
                if let Some(m) = self.b.members.iter_mut().find(|m| m.deployment == deployment) {
                    m.state = match m.state {
                        MemberState::RollingBack => MemberState::RollbackFailed,
                        _ => MemberState::Failed,
                    };
                    m.reason = Some(reason);
                }
            }
            Input::Redone { member, deployment, plan_digest, unapproved } => {
                if let Some(m) = self.b.members.iter_mut().find(|m| m.name == member) {
                    m.earlier.push(std::mem::replace(&mut m.deployment, deployment));
                    m.plan_digest = plan_digest;
                    m.unapproved = unapproved;
                    m.touched = false;
                    m.state = MemberState::Running;
                    m.reason = None;
                }
                self.b.digest = self.digest();
            }
            Input::Tick => {}
        }
        Ok(())
    }

    fn same(&self, digest: &str) -> Result<(), Refusal> {
        if digest == self.b.digest {
            return Ok(());
        }
        Err(Refusal::OtherDigest { given: digest.into(), current: self.b.digest.clone() })
    }

    fn digest(&self) -> String {
        let all = self.b.members.iter();
        Bundle::digest_of(all.map(|m| {
            (m.name.as_str(), m.project.as_str(), m.environment.as_str(), m.needs.as_slice(), m.plan_digest.as_str())
        }))
    }

    /// The members a person names; all of those in question when none is named.
    fn named(&self, names: &[String], fits: impl Fn(&Member) -> bool) -> Result<Vec<usize>, Refusal> {
        if let Some(n) = names.iter().find(|n| self.b.member(n).is_none()) {
            let all: Vec<&str> = self.b.members.iter().map(|m| m.name.as_str()).collect();
            return Err(Refusal::Invalid(format!("there is no member {n:?}; members are: {}", all.join(", "))));
        }
        let wanted = |m: &Member| (names.is_empty() || names.contains(&m.name)) && fits(m);
        Ok((0..self.b.members.len()).filter(|i| wanted(&self.b.members[*i])).collect())
    }

    fn retry(&mut self, by: &str, names: &[String]) -> Result<(), Refusal> {
        use MemberState as M;
        let back = self.b.state == State::RollingBack;
        if !back && (!matches!(self.b.state, State::Running | State::Paused) || self.b.stop.is_some()) {
            return Err(self.wrong("retried", ""));
        }
        let fits = |m: &Member| match back {
            true => m.state == M::RollbackFailed,
            false => matches!(m.state, M::Stuck | M::Failed | M::RolledBack | M::Cancelled),
        };
        let which = self.named(names, fits)?;
        if which.is_empty() {
            return Err(Refusal::NothingToDo("no member of those failed".into()));
        }
        for i in which {
            let (by, m) = (by.to_owned(), &mut self.b.members[i]);
            let deployment = m.deployment;
            m.reason = None;
            let effect = match m.state {
                M::Stuck => Effect::Retry { deployment, by: by.clone() },
                // The walk back takes it up again.
                M::RollbackFailed => {
                    m.state = if m.success > 0 { M::Succeeded } else { M::Failed };
                    continue;
                }
                _ => Effect::Redo { member: m.name.clone(), deployment, by: by.clone() },
            };
            m.state = M::Running;
            let payload = json!({ "by": by, "member": m.name });
            self.effects.push(effect);
            self.event("bundle.member_retried", Severity::Info, payload);
        }
        Ok(())
    }

    fn skip(&mut self, by: &str, name: &str, reason: &str) -> Result<(), Refusal> {
        use MemberState as M;
        if !matches!(self.b.state, State::Running | State::Paused | State::RollingBack) {
            return Err(self.wrong("told to skip a member", ""));
        }
        let back = self.b.state == State::RollingBack;
        let which = self.named(&[name.to_owned()], |_| true)?;
        for i in which {
            let m = &mut self.b.members[i];
            match m.state {
                M::Waiting if !back => {
                    let reason = format!("skipped in its bundle: {reason}");
                    self.effects.push(Effect::Cancel { deployment: m.deployment, by: by.into(), reason });
                }
                M::Failed | M::RolledBack | M::Cancelled if !back => {}
                M::RollbackFailed if back => {}
                M::Stuck | M::Running => {
                    let text = format!("member {name:?} is under way; abort its deployment first");
                    return Err(Refusal::Invalid(text));
                }
                _ => return Err(Refusal::NothingToDo(format!("member {name:?} does not wait to be skipped"))),
            }
            m.state = M::Skipped;
            m.reason = Some(reason.to_owned());
            let payload = json!({ "by": by, "member": name, "reason": reason });
            self.event("bundle.member_skipped", Severity::Notice, payload);
        }
        Ok(())
    }

    fn rollback(&mut self, by: &str, mode: RollbackMode, reason: &str, names: &[String]) -> Result<(), Refusal> {
        use MemberState as M;
        match self.b.state {
            State::AwaitingApproval => return Err(self.wrong("rolled back", ": cancel it")),
            State::RollingBack => return Err(Refusal::NothingToDo("it is being rolled back already".into())),
            State::RolledBack | State::Rejected | State::Expired => return Err(self.wrong("rolled back", "")),
            _ => {}
        }
        let fits = |m: &Member| {
            m.touched
                && matches!(m.state, M::Running | M::Stuck | M::Succeeded | M::Failed | M::Skipped | M::RollbackFailed)
        };
        let which = self.named(names, fits)?;
        if which.is_empty() && (self.b.state.is_terminal() || !names.is_empty()) {
            return Err(Refusal::NothingToDo("nothing of that has run on any host".into()));
        }
        let payload = json!({ "by": by, "reason": reason, "members": names });
        self.event("bundle.rollback_requested", Severity::Notice, payload);
        let by = By { who: by.into(), reason: reason.into(), at: self.now };
        if names.is_empty() {
            self.b.pause = None;
            self.b.stop = None;
            self.b.ended_at = None;
            self.b.end = None;
            self.b.state = State::RollingBack;
            self.b.rollback = Some(RollingBack { by, mode });
            self.cancel_waiting("windlass", "its bundle is rolled back");
        } else {
            for i in which {
                self.roll_back(i, &by.who.clone(), mode, &by.reason.clone());
            }
        }
        Ok(())
    }

    fn roll_back(&mut self, i: usize, by: &str, mode: RollbackMode, reason: &str) {
        let m = &mut self.b.members[i];
        m.state = MemberState::RollingBack;
        m.reason = None;
        let (deployment, by, reason) = (m.deployment, by.to_owned(), reason.to_owned());
        self.effects.push(Effect::RollBack { deployment, by, mode, reason });
    }

    fn seen(&mut self, s: &Seen) {
        use MemberState as M;
        use deployment::State as D;
        let next_success = self.b.members.iter().map(|m| m.success).max().unwrap_or(0) + 1;
        let back = self.b.state == State::RollingBack;
        let Some(m) = self.b.members.iter_mut().find(|m| m.deployment == s.deployment) else { return };
        let before = (m.state, m.reason.clone());
        m.unapproved = s.state == D::AwaitingApproval;
        m.touched |= s.touched;
        let ended = |what: &str| Some(s.end.clone().filter(|r| !r.is_empty()).unwrap_or_else(|| what.to_owned()));
        match (m.state, s.state) {
            (M::RollingBack, D::RolledBack) => m.state = M::RolledBack,
            (M::RollingBack, _) => match &s.rollback {
                Some((_, Some(r))) if r.is_terminal() && *r != D::Succeeded => {
                    m.state = M::RollbackFailed;
                    m.reason = Some(format!("the rollback ended {}", r.as_str()));
                }
                Some(_) => {}
                // What was stopped before it touched a host has nothing to go back from.
                None if s.state.is_terminal() && !m.touched => m.state = M::Cancelled,
                None if s.state.is_terminal() => {
                    m.state = M::RollbackFailed;
                    m.reason = Some("there is nothing to go back to; see the deployment".into());
                }
                None => {}
            },
            (M::Running | M::Stuck | M::Succeeded | M::Failed | M::RollbackFailed, D::RolledBack) => {
                m.state = M::RolledBack;
                m.reason = Some("rolled back".into());
            }
            (M::Running | M::Stuck, D::Succeeded) => {
                m.state = M::Succeeded;
                m.success = next_success;
                m.reason = None;
            }
            (M::Waiting | M::Running | M::Stuck, d) if d.is_terminal() => {
                m.state = if m.state == M::Waiting && back { M::Cancelled } else { M::Failed };
                m.reason = ended(d.as_str());
            }
            (M::Running | M::Stuck, _) => {
                m.state = if s.needs_person.is_some() { M::Stuck } else { M::Running };
                m.reason.clone_from(&s.needs_person);
            }
            _ => {}
        }
        let (state, name, reason) = (m.state, m.name.clone(), m.reason.clone());
        if m.plan_digest != s.digest {
            m.plan_digest.clone_from(&s.digest);
            let old = std::mem::take(&mut self.b.digest);
            self.b.digest = self.digest();
            let payload = json!({ "member": name, "old": old, "new": self.b.digest });
            self.event("bundle.plan_changed", Severity::Action, payload);
        }
        if state != before.0 {
            let (what, severity) = match state {
                M::Succeeded => ("bundle.member_succeeded", Severity::Info),
                M::Failed | M::Stuck | M::RollbackFailed => ("bundle.member_failed", Severity::Action),
                M::RolledBack => ("bundle.member_rolled_back", Severity::Notice),
                _ => return,
            };
            let deployment = s.deployment;
            self.event(what, severity, json!({ "member": name, "deployment": deployment, "reason": reason }));
        }
    }

    /// What follows by itself, from the state alone.
    fn progress(&mut self) {
        if self.b.state == State::AwaitingApproval {
            self.approval_progress();
        }
        if matches!(self.b.state, State::Running | State::Paused) {
            self.run_progress();
        }
        if self.b.state == State::RollingBack {
            self.back_progress();
        }
    }

    fn approval_progress(&mut self) {
        if let Some(m) = self.b.members.iter().find(|m| m.state == MemberState::Failed) {
            let reason = format!("{}: {}", m.name, m.reason.clone().unwrap_or_default());
            self.cancel_waiting("windlass", "its bundle ended");
            return self.end(State::Rejected, "windlass", &reason);
        }
        if self.now >= self.b.expires_at {
            self.cancel_waiting("windlass", "its bundle was not approved in time");
            return self.end(State::Expired, "windlass", "it was not approved in time");
        }
        if self.b.members.iter().all(|m| !m.unapproved) {
            self.b.state = State::Running;
            self.b.started_at = Some(self.now);
            let payload = json!({ "digest": self.b.digest });
            self.event("bundle.started", Severity::Notice, payload);
        }
    }

    fn run_progress(&mut self) {
        use MemberState as M;
        let failed = self.b.members.iter().find(|m| m.state == M::Failed);
        if let (Some(m), None) = (failed, &self.b.stop) {
            let reason = format!("member {} failed: {}", m.name, m.reason.clone().unwrap_or_default());
            match self.b.on_failure {
                OnFailure::Pause => {}
                OnFailure::Stop => self.stop(State::Failed, "windlass", &reason),
                OnFailure::Rollback => {
                    let by = By { who: "windlass".into(), reason: reason.clone(), at: self.now };
                    self.b.rollback = Some(RollingBack { by, mode: RollbackMode::Normal });
                    self.b.state = State::RollingBack;
                    self.cancel_waiting("windlass", "its bundle is rolled back");
                    let payload = json!({ "by": "windlass", "reason": reason });
                    return self.event("bundle.rollback_requested", Severity::Notice, payload);
                }
            }
        }
        if let Some(stop) = self.b.stop.clone() {
            if !self.b.members.iter().any(|m| m.state.is_under_way()) {
                self.end(stop.state, &stop.by.who, &stop.by.reason);
            }
            return;
        }
        if self.b.members.iter().all(|m| m.state == M::RolledBack) {
            return self.end(State::RolledBack, "windlass", "every member was rolled back");
        }
        if self.b.members.iter().all(|m| m.state.is_settled()) {
            return match self.b.members.iter().any(|m| m.state == M::Succeeded) {
                true => self.end(State::Succeeded, "", ""),
                false => self.end(State::Cancelled, "windlass", "every member was skipped"),
            };
        }
        let held = self.b.pause.is_some() || self.b.members.iter().any(|m| m.state.blocks());
        self.b.state = if held { State::Paused } else { State::Running };
        if held {
            return;
        }
        let settled: BTreeSet<String> =
            self.b.members.iter().filter(|m| m.state.is_settled()).map(|m| m.name.clone()).collect();
        for i in 0..self.b.members.len() {
            let m = &mut self.b.members[i];
            if m.state == M::Waiting && m.needs.iter().all(|n| settled.contains(n)) {
                m.state = M::Running;
                let payload = json!({ "member": m.name, "deployment": m.deployment });
                self.effects.push(Effect::Release { deployment: m.deployment });
                self.event("bundle.member_started", Severity::Info, payload);
            }
        }
    }

    /// One member at a time: what is under way or failed first, then the successes, the last one first.
    fn back_progress(&mut self) {
        use MemberState as M;
        let Some(back) = self.b.rollback.clone() else { return };
        loop {
            if self.b.members.iter().any(|m| matches!(m.state, M::RollingBack | M::RollbackFailed)) {
                return;
            }
            let open = |m: &Member| matches!(m.state, M::Running | M::Stuck | M::Failed | M::Succeeded);
            let rank = |m: &Member| if m.success == 0 { u32::MAX } else { m.success };
            let next = (0..self.b.members.len())
                .filter(|i| open(&self.b.members[*i]))
                .max_by_key(|i| (rank(&self.b.members[*i]), *i));
            match next {
                Some(i) if self.b.members[i].touched || self.b.members[i].state == M::Succeeded => {
                    let (who, reason) = (back.by.who.clone(), back.by.reason.clone());
                    return self.roll_back(i, &who, back.mode, &reason);
                }
                Some(i) if self.b.members[i].state == M::Failed => self.b.members[i].state = M::Cancelled,
                Some(i) => {
                    // Nothing ran yet. Where it has begun all the same, its end will be seen and looked at again.
                    let (who, reason) = (back.by.who.clone(), back.by.reason.clone());
                    return self.roll_back(i, &who, back.mode, &reason);
                }
                None => {
                    let any = self.b.members.iter().any(|m| m.state == M::RolledBack);
                    let state = if any { State::RolledBack } else { State::Cancelled };
                    return self.end(state, &back.by.who, &back.by.reason);
                }
            }
        }
    }

    fn stop(&mut self, state: State, by: &str, reason: &str) {
        self.cancel_waiting(by, "its bundle was stopped");
        let by = By { who: by.into(), reason: reason.into(), at: self.now };
        self.event("bundle.stopping", Severity::Notice, json!({ "by": by.who, "reason": by.reason }));
        self.b.stop = Some(Stop { by, state });
    }

    fn cancel_waiting(&mut self, by: &str, reason: &str) {
        for m in self.b.members.iter_mut().filter(|m| m.state == MemberState::Waiting) {
            m.state = MemberState::Cancelled;
            m.reason = Some(reason.into());
            let (deployment, by, reason) = (m.deployment, by.to_owned(), reason.to_owned());
            self.effects.push(Effect::Cancel { deployment, by, reason });
        }
    }

    fn end(&mut self, state: State, by: &str, reason: &str) {
        self.b.state = state;
        self.b.pause = None;
        self.b.stop = None;
        self.b.ended_at = Some(self.now);
        if state != State::Succeeded {
            self.b.end = Some(By { who: by.into(), reason: reason.into(), at: self.now });
        }
        let (what, severity) = match state {
            State::Succeeded => ("bundle.succeeded", Severity::Notice),
            State::Failed => ("bundle.failed", Severity::Alert),
            State::RolledBack => ("bundle.rolled_back", Severity::Notice),
            State::Rejected => ("bundle.rejected", Severity::Notice),
            State::Expired => ("bundle.expired", Severity::Notice),
            _ => ("bundle.cancelled", Severity::Notice),
        };
        self.event(what, severity, json!({ "by": by, "reason": reason }));
    }

    fn event(&mut self, what: &'static str, severity: Severity, mut payload: serde_json::Value) {
        if let Some(o) = payload.as_object_mut() {
            o.insert("title".into(), self.b.title.clone().into());
            o.insert("state".into(), self.b.state.as_str().into());
        }
        self.effects.push(Effect::Event { what, severity, payload });
    }

    fn wrong(&self, verb: &'static str, hint: &'static str) -> Refusal {
        Refusal::WrongState { state: self.b.state, verb, hint }
    }
}
