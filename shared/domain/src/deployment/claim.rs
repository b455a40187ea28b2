//! Claims: who answers for a deployment that waits for people. The first who steps in claims it by that; others are refused
//! until it is released or taken over, so that no two people mend one thing in two ways. Stopping harm never waits for a
//! claim: abort, rollback, pause, stop and override are open to everybody who has the right.

use super::{transition::Step, *};
use serde_json::json;

/// A person, and no hook or service: those have a colon in their name, and the scheduler calls itself `windlass`.
pub(super) fn is_person(by: &str) -> bool {
    !by.is_empty() && by != "windlass" && !by.contains(':')
}

impl Deployment {
    /// Whether this person is kept from stepping in by somebody else's claim.
    pub(super) fn claimed_by_another(&self, person: &str) -> Option<&By> {
        self.claim.as_ref().filter(|c| c.who != person)
    }
}

impl Step<'_> {
    /// Somebody acts on what has failed: theirs from now on, unless it is somebody else's.
    pub(super) fn step_in(&mut self, by: &str) -> Result<(), Refusal> {
        if let Some(c) = self.d.claimed_by_another(by) {
            return Err(Refusal::Claimed { who: c.who.clone(), since: c.at });
        }
        if self.d.claim.is_none() && is_person(by) {
            self.d.claim = Some(By { who: by.into(), reason: String::new(), at: self.now });
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, by: &str, take_over: bool, reason: &str) -> Result<(), Refusal> {
        if !is_person(by) {
            return Err(Refusal::Invalid(format!("{by} is no person: only people can claim a deployment")));
        }
        let claim = By { who: by.into(), reason: reason.into(), at: self.now };
        match &self.d.claim {
            Some(c) if c.who == by => return Ok(()),
            Some(c) if !take_over => return Err(Refusal::Claimed { who: c.who.clone(), since: c.at }),
            Some(_) if reason.trim().is_empty() => {
                return Err(Refusal::Invalid("say why you take the claim over: give a reason".into()));
            }
            Some(c) => {
                let payload = json!({ "by": by, "from": c.who, "reason": reason });
                self.event("deployment.claim_taken_over", Severity::Notice, payload);
            }
            None if self.d.waits_for_person().is_empty() => {
                let why = "it waits for no person: there is nothing to claim; `waiting_on` says what it waits for";
                return Err(Refusal::NothingToDo(why.into()));
            }
            None => self.event("deployment.claimed", Severity::Info, json!({ "by": by, "reason": reason })),
        }
        self.d.claim = Some(claim);
        Ok(())
    }

    pub(super) fn unclaim(&mut self, by: &str) -> Result<(), Refusal> {
        match &self.d.claim {
            None => return Err(Refusal::NothingToDo("nobody has claimed it".into())),
            Some(c) if c.who != by => return Err(Refusal::Claimed { who: c.who.clone(), since: c.at }),
            Some(_) => self.d.claim = None,
        }
        self.event("deployment.unclaimed", Severity::Info, json!({ "by": by }));
        Ok(())
    }

    /// Ends a claim that nothing asks for any more, and says what became of claims that were made by stepping in. `before`
    /// is the claim as the change began.
    pub(super) fn settle_claim(&mut self, before: Option<&By>) {
        let runs = matches!(self.d.state, State::Running | State::Paused);
        let over = !runs || self.d.waits_for_person().is_empty();
        match (before, self.d.claim.clone()) {
            (was, Some(_)) if over => {
                self.d.claim = None;
                // A claim that was made and used up in one change was never anything to anybody.
                if let Some(was) = was {
                    let payload = json!({ "by": "windlass", "from": was.who, "reason": "nothing waits for a person" });
                    self.event("deployment.unclaimed", Severity::Info, payload);
                }
            }
            (None, Some(c)) => {
                let said = self.effects.iter().any(|e| matches!(e, Effect::Event { what: "deployment.claimed", .. }));
                if !said {
                    let payload = json!({ "by": c.who, "reason": "stepped in first" });
                    self.event("deployment.claimed", Severity::Info, payload);
                }
            }
            _ => {}
        }
    }
}
