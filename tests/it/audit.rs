//! The audit export verifies offline, and one changed byte in any leaf is found.

use crate::world::{PATIENCE, World, program};
use std::process::Command;
use windlass_testkit::eventually;

async fn export(w: &World) -> String {
    let r = w.http.get(format!("{}/api/v1/audit/export", w.base)).bearer_auth(&w.admin).send().await.expect("answers");
    assert!(r.status().is_success());
    r.text().await.expect("export")
}

fn check(w: &World, text: &str, key: &str) -> (bool, String) {
    let (file, keys) = (w.dir.path().join("export.ndjson"), w.dir.path().join("audit.key"));
    std::fs::write(&file, text).expect("file");
    std::fs::write(&keys, key).expect("file");
    let out = Command::new(program("windlass"))
        .args(["audit", "verify"])
        .arg(&file)
        .arg("--key")
        .arg(&keys)
        .output()
        .expect("runs");
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// Exports once `has` is all in it, verifies with the program alone, then spoils a byte of every twentieth leaf.
pub(crate) async fn verify(w: &World, has: &[(&str, &str)]) {
    let key = w.get("/audit/key").await;
    let key = key.as_str().map_or_else(|| key["key"].as_str().unwrap_or_default().to_owned(), str::to_owned);
    let text = eventually(PATIENCE, "the audit has caught up", async || {
        let text = export(w).await;
        let (ok, report) = check(w, &text, &key);
        assert!(ok || !report.is_empty());
        // Leaves not yet under a checkpoint are said to be so; wait until all are.
        (ok && has.iter().all(|(a, b)| text.contains(a) && text.contains(b))).then_some(text)
    })
    .await;
    let lines: Vec<&str> = text.lines().collect();
    let leaves: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].contains("\"leaf\"")).collect();
    assert!(leaves.len() > 10, "{} leaves", leaves.len());
    for i in leaves.iter().step_by(20) {
        let line = lines[*i];
        let at = line.find("\"leaf\"").expect("leaf") + 20;
        let mut spoiled = line.as_bytes().to_vec();
        spoiled[at] = if spoiled[at] == b'x' { b'y' } else { b'x' };
        let spoiled = String::from_utf8(spoiled).expect("text");
        let mut copy: Vec<&str> = lines.clone();
        copy[*i] = &spoiled;
        let (ok, report) = check(w, &(copy.join("\n") + "\n"), &key);
        assert!(!ok, "a changed byte in line {i} was not found: {report}");
    }
}
