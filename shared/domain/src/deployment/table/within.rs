//! What each verb does to the steps, waves and hosts of a run, by the state they are in. A verb that a state of the
//! deployment refuses changes nothing within either, so these tables speak of deployments that run or are paused.

use super::Verb;
use crate::deployment::{HostState, StepState, WaveState};

/// What a verb does to a part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does<S: 'static> {
    /// Not its business: the part stays as it is.
    Nothing,
    /// It stands in one of these once the verb, and what follows at once, is done; the note says when which.
    Becomes(&'static [S], &'static str),
    /// Who names this part is refused.
    Refused {
        /// Stable.
        code: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

/// [`WaveState`] without its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaveKind {
    Waiting,
    Running,
    Confirming,
    Baking,
    Probing,
    Retrying,
    Succeeded,
    Failed,
    Stopped,
}

impl WaveKind {
    pub const ALL: [WaveKind; 9] = [
        WaveKind::Waiting,
        WaveKind::Running,
        WaveKind::Confirming,
        WaveKind::Baking,
        WaveKind::Probing,
        WaveKind::Retrying,
        WaveKind::Succeeded,
        WaveKind::Failed,
        WaveKind::Stopped,
    ];

    pub fn of(state: WaveState) -> WaveKind {
        match state {
            WaveState::Waiting => WaveKind::Waiting,
            WaveState::Running => WaveKind::Running,
            WaveState::Confirming => WaveKind::Confirming,
            WaveState::Baking { .. } => WaveKind::Baking,
            WaveState::Probing { .. } => WaveKind::Probing,
            WaveState::Retrying { .. } => WaveKind::Retrying,
            WaveState::Succeeded => WaveKind::Succeeded,
            WaveState::Failed => WaveKind::Failed,
            WaveState::Stopped => WaveKind::Stopped,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            WaveKind::Waiting => "waiting",
            WaveKind::Running => "running",
            WaveKind::Confirming => "confirming",
            WaveKind::Baking => "baking",
            WaveKind::Probing => "probing",
            WaveKind::Retrying => "retrying",
            WaveKind::Succeeded => "succeeded",
            WaveKind::Failed => "failed",
            WaveKind::Stopped => "stopped",
        }
    }
}

pub(crate) const STEPS: [StepState; 7] = [
    StepState::Waiting,
    StepState::Running,
    StepState::Succeeded,
    StepState::Failed,
    StepState::Skipped,
    StepState::NotTaken,
    StepState::Stopped,
];

pub(crate) const HOSTS: [HostState; 10] = [
    HostState::Waiting,
    HostState::Running,
    HostState::Succeeded,
    HostState::Failed,
    HostState::HandStopped,
    HostState::AutoStopped,
    HostState::NotStarted,
    HostState::Unknown,
    HostState::Ignored,
    HostState::Excluded,
];

const fn idle<S>(remedy: &'static str) -> Does<S> {
    Does::Refused { code: "nothing_to_do", remedy }
}

const fn unsettled<S>(remedy: &'static str) -> Does<S> {
    Does::Refused { code: "unsettled", remedy }
}

const END: &str = "once what runs has ended";

/// What a verb does to a central step in this state. Rollouts are moved by their waves; a gateway, and the way into or out of a
/// subflow, by `choose` and by what happens to the steps around and within.
pub const fn step(state: StepState, verb: Verb) -> Does<StepState> {
    use Does::{Becomes, Nothing};
    use StepState::*;
    match (verb, state) {
        (Verb::Choose, Waiting) => Becomes(&[Running, Skipped], "where it asks: `run` or `skip`"),
        (Verb::Choose, Running) => Becomes(&[Succeeded, Running], "where it asks: `done` or `again`"),
        (Verb::Choose, Succeeded | Failed | Skipped | NotTaken | Stopped) => idle("it asks for nothing"),
        (Verb::Retry, Failed) => Becomes(&[Running, Waiting], "a new attempt; waiting while it is paused"),
        (Verb::Retry, Stopped) => idle("retry what failed before it"),
        (Verb::Retry, Waiting | Running | Succeeded | Skipped | NotTaken) => idle("it has not failed"),
        (Verb::Skip | Verb::Ignore, Failed) => Becomes(&[Skipped], "unless it is required"),
        (Verb::Fail, Running) => Becomes(&[Running, Failed], "running until its work is stopped, then failed"),
        (Verb::Fail, Waiting) => idle("it does not run: exclude its hosts, or abort"),
        (Verb::Fail, Succeeded | Failed | Skipped | NotTaken | Stopped) => idle("it does not run any more"),
        (Verb::Succeed, Failed) => Becomes(&[Succeeded], "by a person's word"),
        (Verb::Succeed, Running) => idle("it runs: wait for it, or call it failed first"),
        (Verb::Succeed, Waiting | Succeeded | Skipped | NotTaken | Stopped) => idle("it has not failed"),
        (Verb::Amend | Verb::Approve, Failed) => {
            Becomes(&[Running, Waiting, Failed], "as retry, once the plan with other inputs is approved")
        }
        (Verb::Abort | Verb::Rollback, Waiting) => Becomes(&[Stopped, Waiting], END),
        (Verb::Abort | Verb::Rollback, Running) => Becomes(&[Running], "it is what its work says in the end"),
        _ => Nothing,
    }
}

