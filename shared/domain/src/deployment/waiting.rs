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
    Time {
        until: Timestamp,
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
            WaitingOn::Time { until } => write!(f, "its time, {until}"),
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
                for m in approval::missing(&self.rules, &self.requested_by, &self.plan_digest, &self.approvals) {
                    out.push(WaitingOn::Approval { rule: m.rule, have: m.have, quorum: m.quorum, people: m.people });
                }
            }
            State::Scheduled => out.extend(self.not_before.map(|until| WaitingOn::Time { until })),
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
        for s in &self.steps {
            match &s.kind {
                StepRunKind::Central { reason, .. } => match s.state {
                    StepState::Running => out.push(WaitingOn::Step { step: s.id.clone() }),
                    StepState::Failed if self.state != State::Aborting => out.push(WaitingOn::Intervention {
                        step: s.id.clone(),
                        wave: None,
                        hosts: vec![],
                        reason: reason.clone().unwrap_or_default(),
                    }),
                    _ => {}
                },
                StepRunKind::Gateway(_) | StepRunKind::Enter { .. } | StepRunKind::Leave { .. } => {}
                StepRunKind::Rollout(r) => {
                    for (w, wave) in r.waves.iter().enumerate() {
                        out.extend(self.waiting_in_wave(&s.id, w as u32, wave));
                    }
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

    /// When it must be looked at again though nobody asks: its time, its expiry, the end of a bake.
    pub fn wake_at(&self) -> Option<Timestamp> {
        match self.state {
            State::AwaitingApproval | State::Queued => Some(self.expires_at),
            State::Scheduled => Some(self.not_before.map_or(self.expires_at, |t| t.min(self.expires_at))),
            State::Running | State::Paused => self
                .rollouts()
                .flat_map(|(_, r)| &r.waves)
                .filter_map(|w| match w.state {
                    WaveState::Baking { until } => Some(until),
                    _ => None,
                })
                .min(),
            _ => None,
        }
    }
}
