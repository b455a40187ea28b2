//! Precedence, unknown keys, and values out of range.

use super::*;
use load::FILE_NAME;
use std::collections::HashMap;

fn vars(v: &[(&str, &str)]) -> HashMap<String, String> {
    v.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn environment_wins_over_file_wins_over_default() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("w.toml");
    std::fs::write(&file, "poll_s = 2\n[executor]\nlease_s = 0.5\npools = ['a']\n[nats]\nserver_port = 1\n")
        .expect("writes");
    let s = Settings::load_from(
        Some(&file),
        vars(&[
            ("WINDLASS__EXECUTOR__LEASE_S", "0.25"),
            ("WINDLASS__EXECUTOR__POOLS", "x,y"),
            ("WINDLASS__TELEMETRY__LOG_FORMAT", "json"),
            ("WINDLASS__NOTIFIER__ALLOW_PRIVATE_ADDRESSES", "10.0.0.0/8"),
            ("WINDLASS_HOME", "/not/a/setting"),
        ]),
    )
    .expect("loads");
    assert_eq!(s.poll_s.get(), Duration::from_secs(2));
    assert_eq!(s.executor.lease_s.get(), Duration::from_millis(250));
    assert_eq!(s.executor.pools, ["x", "y"]);
    assert_eq!(s.executor.unknown_s.get(), Duration::from_secs(90));
    assert_eq!(s.nats.server_port, 1);
    assert_eq!(s.telemetry.log_format, LogFormat::Json);
    assert_eq!(s.notifier.allow_private_addresses.len(), 1);
}

#[test]
fn the_state_directory_holds_the_file_when_none_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join(FILE_NAME), "[telemetry]\nservice_name = 'x'\n").expect("writes");
    let state = dir.path().display().to_string();
    let s = Settings::load_from(None, vars(&[("WINDLASS__STATE_DIR", &state)])).expect("loads");
    assert_eq!(s.telemetry.service_name, "x");
    assert_eq!(s.database_url().expect("url"), format!("sqlite://{state}/windlass.db"));
    assert!(Settings::load_from(Some(&dir.path().join("absent.toml")), vars(&[])).is_err(), "a named file must exist");
}

#[test]
fn an_unknown_key_is_named_with_its_origin() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("w.toml");
    std::fs::write(&file, "[executor]\nleese_s = 3\n").expect("writes");
    let e = Settings::load_from(Some(&file), vars(&[])).expect_err("refused").to_string();
    assert!(e.contains("`executor.leese_s`") && e.contains("w.toml") && e.contains("`lease_s`"), "{e}");
    let e = Settings::load_from(None, vars(&[("WINDLASS__NATS__URL", "x")])).expect_err("refused").to_string();
    assert!(e.contains("`nats.url`") && e.contains("environment") && e.contains("`urls`"), "{e}");
    let e = Settings::load_from(None, vars(&[("WINDLASS__ZZZZZZZZZZ", "x")])).expect_err("refused").to_string();
    assert!(e.contains("`zzzzzzzzzz`"), "{e}");
}

#[test]
fn values_out_of_range_are_refused() {
    for (k, v) in [
        ("WINDLASS__POLL_S", "0"),
        ("WINDLASS__POLL_S", "-1"),
        ("WINDLASS__POLL_S", "soon"),
        ("WINDLASS__EXECUTOR__LEASE_S", "0"),
        ("WINDLASS__EXECUTOR__SUSPECT_S", "1000"),
        ("WINDLASS__API__LISTEN", "nowhere"),
        ("WINDLASS__API__PUBLIC_URL", "ftp://x"),
        ("WINDLASS__API__MAX_QUEUED_COMMANDS", "0"),
        ("WINDLASS__API__MAX_QUEUED_COMMANDS", "-1"),
        ("WINDLASS__NOTIFIER__ALLOW_PRIVATE_ADDRESSES", "10.0.0.0/99"),
        ("WINDLASS__TELEMETRY__LOG_FORMAT", "xml"),
    ] {
        assert!(Settings::load_from(None, vars(&[(k, v)])).is_err(), "{k}={v}");
    }
}
