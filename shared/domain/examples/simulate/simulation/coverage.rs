//! What the runs came by: a generator that never asks the question never hears the answer.

use std::collections::BTreeMap;
use windlass_domain::deployment::{State, table::Verb};

/// How often each thing was met, by group and name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<(&'static str, String), u64>);

impl Coverage {
    pub(crate) fn hit(&mut self, group: &'static str, name: impl Into<String>) {
        *self.0.entry((group, name.into())).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        for (k, n) in &other.0 {
            *self.0.entry(k.clone()).or_default() += n;
        }
    }

    /// What there is to be met, and never was.
    pub(crate) fn never_met(&self) -> Vec<String> {
        let all = [
            ("state", State::ALL.map(State::as_str).to_vec()),
            ("verb taken", VERBS.map(Verb::as_str).to_vec()),
            ("refusal", REFUSALS.to_vec()),
            ("fault", FAULTS.to_vec()),
        ];
        let missing = |(group, names): (&'static str, Vec<&str>)| {
            let never = |n: &&str| !self.0.contains_key(&(group, (*n).to_owned()));
            names.into_iter().filter(never).map(|n| format!("{group} {n}")).collect::<Vec<_>>()
        };
        all.into_iter().flat_map(missing).collect()
    }
}

/// A group a line.
impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut last = "";
        for ((group, name), n) in &self.0 {
            if *group != last {
                write!(f, "{}{group}:", if last.is_empty() { "" } else { "\n" })?;
                last = group;
            }
            write!(f, " {name} {n}")?;
        }
        Ok(())
    }
}

const VERBS: [Verb; 21] = [
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

const REFUSALS: [&str; 10] = [
    "wrong_state",
    "claimed",
    "required",
    "unsettled",
    "superseded",
    "plan_changed",
    "own_request",
    "not_asked",
    "nothing_to_do",
    "invalid",
];

const FAULTS: [&str; 18] = [
    "message lost",
    "message twice",
    "commit failed",
    "commit not heard of",
    "scheduler dies",
    "scheduler freezes",
    "executor dies",
    "executor freezes",
    "agent dies",
    "machine restarts",
    "machine is installed anew",
    "network of a host is cut",
    "a host is not heard",
    "clock jumps",
    "plan changes before the start",
    "version conflict",
    "work is taken over",
    "work was lost",
];
