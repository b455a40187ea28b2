//! What a deployment keeps of each step of its plan: its place in the graph, where it stands, and what it gave.

use super::By;
use crate::{
    Timestamp,
    flow::{Confirm, Gateway, Join, StepFailure},
    ids::WorkId,
    work::{HostResult, Outcome},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRun {
    pub id: String,
    pub needs: Vec<String>,
    #[serde(default)]
    pub join: Join,
    /// Decided when the step's turn comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<StepFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<RepeatRun>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<crate::flow::Retry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<StepFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<crate::flow::Phase>,
    /// What kind of failure it failed with: of a wave, where all its failed hosts have the same. Timeouts lead to `on_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<crate::work::FailureClass>,
    /// How the policy's retries of a central step stand.
    #[serde(default, skip_serializing_if = "Tries::is_none")]
    pub tries: Tries,
    /// A person said how it came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<By>,
    /// The plan left it out: its condition was false, or no branch can lead to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
    /// Ids of the steps whose outputs its parameters refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<String>,
    pub state: StepState,
    /// Its turn came. A step that the plan skipped counts for those that need it only from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reached: bool,
    /// An expression of it failed: what a person has to decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<Ask>,
    /// What a person decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Choice>,
    /// Why it failed, where that is not its work's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it gave: of a central step its output; of a rollout, by id of the host step, what every host that succeeded
    /// gave alike.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
    pub kind: StepRunKind,
}

/// Retries that a policy made, and when the next is due.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tries {
    pub made: u32,
    pub next_at: Option<Timestamp>,
}

impl Tries {
    pub fn is_none(&self) -> bool {
        *self == Tries::default()
    }
}

/// An expression that could not be decided, until a person does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub about: About,
    /// Why the expression failed.
    pub reason: String,
}

/// Which expression of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// Whether the step runs: `run` or `skip`.
    Condition,
    /// Where a gateway goes on: the name of a branch, or `default`.
    Branch,
    /// Whether a repeated step is done: `done` or `again`.
    Until,
    /// What a subflow's inputs are: it can only be left out (`skip`).
    Inputs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub branch: String,
    pub by: By,
}

/// A repeated step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepeatRun {
    pub until: String,
    pub max: u32,
    pub every_s: u32,
    /// Runs begun.
    pub runs: u32,
    /// When the next one starts.
    pub next_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Waiting,
    Running,
    Succeeded,
    /// Waits for a person, ended the deployment, or was borne (`on_failure: continue`).
    Failed,
    /// Its condition was false, or a person skipped it.
    Skipped,
    /// On a branch that was not taken.
    NotTaken,
    /// It could not start because what it needs failed, or the deployment ended before it was over or reached.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StepRunKind {
    Central { action: String, attempt: u32, work: Option<WorkId>, reason: Option<String> },
    Rollout(RolloutRun),
    Gateway(GatewayRun),
    Enter { scope: String },
    Leave { scope: String },
}

/// A gateway with what it chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatewayRun {
    pub gateway: Gateway,
    /// Ids of the steps it went on to, once it has.
    pub taken: Option<Vec<String>>,
    /// The person who picked the branch where its expression failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<By>,
    /// Why its expression failed, while a person has yet to pick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutRun {
    pub confirm: Confirm,
    pub bake_s: u32,
    /// Hosts that may fail, in all.
    pub max_failures: u32,
    /// 0: the whole wave.
    pub parallel: u32,
    /// Number of host-local steps: a skip past the last ends the host's part.
    pub host_steps: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stagger: Option<crate::work::Stagger>,
    /// What is looked at while a wave bakes: only whether there is anything, and what it means when it stays unclear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<crate::flow::Inconclusive>,
    /// Ids of host steps that nobody can skip, nor ignore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    pub waves: Vec<WaveRun>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaveRun {
    pub state: WaveState,
    pub work: Option<WorkId>,
    /// What its hosts have in common, where hosts are grouped: `canary`, `zone=a`, `no zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Hosts of this wave that may fail, where that is limited too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
    /// Earlier works of it that hosts went silent in: what becomes known of these hosts comes with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<WorkId>,
    /// Works that looked at its probes, in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probes_made: u32,
    /// The work that looks at its probes, and what the last look said. None while the wave has yet to be looked at: hosts
    /// that run anew make what was seen before worthless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeRun>,
    /// It is done again as a whole: hosts run again after a success.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    pub hosts: Vec<HostRun>,
}

impl WaveRun {
    pub fn waiting(hosts: Vec<HostRun>) -> WaveRun {
        WaveRun {
            state: WaveState::Waiting,
            work: None,
            group: None,
            max_failures: None,
            earlier: Vec::new(),
            probes_made: 0,
            probe: None,
            again: false,
            hosts,
        }
    }

    /// Its hosts are well enough, and its probes are why it failed.
    pub fn failed_by_probes(&self) -> bool {
        self.state == WaveState::Failed && self.probe.as_ref().is_some_and(|p| p.verdict.is_some())
    }
}

