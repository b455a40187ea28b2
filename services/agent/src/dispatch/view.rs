//! What the rest of the agent may know of the state.

use super::{Dispatch, Phase, Policy, Verifier};
use crate::journal::Entry;
use windlass_contracts::frames::{OpenState, OpenTask};
use windlass_domain::{
    ids::TaskId,
    task::{TaskReport, TaskSpec},
};

impl Dispatch {
    /// Tasks with an INTENT and no end, with the boot they were started in.
    pub fn running(&self) -> Vec<(TaskId, String)> {
        self.tasks
            .iter()
            .filter_map(|(id, t)| match &t.phase {
                Phase::Running { boot_id, .. } => Some((*id, boot_id.clone())),
                _ => None,
            })
            .collect()
    }

    /// Results that are not acknowledged yet.
    pub fn unacked(&self) -> Vec<(TaskId, TaskReport)> {
        self.tasks
            .iter()
            .filter_map(|(id, t)| match &t.phase {
                Phase::Ended { report, acked: false } => Some((*id, (**report).clone())),
                _ => None,
            })
            .collect()
    }

    /// The report of an ended task.
    pub fn report(&self, task: TaskId) -> Option<&TaskReport> {
        match &self.tasks.get(&task)?.phase {
            Phase::Ended { report, .. } => Some(report),
            _ => None,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.verifier.policy
    }

    /// What an accepted task is to run, while its runner has not ended.
    pub fn spec(&self, task: TaskId) -> Option<&TaskSpec> {
        self.tasks.get(&task)?.accepted.as_ref().map(|a| &a.spec)
    }

    /// Whether the task waits for its grant.
    pub fn is_accepted(&self, task: TaskId) -> bool {
        self.tasks.get(&task).is_some_and(|t| matches!(t.phase, Phase::Accepted { .. }))
    }

    /// Whether the id was ever accepted or fenced here.
    pub fn knows(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task) || self.known.contains(&task)
    }

    /// Whether the task's result is acknowledged, or the task is not known (any more).
    pub fn is_settled(&self, task: TaskId) -> bool {
        self.tasks.get(&task).is_none_or(|t| matches!(t.phase, Phase::Ended { acked: true, .. }))
    }

    /// [`Dispatch::open`] of a journal, for those who only look.
    pub fn open_in(journal: &[Entry]) -> Vec<OpenTask> {
        let approval_key = nkeys::KeyPair::new_user();
        let verifier = Verifier { policy: Policy::default(), host: String::new(), approval_key };
        Dispatch::new(verifier, "", journal).open()
    }

    /// For HELLO: all that is not acknowledged.
    pub fn open(&self) -> Vec<OpenTask> {
        self.tasks
            .iter()
            .filter_map(|(id, t)| {
                let state = match &t.phase {
                    Phase::Accepted { .. } => OpenState::Accepted,
                    Phase::Running { .. } => OpenState::Running,
                    Phase::Ended { acked: false, .. } => OpenState::Ended,
                    Phase::Ended { acked: true, .. } => return None,
                };
                Some(OpenTask { task: *id, state })
            })
            .collect()
    }
}
