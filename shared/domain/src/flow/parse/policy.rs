//! What happens without a person, or when none comes: `retry` of a step and `patience` of a flow.

use super::{MAX_TIMEOUT_S, Reader, seconds, whole, word};
use crate::{
    flow::{Overdue, Patience, Retry},
    span::suggestion,
    work::FailureClass,
    yaml::{Fields, Node, Problems, Value},
};

/// Failures that a policy may try again.
pub(crate) const RETRIED: [(&str, FailureClass); 6] = [
    ("exit", FailureClass::Exit),
    ("timeout", FailureClass::Timeout),
    ("unreachable", FailureClass::Unreachable),
    ("refused", FailureClass::Refused),
    ("artifact", FailureClass::Artifact),
    ("traffic", FailureClass::Traffic),
];
pub(crate) const OVERDUE: [(&str, Overdue); 3] =
    [("remind", Overdue::Remind), ("abort", Overdue::Abort), ("rollback", Overdue::Rollback)];
pub(crate) const MAX_RETRIES: u64 = 100;
pub(crate) const MAX_FACTOR: u64 = 10;
pub(crate) const MAX_EXIT_CODE: u64 = 255;
const BACKOFF_S: u32 = 5;
const FACTOR: u32 = 2;
const MAX_BACKOFF_S: u32 = 300;
const LONGEST_PATIENCE_S: u64 = 30 * 86_400;

/// `patience: { within: 4h, then: remind }`.
pub(super) fn patience(node: &Node, path: &str, problems: &mut Problems) -> Option<Patience> {
    let mut f = Fields::of(node, path, "`patience`", problems)?;
    let within = match f.take("within") {
        None => {
            let text = "the key `within` is missing: how long to wait for a person, such as `within: 4h`";
            problems.add(f.place, path, text);
            None
        }
        Some(n) => positive(n, &f.path_of("within"), LONGEST_PATIENCE_S, problems),
    };
    let then = word(&mut f, "then", &OVERDUE, problems).unwrap_or_default();
    f.finish(problems);
    Some(Patience { within_s: within?, then })
}

/// A time that is not none.
pub(super) fn positive(n: &Node, path: &str, most: u64, problems: &mut Problems) -> Option<u32> {
    let s = seconds(n, path, most, problems);
    if s == Some(0) {
        problems.add(n.place, path, "must be longer than 0s");
    }
    s.filter(|s| *s > 0)
}

impl Reader<'_> {
    /// `retry: 3`, or the whole policy.
    pub(super) fn retry(&mut self, node: &Node, path: &str) -> Option<Retry> {
        let short = |max| Retry {
            max,
            on: Vec::new(),
            exit_codes: Vec::new(),
            backoff_s: BACKOFF_S,
            factor: FACTOR,
            max_backoff_s: MAX_BACKOFF_S,
        };
        if matches!(node.value, Value::Number(..)) {
            return whole(node, path, 1, MAX_RETRIES, self.problems).map(short);
        }
        let mut f = Fields::of(node, path, "`retry`", self.problems)?;
        let max = match f.take("max") {
            None => {
                let text = "the key `max` is missing: how often to try again, such as `retry: { max: 3 }`";
                self.problems.add(f.place, path, text);
                None
            }
            Some(n) => whole(n, &f.path_of("max"), 1, MAX_RETRIES, self.problems),
        };
        let on = f.take("on").map(|n| self.classes(n, &f.path_of("on"))).unwrap_or_default();
        let exit_codes = f.take("exit_codes").map(|n| self.exit_codes(n, &f.path_of("exit_codes"))).unwrap_or_default();
        if let Some(n) = f.take("exit_codes").filter(|_| !on.is_empty() && !on.contains(&FailureClass::Exit)) {
            let text = "are codes of failures of class `exit`, which `on` does not name; add it there";
            self.problems.add(n.place, &f.path_of("exit_codes"), text);
        }
        let backoff = f.take("backoff");
        let backoff = backoff.and_then(|n| seconds(n, &f.path_of("backoff"), MAX_TIMEOUT_S, self.problems));
        let backoff_s = backoff.unwrap_or(BACKOFF_S);
        let most = f.take("max_backoff");
        let longest = most.and_then(|n| seconds(n, &f.path_of("max_backoff"), MAX_TIMEOUT_S, self.problems));
        if let (Some(n), Some(_)) = (most, longest.filter(|s| *s < backoff_s)) {
            let text = format!("is shorter than the first pause of {backoff_s}s; make it longer, or `backoff` shorter");
            self.problems.add(n.place, &f.path_of("max_backoff"), text);
        }
        let factor = f.take("factor").and_then(|n| whole(n, &f.path_of("factor"), 1, MAX_FACTOR, self.problems));
        f.finish(self.problems);
        Some(Retry {
            on,
            exit_codes,
            backoff_s,
            factor: factor.unwrap_or(FACTOR),
            // A long first pause is not cut by what nobody wrote.
            max_backoff_s: longest.unwrap_or(MAX_BACKOFF_S.max(backoff_s)),
            ..short(max?)
        })
    }

    fn classes(&mut self, node: &Node, path: &str) -> Vec<FailureClass> {
        let mut out = Vec::new();
        for (i, n) in self.one_or_many(node, path, "classes of failures").iter().enumerate() {
            let path = format!("{path}[{i}]");
            let said = n.as_word().unwrap_or_default();
            let names = || RETRIED.iter().map(|(w, _)| *w);
            let text = match RETRIED.iter().find(|(w, _)| *w == said) {
                Some((_, c)) if !out.contains(c) => {
                    out.push(*c);
                    continue;
                }
                Some(_) => "is listed twice; keep one".into(),
                None if said == "unknown" => {
                    "an unknown host may still be at work, so nothing tries it again by itself; a person finds out and \
                     answers for it; remove `unknown`"
                        .into()
                }
                None if said == "stopped" => {
                    "what a person stopped stays stopped until a person starts it again; remove `stopped`".into()
                }
                None => {
                    let all: Vec<&str> = names().collect();
                    format!("must be one of {}, not {}{}", all.join(", "), n.kind(), suggestion(&said, names()))
                }
            };
            self.problems.add(n.place, &path, text);
        }
        out
    }

    fn exit_codes(&mut self, node: &Node, path: &str) -> Vec<i32> {
        let items = self.one_or_many(node, path, "exit codes");
        let code = |(i, n): (usize, &Node)| whole(n, &format!("{path}[{i}]"), 1, MAX_EXIT_CODE, self.problems);
        items.iter().enumerate().filter_map(code).filter_map(|c| i32::try_from(c).ok()).collect()
    }

    /// A list, or one value that stands for a list of it.
    fn one_or_many<'n>(&mut self, node: &'n Node, path: &str, what: &str) -> &'n [Node] {
        match &node.value {
            Value::List(_) => super::list(node, path, 50, what, self.problems).unwrap_or_default(),
            _ => std::slice::from_ref(node),
        }
    }
}
