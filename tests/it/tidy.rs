//! The rules of the house, as tests: layers, file sizes, one TLS provider, nothing unfinished.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};
use windlass_testkit::workspace;

fn files(dir: &Path, endings: &[&str], out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (e.path(), e.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "node_modules", "dist"].contains(&name.as_str()) {
                files(&path, endings, out);
            }
        } else if endings.iter().any(|x| name.ends_with(x)) {
            out.push(path);
        }
    }
}

fn sources(endings: &[&str]) -> Vec<(String, String)> {
    let root = workspace();
    let mut all = Vec::new();
    files(&root, endings, &mut all);
    all.into_iter()
        .map(|p| {
            let text = std::fs::read_to_string(&p).expect("readable");
            (p.strip_prefix(&root).expect("inside").display().to_string(), text)
        })
        .collect()
}

/// What each crate may depend on of our own. Dev-dependencies may add the test kit, and the store's events for tests.
fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let services = vec!["domain", "contracts", "store", "bus", "runtime"];
    BTreeMap::from([
        ("shared/domain", vec![]),
        ("shared/contracts", vec!["domain"]),
        ("shared/store", vec!["domain", "contracts"]),
        ("shared/runtime", vec![]),
        ("shared/bus", vec!["domain", "contracts", "store", "runtime"]),
        ("shared/testkit", vec![]),
        ("services/api", services.clone()),
        ("services/scheduler", services.clone()),
        // Windows hosts have no agent of their own: its decisions are made in the executor.
        ("services/executor", [services.clone(), vec!["agent"]].concat()),
        ("services/notifier", services.clone()),
        ("services/auditor", services.clone()),
        ("services/agent", vec!["domain", "contracts"]),
        ("services/windlass", [services, vec!["api", "scheduler", "executor", "notifier", "auditor"]].concat()),
    ])
}

#[test]
fn dependencies_point_one_way() {
    for (dir, may) in allowed() {
        let text = std::fs::read_to_string(workspace().join(dir).join("Cargo.toml")).expect("manifest");
        let deps = text.split("[dependencies]").nth(1).unwrap_or_default().split("\n[").next().unwrap_or_default();
        for line in deps.lines().filter_map(|l| l.strip_prefix("windlass-")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(may.contains(&name), "{dir} must not depend on windlass-{name}");
        }
    }
}

#[test]
fn the_core_has_no_clock_and_no_randomness() {
    let is_test = |p: &str| p.ends_with("tests.rs") || p.contains("/tests/");
    for (path, text) in sources(&[".rs"]).iter().filter(|(p, _)| p.starts_with("shared/domain/src") && !is_test(p)) {
        for ban in ["Utc::now", "Instant::now", "SystemTime::now", "rand::", "now_v7", "new_v4", "tokio::", "sqlx::"] {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            assert!(!code.contains(ban), "{path} uses {ban}");
        }
    }
}

#[test]
fn the_client_commands_never_see_the_store() {
    for (path, text) in sources(&[".rs"]).iter().filter(|(p, _)| p.starts_with("services/windlass/src/client")) {
        assert!(!text.contains("windlass_store"), "{path}");
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_small() {
    for (path, text) in sources(&[".rs"]) {
        assert!(
            text.starts_with("//!") || path.ends_with("build.rs") && text.starts_with("//"),
            "{path} has no //! line"
        );
        let lines = text.lines().count();
        assert!(lines <= 800, "{path} has {lines} lines: split it by concept");
    }
}

#[test]
fn nothing_is_left_unfinished() {
    // Written in parts so that this file does not find itself.
    let bans = [
        ["to", "do!("],
        ["unimpl", "emented!("],
        ["FIX", "ME"],
        ["#[ig", "nore"],
        ["it.sk", "ip("],
        ["place", "holder\n"],
    ];
    for (path, text) in sources(&[".rs", ".ts", ".tsx", ".sh", ".yml", ".yaml"]) {
        for ban in &bans {
            assert!(!text.contains(&ban.concat()), "{path} holds {:?}", ban.concat());
        }
    }
}

#[test]
fn one_tls_provider_is_linked() {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).expect("lock file");
    for ban in ["aws-lc-rs", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{ban}\"")), "{ban} is linked: ring is the only TLS provider");
    }
}

