//! What a look says about a probe, and what many looks say about the wave.
//!
//! A probe is judged by its expressions over what it read. With both, it fails where `fail` is true and succeeds where
//! `success` is; with one alone, the other is its opposite; with none, it succeeds when the call did. What could not be asked
//! is null: an expression that cannot deal with that says nothing, and the look is inconclusive.

use serde_json::{Value, json};
use windlass_domain::{
    expression::{Context, Expression},
    plan::{Judge, PlanProbes},
    work::{ProbeResult, Verdict, WorkResult},
};

/// Of what was read, so much is kept in a result. Expressions saw all of it.
const KEPT_VALUE: usize = 4096;

/// What a probe read in one look.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Looked {
    value: Value,
    /// The call's own verdict, where there are no expressions.
    verdict: Verdict,
    reason: Option<String>,
}

/// How a check came out on hosts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) ok: u32,
    pub(super) failed: u32,
    pub(super) total: u32,
    /// The first host that failed, and why.
    pub(super) first_failed: Option<String>,
    /// The first host that could not be asked, and why.
    pub(super) not_asked: Option<String>,
}

impl Looked {
    pub(super) fn nothing(reason: impl Into<String>) -> Looked {
        Looked { value: Value::Null, verdict: Verdict::Inconclusive, reason: Some(reason.into()) }
    }

    pub(super) fn on_hosts(c: Counts) -> Looked {
        let value = json!({ "ok": c.ok, "failed": c.failed, "total": c.total });
        let (verdict, reason) = match (c.first_failed, c.not_asked) {
            (Some(first), _) => {
                (Verdict::Fail, Some(format!("failed on {} of {} hosts, first {first}", c.failed, c.total)))
            }
            (None, Some(first)) => {
                (Verdict::Inconclusive, Some(format!("not every host could be asked, first {first}")))
            }
            (None, None) => (Verdict::Success, None),
        };
        Looked { value, verdict, reason }
    }

    /// What a call of the executor gave.
    pub(super) fn central(action: &str, output: Value, failed: Option<String>) -> Looked {
        let value = match action {
            "prometheus.query" => output.get("value").cloned().unwrap_or_default(),
            _ => output.clone(),
        };
        let several = || {
            let n = output.get("series").and_then(Value::as_array).map_or(0, Vec::len);
            format!("the query gave {n} samples that are numbers instead of one")
        };
        match (&value, failed) {
            // It answered, only not as it should have.
            (Value::Object(_), Some(reason)) => Looked { value, verdict: Verdict::Fail, reason: Some(reason) },
            // Whoever cannot be reached is not well; a Prometheus that cannot be asked says nothing about the wave.
            (_, Some(reason)) if action == "prometheus.query" => Looked::nothing(reason),
            (_, Some(reason)) => Looked { value: Value::Null, verdict: Verdict::Fail, reason: Some(reason) },
            (Value::Null, None) => Looked { value, verdict: Verdict::Inconclusive, reason: Some(several()) },
            (_, None) => Looked { value, verdict: Verdict::Success, reason: None },
        }
    }
}

/// A probe through all looks.
#[derive(Debug)]
pub(super) struct Standing {
    result: ProbeResult,
    success: Option<Result<Expression, String>>,
    fail: Option<Result<Expression, String>>,
    failures: u32,
    in_a_row: u32,
}

impl Standing {
    /// Every probe before the first look, those of the executor first.
    pub(super) fn of_all(probes: &PlanProbes) -> Vec<Standing> {
        let ids = probes.central.iter().map(|p| &p.id).chain(probes.on_hosts.iter().map(|s| &s.id));
        ids.map(|id| Standing::new(id, probes.judge.get(id))).collect()
    }

