//! What a deployment waits for, as data: shown by API, CLI and console, and the reason nothing is ever just "stuck".

use super::*;
use crate::approval;

/// One thing that has to happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum WaitingOn {
    Approval {
        rule: String,
        have: u32,
        quorum: u32,
        people: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// Somebody to accept a plan that changed, where nobody has to approve it.
    Acceptance {
        old: String,
        new: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    Time {
        until: Timestamp,
    },
    /// Its turn in its bundle.
    Turn {
        bundle: crate::ids::BundleId,
        member: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
    },
    /// The environment's lock; readers of the database add who holds it and who is ahead.
    Lock {
        project: String,
        environment: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// Hosts that run. Their steps have timeouts, and one that falls silent becomes unknown.
    Hosts {
        step: String,
        wave: u32,
        hosts: Vec<String>,
    },
    /// A step that an executor carries out, within the step's timeout.
    Step {
        step: String,
    },
    /// A person to look at a wave.
    Confirmation {
        step: String,
        wave: u32,
        /// What its probes could not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    Bake {
        step: String,
        wave: u32,
        until: Timestamp,
    },
    /// The probes of a wave, which are looked at until then.
    Probes {
        step: String,
        wave: u32,
        until: Timestamp,
    },
    /// The next try that the policy makes: of a central step, or of these hosts of a wave.
    Retry {
        step: String,
        wave: Option<u32>,
        hosts: Vec<String>,
        /// From 1: which retry it is.
        run: u32,
        max: u32,
        until: Timestamp,
    },
    /// A person: hosts failed over budget, or a wave's probes or a central step did.
    Intervention {
        step: String,
        wave: Option<u32>,
        hosts: Vec<String>,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// A person: an expression failed, and only they can say where to go on.
    Choice {
        step: String,
        reason: String,
        branches: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// The next run of a repeated step.
    Repeat {
        step: String,
        run: u32,
        max: u32,
        until: Timestamp,
    },
    /// Hosts that went silent; they keep the lock.
    Unknown {
        hosts: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// An operator's pause.
    Operator {
        by: String,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// A person to approve (or reject) the plan with other inputs that somebody wants to go on with.
    Amendment {
        by: String,
        digest: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
}

/// What keeps a wait from lasting for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is over then.
    Until(Timestamp),
    /// Somebody answers for it, and what the flow's patience says happens when they have not acted by then. A deployment that was
    /// stored before there were deadlines has none until it is next looked at.
    Person { owner: String, deadline: Option<Timestamp> },
    /// An executor ends it: by timeouts of its own, whatever the hosts do.
    Executor(&'static str),
}

impl WaitingOn {
    /// Who or what ends this wait at the latest.
    pub fn bound(&self) -> Bound {
        use WaitingOn::*;
        match self {
            Time { until } | Bake { until, .. } | Retry { until, .. } | Repeat { until, .. } => Bound::Until(*until),
            Lock { deadline: Some(until), .. } => Bound::Until(*until),
            Lock { .. } => Bound::Executor("who holds the lock ends or is ended"),
            Hosts { .. } => {
                Bound::Executor("each step has a timeout, and a host that falls silent is unknown after 90 s")
            }
            Step { .. } => Bound::Executor("the step has a timeout"),
            Probes { .. } => Bound::Executor("probes are looked at until the wave has baked"),
            Turn { owner, .. } => Bound::Person { owner: owner.clone().unwrap_or_default(), deadline: None },
            Approval { owner, deadline, .. }
            | Acceptance { owner, deadline, .. }
            | Confirmation { owner, deadline, .. }
            | Intervention { owner, deadline, .. }
            | Choice { owner, deadline, .. }
            | Unknown { owner, deadline, .. }
            | Operator { owner, deadline, .. }
            | Amendment { owner, deadline, .. } => {
                Bound::Person { owner: owner.clone().unwrap_or_default(), deadline: *deadline }
            }
        }
    }
}

impl std::fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WaitingOn::Approval { rule, have, quorum, people, .. } => {
                write!(f, "approval {have} of {quorum} for {rule}")?;
                if !people.is_empty() {
                    write!(f, " by {}", people.join(", "))?;
                }
            }
            WaitingOn::Acceptance { new, .. } => {
                write!(f, "a person to accept the plan, which changed after it was asked for; it is now {new}")?;
            }
            WaitingOn::Time { until } => write!(f, "its time, {until}")?,
            WaitingOn::Turn { bundle, member, .. } => write!(f, "its turn as {member} of bundle {bundle}")?,
            WaitingOn::Lock { project, environment, .. } => write!(f, "the lock of {project}/{environment}")?,
            WaitingOn::Hosts { step, wave, hosts } => {
                write!(f, "{} running host(s) in wave {} of {step}: {}", hosts.len(), wave + 1, some(hosts))?;
            }
            WaitingOn::Step { step } => write!(f, "step {step}")?,
            WaitingOn::Confirmation { step, wave, reason, .. } => {
                write!(f, "confirmation of wave {} of {step}", wave + 1)?;
                if let Some(r) = reason {
                    write!(f, ": {r}")?;
                }
            }
            WaitingOn::Bake { step, wave, until } => {
                write!(f, "bake time of wave {} of {step} until {until}", wave + 1)?;
            }
            WaitingOn::Probes { step, wave, until } => {
                write!(f, "the probes of wave {} of {step} until {until}", wave + 1)?;
            }
            WaitingOn::Retry { step, wave, hosts, run, max, until } => {
                write!(f, "retry {run} of at most {max} of {step}")?;
                if let Some(w) = wave {
                    write!(f, " wave {} on {}", w + 1, some(hosts))?;
                }
                write!(f, " at {until}")?;
            }
            WaitingOn::Intervention { step, wave, hosts, reason, .. } => {
                write!(f, "a person: {step}")?;
                match wave {
                    Some(w) if hosts.is_empty() => write!(f, " wave {} failed ({reason}): retry, ignore", w + 1)?,
                    Some(w) => {
                        write!(f, " wave {} failed on {} ({reason}): retry, skip, ignore, exclude", w + 1, some(hosts))?
                    }
                    None => write!(f, " ({reason}): retry, skip, ignore, exclude")?,
                }
                write!(f, ", abort or roll back")?;
            }
            WaitingOn::Choice { step, reason, branches, .. } => {
                write!(f, "a person: {step} cannot be decided ({reason}): choose {}", branches.join(" or "))?;
            }
            WaitingOn::Repeat { step, run, max, until } => {
                write!(f, "run {run} of at most {max} of {step} at {until}")?
            }
            WaitingOn::Unknown { hosts, .. } => write!(f, "unknown host(s) {}: wait, or override", some(hosts))?,
            WaitingOn::Operator { by, reason, .. } => write!(f, "resume: paused by {by} ({reason})")?,
            WaitingOn::Amendment { by, digest, .. } => {
                write!(f, "approval of the plan with the inputs that {by} changed, {digest}")?;
            }
        }
        match self.bound() {
            // It is part of the text above.
            Bound::Until(_) => Ok(()),
            Bound::Person { owner, deadline: Some(d) } if !owner.is_empty() => write!(f, " (of {owner}, until {d})"),
            Bound::Person { .. } => Ok(()),
            Bound::Executor(_) if matches!(self, WaitingOn::Probes { .. } | WaitingOn::Lock { .. }) => Ok(()),
            Bound::Executor(by) => write!(f, " ({by})"),
        }
    }
}

fn some(hosts: &[String]) -> String {
    match hosts.len() {
        0..=5 => hosts.join(", "),
        n => format!("{} and {} more", hosts[..5].join(", "), n - 5),
    }
}

impl Deployment {
    /// Empty only when it has ended and holds nothing. Every wait is bounded ([`WaitingOn::bound`]).
    pub fn waiting_on(&self) -> Vec<WaitingOn> {
        let mut out = Vec::new();
        // A bundle keeps the time of a member that it has not let go.
        let deadline = Some(self.expires_at).filter(|_| !self.is_held());
        let owner = || Some(self.owner().to_owned());
        match self.state {
            State::AwaitingApproval => {
                let new = self.plan_digest.clone();
                let drifted = self.drifted_from.clone();
                out.extend(drifted.map(|old| WaitingOn::Acceptance { old, new, owner: owner(), deadline }));
                for m in approval::missing(&self.rules, &self.requested_by, &self.plan_digest, &self.approvals) {
                    let (rule, have, quorum, people) = (m.rule, m.have, m.quorum, m.people);
                    out.push(WaitingOn::Approval { rule, have, quorum, people, owner: owner(), deadline });
                }
            }
            State::Scheduled => {
                out.extend(self.not_before.map(|until| WaitingOn::Time { until }));
                let turn = self.turn.as_ref().filter(|t| !t.released);
                out.extend(turn.map(|t| WaitingOn::Turn {
                    bundle: t.bundle,
                    member: t.member.clone(),
                    owner: owner(),
                }));
            }
            State::Queued => {
                let (project, environment) = (self.project.clone(), self.environment.clone());
                out.push(WaitingOn::Lock { project, environment, deadline });
            }
            State::Running | State::Paused | State::Aborting => self.waiting_in_run(&mut out),
            _ => {}
        }
        let hosts = self.unknown_hosts();
        if !hosts.is_empty() && (self.lock.is_some() || self.state.is_active()) {
            out.push(WaitingOn::Unknown { hosts, owner: owner(), deadline: self.deadline() });
        }
        out
    }

    /// When a person is to have come.
    fn deadline(&self) -> Option<Timestamp> {
        self.attention.as_ref().map(|a| a.deadline)
    }

    fn waiting_in_run(&self, out: &mut Vec<WaitingOn>) {
        let (owner, deadline) = (|| Some(self.owner().to_owned()), self.deadline());
        let aborting = self.state == State::Aborting;
        if let Some(p) = &self.pause {
            // Who paused it answers for that, unless somebody claimed it.
            let owner = Some(self.claim.as_ref().unwrap_or(p).who.clone());
            out.push(WaitingOn::Operator { by: p.who.clone(), reason: p.reason.clone(), owner, deadline });
        }
        if let Some(a) = self.amendment.as_ref().filter(|_| !aborting) {
            let (by, digest) = (a.by.who.clone(), a.facts.digest.clone());
            out.push(WaitingOn::Amendment { by, digest, owner: owner(), deadline });
        }
        for (i, s) in self.steps.iter().enumerate() {
            let step = s.id.clone();
            // A failure that ends the deployment waits for nobody: what is under way is all that it waits for.
            let asks = !aborting && self.asks_a_person(i);
            if let Some(ask) = s.asks.as_ref().filter(|_| !aborting) {
                let (reason, branches) = (ask.reason.clone(), s.choices());
                out.push(WaitingOn::Choice { step, reason, branches, owner: owner(), deadline });
            } else if let (Some(at), Some(r)) = (s.next_run(), &s.repeat) {
                out.push(WaitingOn::Repeat { step, run: r.runs + 1, max: r.max, until: at });
            } else if let (Some(until), Some(p), false) = (s.next_try(), &s.retry, aborting) {
                let (run, max) = (s.tries.made, p.max);
                out.push(WaitingOn::Retry { step, wave: None, hosts: Vec::new(), run, max, until });
            } else if s.state == StepState::Failed && asks {
                let reason = match &s.kind {
                    StepRunKind::Central { reason, .. } => s.reason.clone().or(reason.clone()),
                    _ => s.reason.clone(),
                };
                let reason = reason.unwrap_or_default();
                let (wave, hosts) = (None, Vec::new());
                out.push(WaitingOn::Intervention { step, wave, hosts, reason, owner: owner(), deadline });
            } else if s.state == StepState::Running {
                match &s.kind {
                    StepRunKind::Rollout(r) => {
                        for (w, wave) in r.waves.iter().enumerate() {
                            out.extend(self.waiting_in_wave(s, w as u32, wave, asks));
                        }
                    }
                    _ => out.push(WaitingOn::Step { step }),
                }
            }
        }
    }

    fn waiting_in_wave(&self, s: &StepRun, wave: u32, w: &WaveRun, asks: bool) -> Option<WaitingOn> {
        let step = s.id.clone();
        let aborting = self.state == State::Aborting;
        let (owner, deadline) = (Some(self.owner().to_owned()), self.deadline());
        let names = |f: fn(HostState) -> bool| -> Vec<String> {
            w.hosts.iter().filter(|h| f(h.state)).map(|h| h.host.clone()).collect()
        };
        let probed = || w.probe.as_ref().and_then(|p| p.reason.clone());
        match w.state {
            WaveState::Running => Some(WaitingOn::Hosts { step, wave, hosts: names(|s| s == HostState::Running) }),
            WaveState::Probing { until } if !aborting || w.probe_work().is_some() => {
                Some(WaitingOn::Probes { step, wave, until })
            }
            _ if aborting => None,
            WaveState::Confirming => Some(WaitingOn::Confirmation { step, wave, reason: probed(), owner, deadline }),
            WaveState::Baking { until } => Some(WaitingOn::Bake { step, wave, until }),
            WaveState::Retrying { at } => {
                let (hosts, run, max) = s.hosts_to_retry(w);
                Some(WaitingOn::Retry { step, wave: Some(wave), hosts, run, max, until: at })
            }
            WaveState::Failed if !asks => None,
            WaveState::Failed if w.failed_by_probes() => {
                let reason = probed().unwrap_or_default();
                Some(WaitingOn::Intervention { step, wave: Some(wave), hosts: vec![], reason, owner, deadline })
            }
            WaveState::Failed => {
                let reason = w.hosts.iter().filter(|h| h.state.is_failure()).find_map(|h| h.reason.clone());
                let (hosts, reason) = (names(HostState::is_failure), reason.unwrap_or_default());
                Some(WaitingOn::Intervention { step, wave: Some(wave), hosts, reason, owner, deadline })
            }
            _ => None,
        }
    }

    /// It belongs to a bundle that has not let it go yet.
    pub fn is_held(&self) -> bool {
        self.turn.as_ref().is_some_and(|t| !t.released)
    }

    /// When it must be looked at again though nobody asks: its time, its expiry, the end of a bake, the next try of what failed,
    /// the next run of a repeated step, the time by which a person should have come.
    pub fn wake_at(&self) -> Option<Timestamp> {
        match self.state {
            // Its bundle wakes it, and keeps the time.
            s if s.is_before_running() && self.is_held() => None,
            State::AwaitingApproval | State::Queued => Some(self.expires_at),
            State::Scheduled => Some(self.not_before.map_or(self.expires_at, |t| t.min(self.expires_at))),
            State::Running | State::Paused => {
                let starts = self.may_start();
                let waves = self.rollouts().flat_map(|(_, r)| &r.waves).filter_map(|w| match w.state {
                    WaveState::Baking { until } => Some(until),
                    WaveState::Retrying { at } if starts => Some(at),
                    _ => None,
                });
                // Who lifts a pause, or settles an unknown host, wakes it by that.
                let due = |(i, s): (usize, &StepRun)| {
                    s.next_run().filter(|_| !self.is_held_by_unknown(i)).or_else(|| s.next_try())
                };
                let steps = self.steps.iter().enumerate().filter(|_| starts).filter_map(due);
                waves.chain(steps).chain(self.deadline()).min()
            }
            State::Aborting => None,
            _ => self.deadline(),
        }
    }
}
