//! Every constant statement of this crate is understood by both databases: tables, columns and syntax. What each one does
//! is the business of the tests that use it.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr, SqliteConnection};
use std::path::Path;
use windlass_store::Store;
use windlass_testkit::Db;

/// The string literals that stand as the argument of `sql(…)` in a source text.
fn statements(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut out = Vec::new();
    for (at, _) in code.match_indices("sql(") {
        // `raw_sql` is SQLite's own business in `writer`.
        if code[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let Some(text) = code[at + 4..].trim_start().strip_prefix('"') else { continue };
        let mut literal = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => match chars.next() {
                    Some('\n') => {
                        let rest = chars.as_str().trim_start();
                        chars = rest.chars();
                    }
                    Some(c) => literal.push(c),
                    None => break,
                },
                c => literal.push(c),
            }
        }
        out.push(literal);
    }
    out
}

fn all() -> Vec<(String, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut out = Vec::new();
    while let Some(dir) = folders.pop() {
        for file in std::fs::read_dir(&dir).expect("src").map(|f| f.expect("entry").path()) {
            if file.is_dir() {
                folders.push(file);
                continue;
            }
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file).expect("source");
            out.extend(statements(&text).into_iter().map(|s| (name.clone(), s)));
        }
    }
    out
}

/// A dialect's own statement stands in the arm of a `match`.
fn is_for_one_dialect(s: &str) -> bool {
    ["clock_timestamp", "pg_advisory", "json_extract(doc", "doc->>"].iter().any(|own| s.contains(own))
}

#[test]
fn statements_are_found_in_source_text() {
    let source = "sql(\"SELECT 1\").bind(x); sql(\n    \"SELECT \\\"a\\\" \\\n   FROM t\",\n) other(\"no\") raw_sql(\"no\") sql(text)";
    assert_eq!(statements(source), ["SELECT 1", "SELECT \"a\" FROM t"]);
}

#[tokio::test]
async fn both_databases_understand_every_statement() {
    let (lite, pg) = (Db::sqlite(), Db::postgres().await);
    for db in [&lite, &pg] {
        Store::open(db.url()).await.expect("opens").close().await;
    }
    let mut lite = SqliteConnection::connect(lite.url()).await.expect("sqlite");
    let mut pg = PgConnection::connect(pg.url()).await.expect("postgres");
    let all = all();
    assert!(all.len() > 100, "only {} statements found", all.len());
    let mut bad = Vec::new();
    for (file, text) in all.iter().filter(|(_, s)| !is_for_one_dialect(s)) {
        if let Err(e) = lite.prepare(AssertSqlSafe(text.clone()).into_sql_str()).await {
            bad.push(format!("{file}, sqlite: {e}\n{text}"));
        }
        match pg.prepare(AssertSqlSafe(text.clone()).into_sql_str()).await {
            Ok(_) => {}
            // A parameter whose type only its bound value tells, as in `$1 IS NULL`.
            Err(sqlx::Error::Database(e)) if matches!(e.code().as_deref(), Some("42P18" | "42P08")) => {}
            Err(e) => bad.push(format!("{file}, postgres: {e}\n{text}")),
        }
    }
    assert!(bad.is_empty(), "{} statements:\n{}", bad.len(), bad.join("\n\n"));
}