    fn new(id: &str, judge: Option<&Judge>) -> Standing {
        let compiled = |text: &String| Expression::compile(text).map_err(|e| e.to_string());
        Standing {
            result: ProbeResult {
                probe: id.to_owned(),
                verdict: Verdict::Inconclusive,
                looks: 0,
                value: Value::Null,
                reason: Some("nobody has looked yet".into()),
            },
            success: judge.and_then(|j| j.success.as_ref()).map(compiled),
            fail: judge.and_then(|j| j.fail.as_ref()).map(compiled),
            failures: judge.map_or(1, |j| j.failures.max(1)),
            in_a_row: 0,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.result.probe
    }

    /// Counts a look in.
    pub(super) fn take(&mut self, looked: Looked) {
        let (verdict, reason) = self.judge(&looked);
        self.in_a_row = if verdict == Verdict::Fail { self.in_a_row.saturating_add(1) } else { 0 };
        self.result.looks = self.result.looks.saturating_add(1);
        self.result.verdict = verdict;
        self.result.reason = reason;
        self.result.value = kept(looked.value);
    }

    fn judge(&self, looked: &Looked) -> (Verdict, Option<String>) {
        if self.success.is_none() && self.fail.is_none() {
            return (looked.verdict, looked.reason.clone());
        }
        let context = Context::default().with("value", looked.value.clone());
        let is = |e: &Option<Result<Expression, String>>| match e {
            None => Ok(None),
            Some(Err(why)) => Err(why.clone()),
            Some(Ok(e)) => e.eval_bool(&context).map(Some).map_err(|e| e.to_string()),
        };
        let (fails, succeeds) = match (is(&self.fail), is(&self.success)) {
            (Ok(f), Ok(s)) => (f, s),
            // A failure that is seen counts, whatever the other one says.
            (Ok(Some(true)), Err(_)) => (Some(true), None),
            (Err(why), _) | (_, Err(why)) => {
                // Why there was nothing to read says more than that nothing cannot be compared.
                let reason = looked.reason.clone().filter(|_| looked.value.is_null()).unwrap_or(why);
                return (Verdict::Inconclusive, Some(reason));
            }
        };
        let said = |which: &str, e: &Option<Result<Expression, String>>, is: bool| {
            let source = e.as_ref().and_then(|e| e.as_ref().ok()).map(Expression::source).unwrap_or_default();
            Some(format!("`{which}: {source}` is {is}, value is {}", short(&looked.value)))
        };
        match (fails, succeeds) {
            (Some(true), _) => (Verdict::Fail, said("fail", &self.fail, true)),
            (_, Some(true)) | (Some(false), None) => (Verdict::Success, None),
            (None, Some(false)) => (Verdict::Fail, said("success", &self.success, false)),
            (Some(false), Some(false)) => {
                let reason = format!("neither `success` nor `fail` is true, value is {}", short(&looked.value));
                (Verdict::Inconclusive, Some(reason))
            }
            (None, None) => (looked.verdict, looked.reason.clone()),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.in_a_row >= self.failures
    }

    /// What it came to: it has failed only when it did so often enough.
    pub(super) fn said(self) -> ProbeResult {
        let failed = self.has_failed();
        let mut r = self.result;
        if r.verdict == Verdict::Fail && !failed {
            r.verdict = Verdict::Inconclusive;
            let last = r.reason.take().unwrap_or_else(|| "it failed".into());
            r.reason = Some(format!("{last} ({} of {} in a row)", self.in_a_row, self.failures));
        }
        r
    }
}

/// The verdict on the wave.
pub(super) fn result(standings: Vec<Standing>) -> WorkResult {
    let probes: Vec<ProbeResult> = standings.into_iter().map(Standing::said).collect();
    let first = |v: Verdict| probes.iter().find(|p| p.verdict == v);
    let why = |p: &ProbeResult| format!("probe `{}`: {}", p.probe, p.reason.as_deref().unwrap_or("no reason given"));
    let (verdict, reason) = match (first(Verdict::Fail), first(Verdict::Inconclusive)) {
        (Some(p), _) => (Verdict::Fail, Some(why(p))),
        (None, Some(p)) => (Verdict::Inconclusive, Some(why(p))),
        (None, None) => (Verdict::Success, None),
    };
    WorkResult::Probe { verdict, probes, reason }
}

fn kept(value: Value) -> Value {
    if value.to_string().len() <= KEPT_VALUE { value } else { Value::String(short(&value)) }
}

fn short(value: &Value) -> String {
    crate::agents::cut(value.to_string(), 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(success: Option<&str>, fail: Option<&str>, failures: u32) -> Standing {
        let judge = Judge { success: success.map(Into::into), fail: fail.map(Into::into), failures };
        Standing::new("p", Some(&judge))
    }

    fn number(n: Value) -> Looked {
        Looked::central("prometheus.query", json!({ "value": n, "series": [] }), None)
    }

    #[test]
    fn every_look_is_judged() {
        use Verdict::*;
        let of = |success, fail, n| {
            let mut s = standing(success, fail, 1);
            s.take(number(n));
            s.result.verdict
        };
        let (low, high) = (Some("value < 1.0"), Some("value > 5.0"));
        assert_eq!(
            [of(low, high, json!(0.5)), of(low, high, json!(3.0)), of(low, high, json!(9.0))],
            [Success, Inconclusive, Fail]
        );
        assert_eq!([of(low, None, json!(0.5)), of(low, None, json!(3.0))], [Success, Fail]);
        assert_eq!([of(None, high, json!(3.0)), of(None, high, json!(9.0))], [Success, Fail]);
        assert_eq!([of(None, None, json!(3.0)), of(None, None, Value::Null)], [Success, Inconclusive]);
        assert_eq!(of(low, high, Value::Null), Inconclusive, "nothing cannot be compared");
        assert_eq!(of(Some("value == null || value < 1.0"), None, Value::Null), Success, "unless it is asked for");
    }

    #[test]
    fn only_failures_in_a_row_fail() {
        let mut s = standing(Some("value < 1.0"), None, 2);
        for (n, failed) in [(9.0, false), (0.0, false), (9.0, false), (9.0, true)] {
            s.take(number(json!(n)));
            assert_eq!(s.has_failed(), failed);
        }
        assert_eq!(s.said().verdict, Verdict::Fail);
        let mut s = standing(Some("value < 1.0"), None, 2);
        s.take(number(json!(9.0)));
        let WorkResult::Probe { verdict, probes, reason } = result(vec![s]) else { panic!("of probes") };
        assert_eq!((verdict, probes[0].looks), (Verdict::Inconclusive, 1));
        assert!(reason.is_some_and(|r| r.contains("1 of 2 in a row")));
    }

    #[test]
    fn hosts_and_answers_have_their_own_verdict() {
        let counts = |ok, failed, asked: bool| Counts {
            ok,
            failed,
            total: 3,
            first_failed: (failed > 0).then(|| "h1: exit code 3".into()),
            not_asked: (!asked).then(|| "h2: silent".into()),
        };
        let of = |c| {
            let mut s = standing(None, None, 1);
            s.take(Looked::on_hosts(c));
            s.result.verdict
        };
        assert_eq!(of(counts(3, 0, true)), Verdict::Success);
        assert_eq!(of(counts(2, 1, true)), Verdict::Fail);
        assert_eq!(of(counts(2, 0, false)), Verdict::Inconclusive);
        let mut s = standing(None, Some("value.failed > 1"), 1);
        s.take(Looked::on_hosts(counts(2, 1, true)));
        assert_eq!(s.result.verdict, Verdict::Success, "its expression says how many may");
        let none = |action| Looked::central(action, Value::Null, Some("cannot connect".into())).verdict;
        assert_eq!((none("http.request"), none("prometheus.query")), (Verdict::Fail, Verdict::Inconclusive));
        let mut s = standing(Some("value.status < 500"), None, 1);
        let answer = json!({ "status": 404, "body": "", "tries": 1 });
        s.take(Looked::central("http.request", answer, Some("it answered 404 instead of 200".into())));
        assert_eq!(s.result.verdict, Verdict::Success, "an answer that was not expected is an answer");
    }
}
