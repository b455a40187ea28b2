//! What a long history costs: every statement that a running Windlass made is asked for its plan, and none may read a whole table
//! that grows with every release. SQLite is asked without statistics, so an empty database plans like a full one.

use crate::world::{PATIENCE, World};
use std::collections::BTreeSet;
use windlass_store::{Store, sql};
use windlass_testkit::eventually;

/// Settings that write every statement to the log.
pub(crate) const LOGGED: &str = "[telemetry]\nlog = \"info,sqlx::query=debug\"\nlog_format = \"json\"\n";

/// Tables whose rows stay when a release is over.
const HISTORY: [&str; 22] = [
    "approvals",
    "artifacts",
    "audit_leaves",
    "bundle_members",
    "bundles",
    "command_outcomes",
    "commands",
    "deployments",
    "event_heads",
    "events",
    "idempotency",
    "intake",
    "log_chunks",
    "log_heads",
    "notifications",
    "plans",
    "releases",
    "tasks",
    "verified",
    "work_claims",
    "works",
    "audit_checkpoints",
];
/// Those that read everything on purpose, with the reason.
const ALLOWED: [(&str, &str); 1] =
    [("c.updated_at > $2 AND c.result_version > w.applied", "all works at the start alone; later by their time")];
/// What the console and people ask for.
const READS: [&str; 14] = [
    "/deployments?limit=10",
    "/deployments?project=shop&limit=10",
    "/deployments?project=shop&environment=beta&limit=10",
    "/deployments?state=failed&limit=10",
    "/deployments?project=shop&state=paused&limit=10",
    "/projects/shop/artifacts?limit=10",
    "/queue",
    "/hosts",
    "/bundles",
    "/triggers?project=shop",
    "/projects/shop/promotions",
    "/drift?project=shop",
    "/notifications",
    "/doctor",
];

/// Asks for what people ask, and judges all statements so far.
pub(crate) async fn judge(w: World) {
    for path in READS {
        let (status, answer) = w.send("GET", path, &w.admin, None).await.expect("answers");
        assert!(status == 200, "{path}: {status} {answer}");
    }
    let made = eventually(PATIENCE, "the periodic looks were made", async || {
        let made = made(&w);
        made.iter().any(|s| s.contains("task_overrides o JOIN")).then_some(made)
    })
    .await;
    assert!(made.len() > 100, "the log holds few statements: {}", made.len());
    let store = Store::open(&format!("sqlite://{}", w.state().join("windlass.db").display())).await.expect("opens");
    let mut tx = store.read().await.expect("reads");
    let partial = sql("SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'");
    let partial: Vec<(String,)> = partial.fetch_all(&mut tx).await.expect("indices");
    let mut wrong = vec![];
    for statement in &made {
        let ask = sql(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
        let plan: Vec<(i64, i64, i64, String)> = ask.fetch_all(&mut tx).await.expect("a plan");
        let sorts = plan.iter().any(|(.., l)| l.contains("TEMP B-TREE"));
        for (.., line) in &plan {
            let Some(scan) = line.strip_prefix("SCAN ") else { continue };
            let (name, how) = scan.split_once(' ').unwrap_or((scan, ""));
            // In the order of an index, and no further than the limit; or an index of the few that are not over.
            let bounded = how.starts_with("USING") && statement.contains("LIMIT") && !sorts;
            if bounded || partial.iter().any(|(index,)| how.ends_with(index)) {
                continue;
            }
            let table = table_of(statement, name);
            if HISTORY.contains(&table) && !ALLOWED.iter().any(|(part, _)| statement.contains(part)) {
                wrong.push(format!("{table} is read from end to end ({line}): {statement}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} statements:\n{}", wrong.len(), made.len(), wrong.join("\n"));
}

/// Every statement in the log, once, on one line.
fn made(w: &World) -> BTreeSet<String> {
    let text = std::fs::read_to_string(w.dir.path().join("up.log")).expect("the log");
    let statements = text.lines().filter_map(|l| {
        let line: serde_json::Value = serde_json::from_str(l).ok()?;
        let long = line["db.statement"].as_str()?.trim();
        let statement = if long.is_empty() { line["summary"].as_str()? } else { long };
        Some(statement.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
    statements
        .filter(|s| verbs.iter().any(|v| s.starts_with(v)) && !s.contains("sqlite_") && !s.contains("_sqlx"))
        .collect()
}

/// The table that stands behind a name in a plan: itself, or the word before an alias.
fn table_of<'a>(statement: &'a str, name: &'a str) -> &'a str {
    let words: Vec<&str> = statement.split([' ', ',', '(', ')']).filter(|w| !w.is_empty()).collect();
    let before = words.windows(2).find(|w| w[1] == name && HISTORY.contains(&w[0])).map(|w| w[0]);
    before.unwrap_or(name)
}
