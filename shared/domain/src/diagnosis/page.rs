//! The page that documents the causes, made from them.

use super::{Cause, NEVER, RepairKind, Severity};
use std::fmt::Write;

/// `ops/docs/stuck.md`. A test holds the file against it.
pub fn page() -> String {
    let mut out = String::from(
        "# Stuck? What holds a deployment, and what to do\n\n\
         <!-- Made from domain::diagnosis: UPDATE=1 cargo test -p windlass-domain --test diagnosis -->\n\n\
         `windlass status ID` says what a deployment waits for. When that is not enough:\n\n\
         ```\n\
         windlass doctor run ID                 # what holds it, the evidence, what to do; changes nothing\n\
         windlass doctor run ID --apply         # and carries out the repairs it showed\n\
         windlass doctor run ID --apply --cause executor_dead\n\
         ```\n\n\
         It reads the database once and names typed causes, the worst first. The same is `GET /api/v1/deployments/{id}/diagnosis` (right: view) and \
         `POST /api/v1/deployments/{id}/repair` (right: operate; without `\"apply\": true` it only says what it would do). The exit code of \
         `doctor run` is 1 while a fault is found, else 0. \"Nothing is wrong\" with what it is doing is an answer as well.\n\n\
         A cause is a `fault` (something is broken), an `action` (a person is needed), a `wait` (it goes on by itself) or `fine`.\n\n\
         ## Repairs\n\n\
         A repair wakes who decides, or gives back what a dead executor held; it decides nothing itself. Each one that is applied is an event \
         `deployment.repaired` with who asked for it, and is in the audit trail.\n\n\
         | repair | what it does |\n|---|---|\n",
    );
    for r in RepairKind::ALL {
        let _ = writeln!(out, "| `{}` | {} |", r.as_str(), r.does());
    }
    out.push_str("\nNo repair will ever:\n\n");
    for n in NEVER {
        let _ = writeln!(out, "- {n}");
    }
    out.push_str("\n## Causes\n\n| cause | is | in a line | repair |\n|---|---|---|---|\n");
    for c in Cause::ALL {
        let repair = c.repair().map(|r| format!("`{}`", r.as_str())).unwrap_or_default();
        let _ = writeln!(out, "| [`{0}`](#{0}) | {1} | {2} | {repair} |", c.as_str(), c.severity().as_str(), c.title());
    }
    for c in Cause::ALL {
        let _ = write!(out, "\n### {}\n\n{} *Told from:* {}\n", c.as_str(), c.means(), lower(c.told_from()));
        if c.severity() != Severity::Fine {
            let _ = write!(out, "\n*Do:* {}\n", c.remedy());
        }
    }
    out
}

/// Within a sentence.
fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}
