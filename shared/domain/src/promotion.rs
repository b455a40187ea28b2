//! Promotion: an environment that takes only what another one has proven.
//!
//! An artifact is *verified* in an environment when a deployment of it to all of that environment ended well and was not
//! rolled back. What counts is the artifact's digest, so a rebuilt version has to prove itself anew.

use crate::{Timestamp, catalog::Environment, release::ReleaseKind};
use serde::{Deserialize, Serialize};

/// That a digest ended well in an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub environment: String,
    pub at: Timestamp,
}

/// What is missing; the text says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error(
        "{project}/{to} takes only what was verified in {from}: version {version} has no deployment there that ended well and \
         was not rolled back (same digest {digest}); deploy it to {from} first, or promote what is good there: \
         windlass promote {project} --from {from} --to {to}"
    )]
    NotVerified { project: String, from: String, to: String, version: String, digest: String },
    #[error(
        "{project}/{to} takes only what has been good in {from} for {needed_s} s: version {version} is verified there since \
         {at}; ask again after {until}, or with `not_before`"
    )]
    TooSoon {
        project: String,
        from: String,
        to: String,
        version: String,
        needed_s: u64,
        at: Timestamp,
        until: Timestamp,
    },
}

/// How a deployment came past the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// Nothing is asked of this environment, or of a rollback.
    NotAsked,
    Verified,
    /// A hotfix that the policy lets through; the record says so.
    Hotfix,
}

/// Whether an artifact may go to `to` at `at`. All environments of `promote_from` must have verified it. Rollbacks always may:
/// going back to what was good must not wait.
pub fn check(
    to: &Environment,
    kind: ReleaseKind,
    hotfix_skips: bool,
    version: &str,
    digest: &str,
    verified: &[Verified],
    at: Timestamp,
) -> Result<Passed, Box<Missing>> {
    if to.promote_from.is_empty() || kind == ReleaseKind::Rollback {
        return Ok(Passed::NotAsked);
    }
    if kind == ReleaseKind::Hotfix && hotfix_skips {
        return Ok(Passed::Hotfix);
    }
    for from in &to.promote_from {
        let names = || (to.project.clone(), from.clone(), to.name.clone(), version.to_owned());
        let Some(v) = verified.iter().find(|v| v.environment == *from) else {
            let (project, from, to, version) = names();
            return Err(Missing::NotVerified { project, from, to, version, digest: digest.into() }.into());
        };
        let needed_s = to.verified_for_s();
        let until = v.at + std::time::Duration::from_secs(needed_s);
        if at < until {
            let (project, from, to, version) = names();
            return Err(Missing::TooSoon { project, from, to, version, needed_s, at: v.at, until }.into());
        }
    }
    Ok(Passed::Verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: &str) -> Timestamp {
        format!("2026-11-21T{s}Z").parse().expect("time")
    }
    fn online(from: &[&str], verified_for: Option<&str>) -> Environment {
        Environment {
            project: "shop".into(),
            name: "online".into(),
            promote_from: from.iter().map(|f| f.to_string()).collect(),
            verified_for: verified_for.map(Into::into),
            ..Default::default()
        }
    }
    fn ask(
        e: &Environment,
        kind: ReleaseKind,
        hotfix: bool,
        v: &[Verified],
        now: &str,
    ) -> Result<Passed, Box<Missing>> {
        check(e, kind, hotfix, "1.0", "sha256:aa", v, at(now))
    }

    #[test]
    fn all_named_environments_must_have_verified_it() {
        let e = online(&["beta", "gray"], None);
        let beta = Verified { environment: "beta".into(), at: at("10:00:00") };
        let gray = Verified { environment: "gray".into(), at: at("11:00:00") };
        let e1 =
            ask(&e, ReleaseKind::Normal, false, std::slice::from_ref(&beta), "12:00:00").expect_err("gray is missing");
        assert!(e1.to_string().contains("verified in gray") && e1.to_string().contains("--from gray"), "{e1}");
        assert_eq!(ask(&e, ReleaseKind::Normal, false, &[beta, gray], "12:00:00"), Ok(Passed::Verified));
    }

    #[test]
    fn it_must_have_been_good_for_long_enough() {
        let e = online(&["beta"], Some("10m"));
        let v = [Verified { environment: "beta".into(), at: at("10:00:00") }];
        let soon = ask(&e, ReleaseKind::Normal, false, &v, "10:09:59");
        let until = at("10:10:00");
        assert!(
            soon.as_ref().is_err_and(|e| matches!(**e, Missing::TooSoon { until: u, .. } if u == until)),
            "{soon:?}"
        );
        assert_eq!(ask(&e, ReleaseKind::Normal, false, &v, "10:10:00"), Ok(Passed::Verified));
    }

    #[test]
    fn only_rollbacks_and_allowed_hotfixes_pass_unproven() {
        let e = online(&["beta"], None);
        let now = "10:00:00";
        assert_eq!(ask(&e, ReleaseKind::Rollback, false, &[], now), Ok(Passed::NotAsked));
        assert_eq!(ask(&e, ReleaseKind::Hotfix, true, &[], now), Ok(Passed::Hotfix));
        assert!(ask(&e, ReleaseKind::Hotfix, false, &[], now).is_err());
        assert!(ask(&e, ReleaseKind::Normal, true, &[], now).is_err());
        assert_eq!(ask(&online(&[], None), ReleaseKind::Normal, false, &[], now), Ok(Passed::NotAsked));
    }
}
