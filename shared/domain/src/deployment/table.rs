//! The one table of verbs: what a person may do to a deployment, and what each state answers.
//!
//! [`Deployment::apply`] asks [`answer`] before anything else, the api offers what [`offered`] says, and
//! `ops/docs/verbs.md` is [`page`]. What a verb does to the steps, waves and hosts within is in [`within`]; a test walks
//! every pair of all four tables.

mod offered;
mod page;
pub mod within;

pub use offered::offered;
pub use page::page;

use super::{Input, State};
use crate::{access::Permission, approval::Decision};
use serde::{Deserialize, Serialize};

/// Everything a person can do to a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Approve,
    Reject,
    Accept,
    Cancel,
    Claim,
    Unclaim,
    Pause,
    Resume,
    Confirm,
    Choose,
    Retry,
    Skip,
    Ignore,
    Exclude,
    Stop,
    Fail,
    Succeed,
    Override,
    Abort,
    Rollback,
    /// Retry with other inputs.
    Amend,
}

/// What a state answers to a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It may be done, where there is something to do; the deployment stands in one of these afterwards. The state it was
    /// in may be among them: then something within changes.
    Moves(&'static [State]),
    /// A yes that changes nothing, and why.
    Idempotent(&'static str),
    Refused {
        /// Stable.
        code: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
}

impl Verb {
    pub const ALL: [Verb; 21] = [
        Verb::Approve,
        Verb::Reject,
        Verb::Accept,
        Verb::Cancel,
        Verb::Claim,
        Verb::Unclaim,
        Verb::Pause,
        Verb::Resume,
        Verb::Confirm,
        Verb::Choose,
        Verb::Retry,
        Verb::Skip,
        Verb::Ignore,
        Verb::Exclude,
        Verb::Stop,
        Verb::Fail,
        Verb::Succeed,
        Verb::Override,
        Verb::Abort,
        Verb::Rollback,
        Verb::Amend,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Approve => "approve",
            Verb::Reject => "reject",
            Verb::Accept => "accept",
            Verb::Cancel => "cancel",
            Verb::Claim => "claim",
            Verb::Unclaim => "unclaim",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Confirm => "confirm",
            Verb::Choose => "choose",
            Verb::Retry => "retry",
            Verb::Skip => "skip",
            Verb::Ignore => "ignore",
            Verb::Exclude => "exclude",
            Verb::Stop => "stop",
            Verb::Fail => "fail",
            Verb::Succeed => "succeed",
            Verb::Override => "override",
            Verb::Abort => "abort",
            Verb::Rollback => "rollback",
            Verb::Amend => "amend",
        }
    }

    /// What it does, in a sentence or two.
    pub fn says(self) -> &'static str {
        match self {
            Verb::Approve => {
                "Signs the plan with this digest. When every rule is met it goes on to its time and its queue. While a plan \
                 with other inputs waits (`amend`), it is that plan which is signed."
            }
            Verb::Reject => {
                "Turns the plan with this digest down. Before the run that ends the deployment; a plan with other inputs \
                 (`amend`) is dropped, and the deployment goes on waiting."
            }
            Verb::Accept => "Takes a plan that changed since it was asked for, where no rule makes anybody approve it.",
            Verb::Cancel => {
                "Ends a deployment before it runs. One that was taken up again (`retry`) has run before: it ends as aborted."
            }
            Verb::Claim => {
                "You answer for what the deployment waits for: nobody else steps in. Somebody else's claim is taken over \
                 only with `take_over` and a reason. Whoever steps in first claims by that; the claim ends by itself when \
                 nothing waits for a person any more."
            }
            Verb::Unclaim => "Lets your claim go, so that anybody may step in.",
            Verb::Pause => {
                "Nothing new starts, within a wave either: hosts that run go on to their end, hosts that wait go on waiting. \
                 The lock is kept."
            }
            Verb::Resume => "Ends an operator's pause.",
            Verb::Confirm => {
                "You looked at the wave that waits for it, and it is well. It then bakes, where that is asked for; a wave \
                 that has baked and stayed unclear is done."
            }
            Verb::Choose => {
                "Decides what an expression could not: a gateway's branch, whether a step runs (`run`, `skip`), whether a \
                 repeated step is done (`done`, `again`)."
            }
            Verb::Retry => {
                "Failed hosts and steps again, as a new attempt that begins at the step that failed; what succeeded is not \
                 repeated. `hosts` or `step` names some of them; `whole_wave` does all hosts of the failed wave from their \
                 first step on. A deployment that failed or was aborted is taken up again: it queues for its lock, keeps its \
                 plan and its approvals, and goes on where it stood; failures then wait for a person, whatever the flow says."
            }
            Verb::Skip => {
                "Goes on after the step that failed, on the hosts where it failed. A failed central step counts as skipped. \
                 Refused (`required`) for a step that is required."
            }
            Verb::Ignore => {
                "Goes on as if the failed hosts were well; they are listed as ignored and take part in later rollouts. A \
                 failed central step counts as skipped; probes that failed are passed over. Refused (`required`) for a step \
                 that is required."
            }
            Verb::Exclude => "Takes hosts out of this deployment: out of the wave that failed and of every later one.",
            Verb::Stop => {
                "Stops hosts that run, with everything they started. They count as stopped by hand, with who, when and why; \
                 a host that has not started yet counts as not started."
            }
            Verb::Fail => {
                "Calls a central step that runs failed. Its work is stopped, and whatever that still says, the step has \
                 failed."
            }
            Verb::Succeed => {
                "Calls a failed central step, or failed, stopped or never started hosts, well. Nothing runs for it: the word \
                 of a person stands in the record as such."
            }
            Verb::Override => {
                "Answers for hosts that went silent: they count as failed from here on, and the lock is no longer kept for \
                 them. What they may still be doing is not known."
            }
            Verb::Abort => {
                "Ends it: nothing further starts, what runs is stopped, and when that is known of every host it is aborted. \
                 Hosts that went silent are listed as unknown and keep the lock."
            }
            Verb::Rollback => {
                "Goes back to a version that was known good here, by a deployment of its own. What runs is aborted first. A \
                 rollback is not rolled back: release the version you want."
            }
            Verb::Amend => {
                "Retry with other inputs: a new plan of the same release with the same steps, waves and hosts. Once it is \
                 approved as its rules ask, what has yet to run goes on under it; what runs meanwhile keeps the old one."
            }
        }
    }

    /// The right it takes.
    pub fn permission(self) -> Permission {
        match self {
            Verb::Approve | Verb::Reject => Permission::Approve,
            Verb::Accept | Verb::Cancel => Permission::Trigger,
            Verb::Fail | Verb::Succeed | Verb::Override => Permission::Override,
            Verb::Claim
            | Verb::Unclaim
            | Verb::Pause
            | Verb::Resume
            | Verb::Confirm
            | Verb::Choose
            | Verb::Retry
            | Verb::Skip
            | Verb::Ignore
            | Verb::Exclude
            | Verb::Stop
            | Verb::Abort
            | Verb::Rollback
            | Verb::Amend => Permission::Operate,
        }
    }

    /// Whether it is refused while somebody else has claimed the deployment, and claims it where nobody has. `confirm` only
    /// where the wave's probes failed or stayed unclear, `retry` only while it runs.
    pub fn claims(self) -> bool {
        matches!(
            self,
            Verb::Retry
                | Verb::Skip
                | Verb::Ignore
                | Verb::Exclude
                | Verb::Choose
                | Verb::Confirm
                | Verb::Fail
                | Verb::Succeed
                | Verb::Amend
        )
    }

    /// Which verb an input is; `None` for what no person does.
    pub fn of(input: &Input) -> Option<Verb> {
        Some(match input {
            Input::Decide(a) => match a.decision {
                Decision::Approve => Verb::Approve,
                Decision::Reject => Verb::Reject,
            },
            Input::Accept { .. } => Verb::Accept,
            Input::Cancel { .. } => Verb::Cancel,
            Input::Claim { .. } => Verb::Claim,
            Input::Unclaim { .. } => Verb::Unclaim,
            Input::Pause { .. } => Verb::Pause,
            Input::Resume { .. } => Verb::Resume,
            Input::Confirm { .. } => Verb::Confirm,
            Input::Choose { .. } => Verb::Choose,
            Input::Retry { .. } => Verb::Retry,
            Input::Skip { .. } => Verb::Skip,
            Input::Ignore { .. } => Verb::Ignore,
            Input::Exclude { .. } => Verb::Exclude,
            Input::Stop { .. } => Verb::Stop,
            Input::Fail { .. } => Verb::Fail,
            Input::Succeed { .. } => Verb::Succeed,
            Input::Override { .. } => Verb::Override,
            Input::Abort { .. } => Verb::Abort,
            Input::Rollback { .. } => Verb::Rollback,
            Input::Amend { .. } => Verb::Amend,
            Input::RolledBack
            | Input::PlanChanged(_)
            | Input::TurnCame
            | Input::LockTaken { .. }
            | Input::WorkSettled { .. }
            | Input::Tick => return None,
        })
    }
}