/// The probes of a wave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRun {
    pub work: WorkId,
    pub attempt: u32,
    pub until: Timestamp,
    pub verdict: Option<crate::work::Verdict>,
    #[serde(default)]
    pub probes: Vec<crate::work::ProbeResult>,
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum WaveState {
    Waiting,
    Running,
    /// Ended well; a person is to look at it.
    Confirming,
    /// Ended well; waits out its bake time.
    Baking {
        until: Timestamp,
    },
    /// Ended well; bakes while an executor looks at its probes.
    Probing {
        until: Timestamp,
    },
    /// Hosts failed, and the policy tries them again then.
    Retrying {
        at: Timestamp,
    },
    Succeeded,
    /// More hosts failed than the budget bears.
    Failed,
    /// The deployment ended before it was reached.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRun {
    pub host: String,
    pub state: HostState,
    /// 0 until it is first handed to an executor.
    pub attempt: u32,
    pub start_at: u32,
    pub failed_step: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<crate::work::FailureClass>,
    /// Of the program that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
    /// Retries that the policy made of it since a person last did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retried: u32,
    /// A person stopped it, or said how it came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// Steps this host has, where conditions give it fewer than the rollout; 0: all of them.
    #[serde(default)]
    pub steps: u32,
    /// What attempts that did not succeed gave, by id of the host step: a retry does not run those steps again.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub outputs: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Not started yet.
    Waiting,
    Running,
    Succeeded,
    Failed,
    /// Stopped after it had started.
    HandStopped,
    /// Never started: the failure budget was used up.
    AutoStopped,
    /// Never started: unreachable, refused by the host, or aborted before.
    NotStarted,
    Unknown,
    /// Failed, and a person said to go on regardless.
    Ignored,
    /// Takes no further part.
    Excluded,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl HostState {
    /// Counts against the failure budget.
    pub fn is_failure(self) -> bool {
        matches!(self, HostState::Failed | HostState::NotStarted | HostState::HandStopped | HostState::Unknown)
    }
    /// Something of this deployment may have run there.
    pub fn is_touched(self) -> bool {
        use HostState::*;
        matches!(self, Running | Succeeded | Failed | HandStopped | Unknown | Ignored)
    }
}

impl StepRun {
    /// The subflow it stands in; empty at the top.
    pub fn scope(&self) -> &str {
        match &self.kind {
            StepRunKind::Enter { scope } => scope.rsplit_once('/').map_or("", |(outer, _)| outer),
            _ => self.id.rsplit_once('/').map_or("", |(scope, _)| scope),
        }
    }

    /// What a person may answer to what it asks.
    pub fn choices(&self) -> Vec<String> {
        let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect();
        match (self.asks.as_ref().map(|a| a.about), &self.kind) {
            (Some(About::Condition), _) => words(&["run", "skip"]),
            (Some(About::Until), _) => words(&["done", "again"]),
            (Some(About::Inputs), _) => words(&["skip"]),
            (Some(About::Branch), StepRunKind::Gateway(g)) => {
                let named = g.gateway.branches.iter().map(|b| b.name.clone());
                named.chain(["default".to_owned()]).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A step as the plan has it, before anything happened.
    pub fn waiting(id: impl Into<String>, needs: Vec<String>, kind: StepRunKind) -> StepRun {
        StepRun {
            id: id.into(),
            needs,
            join: Join::All,
            condition: None,
            on_failure: None,
            repeat: None,
            required: false,
            retry: None,
            on_timeout: None,
            phase: None,
            class: None,
            tries: Tries::default(),
            forced: None,
            left_out: false,
            reads: Vec::new(),
            reached: false,
            asks: None,
            chosen: None,
            reason: None,
            state: StepState::Waiting,
            outputs: serde_json::Map::new(),
            kind,
        }
    }
}

impl HostRun {
    /// A host as the plan names it, before anything happened.
    pub fn waiting(host: impl Into<String>) -> HostRun {
        HostRun {
            host: host.into(),
            state: HostState::Waiting,
            attempt: 0,
            start_at: 0,
            failed_step: None,
            failed_id: None,
            class: None,
            exit_code: None,
            reason: None,
            retried: 0,
            by: None,
            steps: 0,
            outputs: serde_json::Map::new(),
        }
    }

    /// The step its next attempt starts at: the one that failed; where none is known to have, the one this attempt started at.
    pub(super) fn resume_at(&self) -> u32 {
        self.failed_step.unwrap_or(self.start_at)
    }

    pub(super) fn take(&mut self, r: &HostResult) {
        self.state = match r.outcome {
            Outcome::Succeeded => HostState::Succeeded,
            Outcome::Failed => HostState::Failed,
            Outcome::Cancelled => HostState::HandStopped,
            Outcome::AutoStopped => HostState::AutoStopped,
            Outcome::NotStarted => HostState::NotStarted,
            Outcome::Unknown => HostState::Unknown,
        };
        // Who stopped it has to do with its end only where it did not come to its own.
        if matches!(self.state, HostState::Succeeded | HostState::Failed | HostState::AutoStopped) {
            self.by = None;
        }
        self.failed_step = r.failed_step;
        self.failed_id.clone_from(&r.failed_id);
        self.class = r.class;
        self.exit_code = r.exit_code;
        self.reason.clone_from(&r.reason);
        self.outputs.extend(r.outputs.clone());
    }
}
