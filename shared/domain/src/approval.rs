//! Approvals: human decisions bound to a plan's digest.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One rule of a policy. Each rule is met by itself: people who answer one do not answer another for free, they count for
/// every rule they are named in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    pub name: String,
    /// How many different people.
    pub quorum: u32,
    /// People by name; empty means anybody with the approve permission on the project.
    #[serde(default)]
    pub people: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Approve,
    Reject,
}

/// A recorded decision. `signature` is the api's Ed25519 signature over [`Approval::signed_text`], which agents check
/// against the approval key they were enrolled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub deployment: crate::ids::DeploymentId,
    pub plan_digest: String,
    pub person: String,
    pub decision: Decision,
    #[serde(default)]
    pub comment: String,
    pub at: Timestamp,
    /// Base64.
    pub signature: String,
}

impl Approval {
    /// The exact bytes that are signed.
    pub fn signed_text(&self) -> String {
        let decision = match self.decision {
            Decision::Approve => "approve",
            Decision::Reject => "reject",
        };
        format!(
            "windlass-approval-v1\n{}\n{}\n{}\n{decision}\n{}\n",
            self.deployment,
            self.plan_digest,
            self.person,
            self.at.timestamp_micros()
        )
    }
}

/// Why a decision is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the plan has changed since you looked: you approved {given}, the plan is now {current}; read it again")]
    OtherPlan { given: String, current: String },
    #[error("{0} requested this deployment and may not approve it; somebody else has to")]
    OwnRequest(String),
    #[error("{0} has already decided on this plan")]
    AlreadyDecided(String),
    #[error("no rule of this plan asks for {0}")]
    NotAsked(String),
}

/// Whether `person` may decide now.
pub fn check(
    rules: &[ApprovalRule],
    requester: &str,
    current_digest: &str,
    given: &[Approval],
    person: &str,
    digest: &str,
    decision: Decision,
) -> Result<(), Refusal> {
    if digest != current_digest {
        return Err(Refusal::OtherPlan { given: digest.into(), current: current_digest.into() });
    }
    if person == requester && decision == Decision::Approve {
        return Err(Refusal::OwnRequest(person.into()));
    }
    if given.iter().any(|a| a.person == person && a.plan_digest == current_digest) {
        return Err(Refusal::AlreadyDecided(person.into()));
    }
    if !rules.iter().any(|r| r.people.is_empty() || r.people.iter().any(|p| p == person)) {
        return Err(Refusal::NotAsked(person.into()));
    }
    Ok(())
}

/// What is still missing, rule by rule; empty means approved. Only approvals of `digest` by people other than the
/// requester count, each person once a rule.
pub fn missing(rules: &[ApprovalRule], requester: &str, digest: &str, given: &[Approval]) -> Vec<Missing> {
    rules
        .iter()
        .filter_map(|r| {
            let people: BTreeSet<&str> = given
                .iter()
                .filter(|a| a.plan_digest == digest && a.decision == Decision::Approve && a.person != requester)
                .filter(|a| r.people.is_empty() || r.people.contains(&a.person))
                .map(|a| a.person.as_str())
                .collect();
            let have = people.len() as u32;
            (have < r.quorum).then(|| Missing {
                rule: r.name.clone(),
                have,
                quorum: r.quorum,
                people: r.people.clone(),
            })
        })
        .collect()
}

/// A rule that is not met yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub rule: String,
    pub have: u32,
    pub quorum: u32,
    pub people: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yes(person: &str, digest: &str) -> Approval {
        Approval {
            deployment: uuid::Uuid::nil().into(),
            plan_digest: digest.into(),
            person: person.into(),
            decision: Decision::Approve,
            comment: String::new(),
            at: "2026-11-21T00:00:00Z".parse().expect("time"),
            signature: String::new(),
        }
    }
    fn rule(name: &str, quorum: u32, people: &[&str]) -> ApprovalRule {
        ApprovalRule { name: name.into(), quorum, people: people.iter().map(|p| p.to_string()).collect() }
    }

    #[test]
    fn each_rule_is_met_by_itself() {
        let rules = [rule("ops", 2, &[]), rule("boss", 1, &["zoe"])];
        let given = [yes("bob", "d"), yes("cat", "d")];
        let m = missing(&rules, "ann", "d", &given);
        assert_eq!(m.iter().map(|m| m.rule.as_str()).collect::<Vec<_>>(), ["boss"]);
        let m = missing(&rules, "ann", "d", &[yes("zoe", "d"), yes("bob", "d")]);
        assert!(m.is_empty());
    }

    #[test]
    fn own_and_stale_approvals_do_not_count() {
        let rules = [rule("ops", 1, &[])];
        assert_eq!(missing(&rules, "ann", "d", &[yes("ann", "d"), yes("bob", "old")]).len(), 1);
        assert!(matches!(check(&rules, "ann", "d", &[], "ann", "d", Decision::Approve), Err(Refusal::OwnRequest(_))));
        assert!(matches!(
            check(&rules, "ann", "d", &[], "bob", "old", Decision::Approve),
            Err(Refusal::OtherPlan { .. })
        ));
        assert!(matches!(
            check(&rules, "ann", "d", &[yes("bob", "d")], "bob", "d", Decision::Approve),
            Err(Refusal::AlreadyDecided(_))
        ));
        assert!(check(&rules, "ann", "d", &[], "ann", "d", Decision::Reject).is_ok());
    }
}