const fn no(remedy: &'static str) -> Answer {
    Answer::Refused { code: "wrong_state", remedy }
}

/// Where a run may stand once a person stepped in and what follows at once has followed.
const RUN: &[State] = &[State::Running, State::Paused, State::Succeeded, State::Failed];
const NOT_YET: &str = "nothing of it has run yet: cancel it if it is not to run";
const ABORTING: &str = "it is being aborted: wait until that has ended";
const NEVER_RAN: &str = "it ended before anything ran: request it again";
const WELL: &str = "it ended well: request a new deployment, or roll it back";
const GONE_BACK: &str = "it was rolled back: request a new deployment";
const TAKE_UP: &str = "it has ended: take it up again with retry first";

/// For verbs that step into a run.
const fn in_run(state: State, moves: &'static [State]) -> Answer {
    match state {
        State::Running | State::Paused => Answer::Moves(moves),
        State::AwaitingApproval | State::Scheduled | State::Queued => no(NOT_YET),
        State::Aborting => no(ABORTING),
        State::Failed | State::Aborted => no(TAKE_UP),
        State::Succeeded => no(WELL),
        State::RolledBack => no(GONE_BACK),
        State::Rejected | State::Expired | State::Cancelled => no(NEVER_RAN),
    }
}

/// The answer of every state to every verb. Time may end a deployment in the same change: one that waits for its start as
/// expired, one whose patience is over as its flow says.
pub const fn answer(state: State, verb: Verb) -> Answer {
    use Answer::{Idempotent, Moves};
    use State::*;
    match verb {
        Verb::Approve => match state {
            AwaitingApproval => Moves(&[AwaitingApproval, Scheduled, Queued]),
            Running | Paused => Moves(RUN),
            Scheduled | Queued => no("its plan is approved already"),
            Aborting => no(ABORTING),
            Succeeded | Failed | Aborted | RolledBack => no("it has ended: there is nothing to approve"),
            Rejected | Expired | Cancelled => no(NEVER_RAN),
        },
        Verb::Reject => match state {
            AwaitingApproval => Moves(&[Rejected]),
            Running | Paused => Moves(&[Running, Paused]),
            Scheduled | Queued => no("its plan is approved already: cancel it"),
            Aborting => no(ABORTING),
            Succeeded | Failed | Aborted | RolledBack => no("it has ended: there is nothing to reject"),
            Rejected | Expired | Cancelled => no("it ended before anything ran"),
        },
        Verb::Accept => match state {
            AwaitingApproval => Moves(&[AwaitingApproval, Scheduled, Queued]),
            Scheduled | Queued => no("its plan is the one that was asked for, or was accepted already"),
            Running | Paused | Aborting => no("it runs already"),
            Succeeded | Failed | Aborted | RolledBack => no("it has ended: there is no plan to accept"),
            Rejected | Expired | Cancelled => no(NEVER_RAN),
        },
        Verb::Cancel => match state {
            AwaitingApproval | Scheduled => Moves(&[Cancelled]),
            Queued => Moves(&[Cancelled, Aborted]),
            Running | Paused => no("abort it"),
            Aborting => no("it is being aborted already"),
            Cancelled => Idempotent("it is cancelled already"),
            Succeeded | Failed | Aborted | RolledBack | Rejected | Expired => no("it is over already"),
        },
        Verb::Claim => in_run(state, &[Running, Paused]),
        Verb::Unclaim => match state {
            Running | Paused => Moves(&[Running, Paused]),
            AwaitingApproval | Scheduled | Queued | Aborting | Succeeded | Failed | Aborted | RolledBack | Rejected
            | Expired | Cancelled => no("nobody has claimed it: a claim ends with the run at the latest"),
        },
        Verb::Pause => in_run(state, &[Paused]),
        Verb::Resume => match state {
            Paused => Moves(RUN),
            Running => no("it is not paused"),
            AwaitingApproval | Scheduled | Queued => no("nothing of it has run yet, so nothing is paused"),
            Aborting => no(ABORTING),
            Failed | Aborted => no(TAKE_UP),
            Succeeded => no(WELL),
            RolledBack => no(GONE_BACK),
            Rejected | Expired | Cancelled => no(NEVER_RAN),
        },
        Verb::Confirm
        | Verb::Choose
        | Verb::Skip
        | Verb::Ignore
        | Verb::Exclude
        | Verb::Fail
        | Verb::Succeed
        | Verb::Amend => in_run(state, RUN),
        Verb::Stop => in_run(state, &[Running, Paused]),
        Verb::Retry => match state {
            Failed | Aborted => Moves(&[Queued]),
            Running | Paused | AwaitingApproval | Scheduled | Queued | Aborting | Succeeded | RolledBack | Rejected
            | Expired | Cancelled => in_run(state, RUN),
        },
        Verb::Override => match state {
            Running | Paused => Moves(RUN),
            Aborting => Moves(&[Aborting, Aborted]),
            Failed => Moves(&[Failed]),
            Aborted => Moves(&[Aborted]),
            RolledBack => Moves(&[RolledBack]),
            Succeeded => no("it ended well: no host of it is unknown"),
            AwaitingApproval | Scheduled | Queued => no("nothing of it runs, so no host of it is unknown"),
            Rejected | Expired | Cancelled => no("it ended before anything ran: no host of it is unknown"),
        },
        Verb::Abort => match state {
            Running | Paused => Moves(&[Aborting, Aborted]),
            Aborting => Idempotent("it is being aborted already"),
            Aborted => Idempotent("it is aborted already"),
            AwaitingApproval | Scheduled | Queued => no("cancel it"),
            Succeeded | Failed | RolledBack | Rejected | Expired | Cancelled => no("it is over already"),
        },
        Verb::Rollback => match state {
            Running | Paused => Moves(&[Aborting, Aborted]),
            Succeeded => Moves(&[Succeeded]),
            Failed => Moves(&[Failed]),
            Aborted => Moves(&[Aborted]),
            AwaitingApproval | Scheduled | Queued => no("cancel it"),
            Aborting => no("wait until the abort has ended, then roll it back"),
            RolledBack => no("it is rolled back already"),
            Rejected | Expired | Cancelled => no("nothing of it ran: there is nothing to go back from"),
        },
    }
}
