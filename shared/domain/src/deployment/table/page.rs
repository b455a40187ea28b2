//! The page for people, made from the tables: `ops/docs/verbs.md`.

use super::{Answer, Verb, answer, within};
use crate::deployment::State;
use std::fmt::Write;
use within::Does;

const HEAD: &str = "\
# What each verb does

This page is made from the tables that the control plane itself asks before it does anything
(`cargo test -p windlass-domain verbs_page` compares them; `UPDATE=1` writes the page anew). For every state of a deployment
each verb has one answer:

- **moves**: it is done where there is something to do; the deployment then stands in one of the states named;
- **yes, unchanged**: what is asked for is so already;
- **refused**: with a stable code and what to do instead. Codes besides those in the tables:

| code | means | what to do |
|---|---|---|
| `nothing_to_do` | the state takes the verb, but nothing in the deployment does | read `waiting_on` |
| `invalid` | what was sent makes no sense: a host or step that is not there, a reason that is missing | correct it |
| `claimed` | somebody else answers for it | leave it to them, or `claim` it with `take_over` and a reason |
| `required` | a step that must run would be left undone | `retry`, `exclude` the hosts, or `abort` |
| `unsettled` | hosts may still be running | wait for them, `stop` them, or `override` unknown ones |
| `superseded` | something newer was released there, or a rollback was asked for | request a new deployment |
| `plan_changed` | the plan is not the one that you looked at | read it again |
| `own_request`, `already_decided`, `not_asked` | you may not sign this plan | somebody else has to |

Time may end a deployment in the same moment: one that waits for its start expires, one whose patience with people is over
does what its flow says. What a verb does to steps, waves and hosts is told for deployments that run or are paused; who is
not in a table stays as it is. Retries, waves and hosts that nobody is needed for go on by themselves meanwhile.
";

/// Groups what is equal, in order of first appearance.
fn grouped<K: Copy, V: PartialEq + Copy>(all: impl IntoIterator<Item = K>, of: impl Fn(K) -> V) -> Vec<(Vec<K>, V)> {
    let mut groups: Vec<(Vec<K>, V)> = Vec::new();
    for k in all {
        let v = of(k);
        match groups.iter_mut().find(|g| g.1 == v) {
            Some(g) => g.0.push(k),
            None => groups.push((vec![k], v)),
        }
    }
    groups
}

fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

fn list<T: Copy>(items: &[T], name: impl Fn(T) -> String) -> String {
    items.iter().map(|i| name(*i)).collect::<Vec<_>>().join(", ")
}

/// The name a value has in JSON.
fn named<T: serde::Serialize>(value: T) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(spaced)).unwrap_or_default()
}

fn row(out: &mut String, cells: [&str; 3]) {
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn deployment(out: &mut String, verb: Verb) {
    let name = |s: State| spaced(s.as_str());
    out.push_str("\n| the deployment is | answer | |\n|---|---|---|\n");
    for (states, a) in grouped(State::ALL, |s| answer(s, verb)) {
        let states = list(&states, name);
        match a {
            Answer::Moves(to) => row(out, [&states, "moves", &format!("to {}", list(to, name))]),
            Answer::Idempotent(why) => row(out, [&states, "yes, unchanged", why]),
            Answer::Refused { code, remedy } => row(out, [&states, &format!("refused, `{code}`"), remedy]),
        }
    }
}

fn parts<S: Copy + PartialEq + 'static>(
    out: &mut String,
    title: &str,
    all: &[S],
    name: impl Fn(S) -> String + Copy,
    of: impl Fn(S) -> Does<S>,
) {
    let groups = grouped(all.iter().copied(), of);
    if groups.iter().all(|(_, d)| *d == Does::Nothing) {
        return;
    }
    let _ = writeln!(out, "\n| {title} | answer | |\n|---|---|---|");
    for (states, does) in groups {
        let states = list(&states, name);
        match does {
            Does::Nothing => {}
            Does::Becomes(to, note) => row(out, [&states, &format!("becomes {}", list(to, name)), note]),
            Does::Refused { code, remedy } => row(out, [&states, &format!("refused, `{code}`"), remedy]),
        }
    }
}

/// The whole page, in Markdown.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for verb in Verb::ALL {
        let _ = writeln!(out, "\n## {}\n\n{}\n", verb.as_str(), verb.says());
        let claims = match verb {
            Verb::Confirm => " Where probes stayed unclear it claims the deployment, or is refused while another has.",
            Verb::Retry => " While it runs it claims the deployment, or is refused while another has.",
            _ if verb.claims() => " Claims the deployment, or is refused while another has.",
            _ => "",
        };
        let _ = writeln!(out, "Right: `{}`.{claims}", verb.permission().as_str());
        deployment(&mut out, verb);
        parts(&mut out, "a central step is", &within::STEPS, named, |s| within::step(s, verb));
        parts(&mut out, "a wave is", &within::WaveKind::ALL, |w| w.as_str().to_owned(), |w| within::wave(w, verb));
        parts(&mut out, "a host is", &within::HOSTS, named, |h| within::host(h, verb));
    }
    out
}