#[test]
fn every_table_names_its_writer() {
    for db in ["sqlite", "postgres"] {
        for (path, text) in sources(&[".sql"]).iter().filter(|(p, _)| p.contains(db)) {
            let lines: Vec<&str> = text.lines().collect();
            for (i, l) in lines.iter().enumerate().filter(|(_, l)| l.starts_with("CREATE TABLE")) {
                let header = lines[..i].iter().rev().take_while(|l| l.starts_with("--")).any(|l| l.contains("writer:"));
                assert!(header, "{path}: {l} has no writer");
            }
        }
    }
}

#[test]
fn subjects_are_built_in_one_place() {
    let ok: BTreeSet<&str> = ["shared/contracts/src/subjects.rs"].into();
    for (path, text) in sources(&[".rs"]) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        if path.contains("/tests/") || path.starts_with("tests/") || ok.contains(path.as_str()) {
            continue;
        }
        for ban in ["\"windlass.evt", "\"windlass.cmd", "\"windlass.work", "\"windlass.in.", "\"windlass.dlq"] {
            assert!(!code.contains(ban), "{path} builds a subject of its own: {ban}");
        }
    }
}

/// Names of our metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|w| w.starts_with("windlass_"))
        .map(|w| w.trim_end_matches("_bucket").to_owned())
        .collect()
}

#[test]
fn alerts_and_dashboard_read_metrics_that_exist_and_every_alert_has_its_page() {
    let read = |p: &str| std::fs::read_to_string(workspace().join(p)).expect("readable");
    let code: BTreeSet<String> = sources(&[".rs"]).iter().flat_map(|(_, text)| metrics(text)).collect();
    let (alerts, runbook) = (read("ops/observe/alerts.yaml"), read("ops/docs/runbook.md"));
    for text in [&alerts, &read("ops/observe/dashboard.json")] {
        let used = metrics(text);
        assert!(used.len() > 5);
        for name in used {
            assert!(code.contains(&name), "no service has the metric {name}");
        }
    }
    let names: Vec<&str> = alerts.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 5);
    for name in names {
        assert!(runbook.contains(&format!("\n## {name}\n")), "ops/docs/runbook.md has no section {name}");
        assert!(alerts.contains(&format!("ops/docs/runbook.md#{}\"", name.to_lowercase())), "{name} names no section");
    }
}

/// `deny.toml` says why a package is there in more than one version.
#[test]
fn each_second_version_of_a_package_has_a_reason() {
    let root = workspace();
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).expect("lock file");
    let deny = std::fs::read_to_string(root.join("deny.toml")).expect("deny.toml");
    let value = |line: &str, key: &str| {
        let rest = line.split_once(&format!("{key} = \""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let mut there: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let of = |key: &str| package.lines().find_map(|l| l.starts_with(key).then(|| value(l, key)).flatten());
        there.entry(of("name").expect("name")).or_default().insert(of("version").expect("version"));
    }
    let mut skipped: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in deny.lines().filter(|l| l.contains("reason = ")) {
        let (package, reason) = (value(line, "crate").expect("crate"), value(line, "reason").expect("reason"));
        let (name, version) = package.split_once('@').expect("name@version");
        assert!(reason.len() > 10, "{package}: {reason}");
        assert!(there.get(name).is_some_and(|v| v.contains(version) && v.len() > 1), "{package} is not there twice");
        skipped.entry(name.into()).or_default().insert(version.into());
    }
    for (name, versions) in there.iter().filter(|(_, v)| v.len() > 1) {
        let without = versions.len() - skipped.get(name).map_or(0, BTreeSet::len);
        assert_eq!(without, 1, "{name} is there as {versions:?}: say why in deny.toml, or mend it");
    }
}
