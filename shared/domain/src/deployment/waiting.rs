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
    },
    /// Somebody to accept a plan that changed, where nobody has to approve it.
    Acceptance {
        old: String,
        new: String,
    },
    Time {
        until: Timestamp,
    },
    /// Its turn in its bundle.
    Turn {
        bundle: crate::ids::BundleId,
        member: String,
    },
    /// The environment's lock; readers of the database add who holds it and who is ahead.
    Lock {
        project: String,
        environment: String,
    },
    /// Hosts that run.
    Hosts {
        step: String,
        wave: u32,
        hosts: Vec<String>,
    },
    Step {
        step: String,
    },
    Confirmation {
        step: String,
        wave: u32,
    },
    Bake {
        step: String,
        wave: u32,
        until: Timestamp,
    },
    /// A person: hosts failed over budget, or a central step did.
    Intervention {
        step: String,
        wave: Option<u32>,
        hosts: Vec<String>,
        reason: String,
    },
    /// A person: an expression failed, and only they can say where to go on.
    Choice {
        step: String,
        reason: String,
        branches: Vec<String>,
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
    },
    /// An operator's pause.
    Operator {
        by: String,
        reason: String,
    },
}

impl std::fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WaitingOn::Approval { rule, have, quorum, people } => {
                write!(f, "approval {have} of {quorum} for {rule}")?;
                if people.is_empty() { Ok(()) } else { write!(f, " by {}", people.join(", ")) }
            }
            WaitingOn::Acceptance { new, .. } => {
                write!(f, "a person to accept the plan, which changed after it was asked for; it is now {new}")
            }
            WaitingOn::Time { until } => write!(f, "its time, {until}"),
            WaitingOn::Turn { bundle, member } => write!(f, "its turn as {member} of bundle {bundle}"),
            WaitingOn::Lock { project, environment } => write!(f, "the lock of {project}/{environment}"),
            WaitingOn::Hosts { step, wave, hosts } => {
                write!(f, "{} running host(s) in wave {} of {step}: {}", hosts.len(), wave + 1, some(hosts))
            }
            WaitingOn::Step { step } => write!(f, "step {step}"),
            WaitingOn::Confirmation { step, wave } => write!(f, "confirmation of wave {} of {step}", wave + 1),
            WaitingOn::Bake { step, wave, until } => {
                write!(f, "bake time of wave {} of {step} until {until}", wave + 1)
            }
            WaitingOn::Intervention { step, wave, hosts, reason } => {
                write!(f, "a person: {step}")?;
                if let Some(w) = wave {
                    write!(f, " wave {} failed on {}", w + 1, some(hosts))?;
                }
                write!(f, " ({reason}): retry, skip, ignore, exclude, abort or roll back")
            }
            WaitingOn::Choice { step, reason, branches } => {
                write!(f, "a person: {step} cannot be decided ({reason}): choose {}", branches.join(" or "))
            }
            WaitingOn::Repeat { step, run, max, until } => write!(f, "run {run} of at most {max} of {step} at {until}"),
            WaitingOn::Unknown { hosts } => write!(f, "unknown host(s) {}: wait, or override", some(hosts)),
            WaitingOn::Operator { by, reason } => write!(f, "resume: paused by {by} ({reason})"),
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
    /// Empty only when it has ended and holds nothing.
    pub fn waiting_on(&self) -> Vec<WaitingOn> {
        let mut out = Vec::new();
        match self.state {
            State::AwaitingApproval => {
                let new = self.plan_digest.clone();
                out.extend(self.drifted_from.clone().map(|old| WaitingOn::Acceptance { old, new }));
                for m in approval::missing(&self.rules, &self.requested_by, &self.plan_digest, &self.approvals) {
                    out.push(WaitingOn::Approval { rule: m.rule, have: m.have, quorum: m.quorum, people: m.people });
                }
            }
            State::Scheduled => {
                out.extend(self.not_before.map(|until| WaitingOn::Time { until }));
                let turn = self.turn.as_ref().filter(|t| !t.released);
                out.extend(turn.map(|t| WaitingOn::Turn { bundle: t.bundle, member: t.member.clone() }));
            }
            State::Queued => {
                out.push(WaitingOn::Lock { project: self.project.clone(), environment: self.environment.clone() });
            }
            State::Running | State::Paused | State::Aborting => self.waiting_in_run(&mut out),
            _ => {}
        }
        let hosts = self.unknown_hosts();
        if !hosts.is_empty() && (self.lock.is_some() || self.state.is_active()) {
            out.push(WaitingOn::Unknown { hosts });
        }
        out
    }

    fn waiting_in_run(&self, out: &mut Vec<WaitingOn>) {
        if let Some(p) = &self.pause {
            out.push(WaitingOn::Operator { by: p.who.clone(), reason: p.reason.clone() });
        }
        for (i, s) in self.steps.iter().enumerate() {
            let step = s.id.clone();
            let aborting = self.state == State::Aborting;
            if let Some(ask) = s.asks.as_ref().filter(|_| !aborting) {
                out.push(WaitingOn::Choice { step, reason: ask.reason.clone(), branches: s.choices() });
            } else if let (Some(at), Some(r)) = (s.next_run(), &s.repeat) {
                out.push(WaitingOn::Repeat { step, run: r.runs + 1, max: r.max, until: at });
            } else if s.state == StepState::Failed && self.has_failed(i) && !aborting {
                let reason = match &s.kind {
                    StepRunKind::Central { reason, .. } => s.reason.clone().or(reason.clone()),
                    _ => s.reason.clone(),
                };
                let reason = reason.unwrap_or_default();
                out.push(WaitingOn::Intervention { step, wave: None, hosts: vec![], reason });
            } else if s.state == StepState::Running {
                match &s.kind {
                    StepRunKind::Rollout(r) => {
                        for (w, wave) in r.waves.iter().enumerate() {
                            out.extend(self.waiting_in_wave(&s.id, w as u32, wave));
                        }
                    }
                    _ => out.push(WaitingOn::Step { step }),
                }
            }
        }
    }

    fn waiting_in_wave(&self, step: &str, wave: u32, w: &WaveRun) -> Option<WaitingOn> {
        let step = step.to_owned();
        let names = |f: fn(HostState) -> bool| -> Vec<String> {
            w.hosts.iter().filter(|h| f(h.state)).map(|h| h.host.clone()).collect()
        };
        match w.state {
            WaveState::Running => Some(WaitingOn::Hosts { step, wave, hosts: names(|s| s == HostState::Running) }),
            WaveState::Confirming => Some(WaitingOn::Confirmation { step, wave }),
            WaveState::Baking { until } => Some(WaitingOn::Bake { step, wave, until }),
            WaveState::Failed if self.state != State::Aborting => {
                let reason = w.hosts.iter().filter(|h| h.state.is_failure()).find_map(|h| h.reason.clone());
                let hosts = names(HostState::is_failure);
                Some(WaitingOn::Intervention { step, wave: Some(wave), hosts, reason: reason.unwrap_or_default() })
            }
            _ => None,
        }
    }

    /// It belongs to a bundle that has not let it go yet.
    pub fn is_held(&self) -> bool {
        self.turn.as_ref().is_some_and(|t| !t.released)
    }

    /// When it must be looked at again though nobody asks: its time, its expiry, the end of a bake, the next run
    /// of a repeated step.
    pub fn wake_at(&self) -> Option<Timestamp> {
        match self.state {
            // Its bundle wakes it, and keeps the time.
            s if s.is_before_running() && self.is_held() => None,
            State::AwaitingApproval | State::Queued => Some(self.expires_at),
            State::Scheduled => Some(self.not_before.map_or(self.expires_at, |t| t.min(self.expires_at))),
            State::Running | State::Paused => {
                let bakes = self.rollouts().flat_map(|(_, r)| &r.waves).filter_map(|w| match w.state {
                    WaveState::Baking { until } => Some(until),
                    _ => None,
                });
                // Who lifts a pause, or settles an unknown host, wakes it by that.
                let due = |(i, s): (usize, &StepRun)| s.next_run().filter(|_| !self.is_held_by_unknown(i));
                let runs = self.steps.iter().enumerate().filter(|_| self.may_start()).filter_map(due);
                bakes.chain(runs).min()
            }
            _ => None,
        }
    }
}