/// What a verb does to a wave in this state; verbs that name hosts name hosts of it.
pub const fn wave(state: WaveKind, verb: Verb) -> Does<WaveKind> {
    use Does::{Becomes, Nothing};
    use WaveKind::*;
    /// Judged anew: it is done, goes on with hosts that were stopped, or still fails its budget.
    const JUDGED: &[WaveKind] = &[Succeeded, Running, Confirming, Baking, Probing, Waiting, Failed];
    match (verb, state) {
        (Verb::Confirm, Confirming) => {
            Becomes(&[Succeeded, Baking, Probing], "it bakes where that is asked for and has not been done")
        }
        (Verb::Confirm, Waiting | Running | Baking | Probing | Retrying | Succeeded | Failed | Stopped) => {
            idle("it does not wait for a confirmation")
        }
        (Verb::Retry, Failed) => Becomes(&[Running, Waiting, Probing], "probes that failed are looked at again"),
        (Verb::Skip, Failed) => Becomes(JUDGED, "its failed hosts go on after the failed step"),
        (Verb::Ignore | Verb::Exclude | Verb::Succeed, Failed) => Becomes(JUDGED, "judged anew without these failures"),
        (Verb::Amend | Verb::Approve, Failed) => {
            Becomes(&[Running, Waiting, Failed], "as retry, once the plan with other inputs is approved")
        }
        (Verb::Abort | Verb::Rollback, Waiting) => Becomes(&[Stopped, Waiting], END),
        (Verb::Abort | Verb::Rollback, Confirming | Baking) => Becomes(&[Succeeded, Confirming, Baking], END),
        (Verb::Abort | Verb::Rollback, Retrying) => Becomes(&[Failed, Retrying], END),
        _ => Nothing,
    }
}

/// What a verb does to a host in this state, where it is named.
pub const fn host(state: HostState, verb: Verb) -> Does<HostState> {
    use Does::{Becomes, Nothing};
    use HostState::*;
    const SILENT: &str = "it may still be running: wait for it, or override it first";
    match (verb, state) {
        (Verb::Retry, Failed | HandStopped | NotStarted) => Becomes(&[Running, Waiting], "a new attempt"),
        (Verb::Retry | Verb::Skip, AutoStopped) => idle("it follows when what stopped it is mended"),
        (Verb::Retry | Verb::Skip | Verb::Succeed, Unknown) => unsettled(SILENT),
        (Verb::Retry | Verb::Skip, Waiting | Running | Succeeded | Ignored | Excluded) => idle("it has not failed"),
        (Verb::Skip, Failed | HandStopped) => {
            Becomes(&[Running, Waiting, Succeeded], "succeeded when it was the last step")
        }
        (Verb::Skip, NotStarted) => idle("it never started: there is no step to skip"),
        (Verb::Ignore, Failed | HandStopped | NotStarted) => {
            Becomes(&[Ignored], "unless a required step is missing there")
        }
        (Verb::Ignore, Unknown) => unsettled(SILENT),
        (Verb::Ignore, Waiting | Running | Succeeded | AutoStopped | Ignored | Excluded) => idle("it has not failed"),
        (Verb::Exclude, Running) => unsettled("it runs: stop it first, or wait for it"),
        (Verb::Exclude, Unknown) => unsettled(SILENT),
        (Verb::Exclude, Succeeded | Excluded) => idle("it is done, or excluded already"),
        (Verb::Exclude, Waiting | Failed | HandStopped | AutoStopped | NotStarted | Ignored) => {
            Becomes(&[Excluded], "in this wave and all later ones")
        }
        (Verb::Stop, Running) => Becomes(&[Running], "hand-stopped when that is known"),
        (Verb::Stop, Unknown) => unsettled(SILENT),
        (Verb::Stop, Waiting | Succeeded | Failed | HandStopped | AutoStopped | NotStarted | Ignored | Excluded) => {
            idle("it does not run")
        }
        (Verb::Succeed, Failed | HandStopped | NotStarted) => Becomes(&[Succeeded], "by a person's word"),
        (Verb::Succeed, Waiting | Running | Succeeded | AutoStopped | Ignored | Excluded) => idle("it has not failed"),
        (Verb::Override, Unknown) => Becomes(&[Failed], "by a person's word"),
        (
            Verb::Override,
            Waiting | Running | Succeeded | Failed | HandStopped | AutoStopped | NotStarted | Ignored | Excluded,
        ) => idle("it is not unknown"),
        (Verb::Amend | Verb::Approve, Failed | HandStopped | NotStarted) => {
            Becomes(&[Running, Waiting, Failed, HandStopped, NotStarted], "as retry, once the plan is approved")
        }
        (Verb::Abort | Verb::Rollback, Waiting) => Becomes(&[AutoStopped, Waiting], END),
        (Verb::Abort | Verb::Rollback, Running) => {
            Becomes(&[Running], "it is stopped, or proves never to have started")
        }
        _ => Nothing,
    }
}
