//! What is missing or weak where Windlass runs as many processes: copies, versions, clocks, disks, the database's durability, the
//! brokers' copies and their encryption.

use super::Report;
use chrono::{DateTime, Duration, Utc};
use std::collections::{BTreeMap, BTreeSet};
use windlass_runtime::Settings;
use windlass_store::{Dialect, Error, Tx, processes, processes::Process, sql};

/// Three times as long as between two signs of a process.
const SILENT: Duration = Duration::seconds(30);
const SKEW_MS: i64 = 5_000;
const LEAST_FREE: i64 = 1 << 30;
const SERVICES: [&str; 5] = ["api", "scheduler", "executor", "notifier", "auditor"];

pub(super) async fn processes(tx: &mut Tx, now: DateTime<Utc>, r: &mut Report) -> Result<(), Error> {
    judge_processes(&processes::alive(tx, now - SILENT).await?, r);
    Ok(())
}

fn judge_processes(alive: &[Process], r: &mut Report) {
    let copies = |s: &str| alive.iter().filter(|p| p.services.split(',').any(|n| n == s)).count();
    let whole = |p: &Process| SERVICES.iter().all(|s| p.services.split(',').any(|n| n == *s));
    let counts: Vec<String> = SERVICES.iter().map(|s| format!("{s} {}", copies(s))).collect();
    // One process that is everything is the small form, and meant so.
    let small = alive.len() == 1 && alive.iter().all(whole);
    let (none, one) = (SERVICES.iter().any(|s| copies(s) == 0), SERVICES.iter().any(|s| copies(s) == 1));
    let status = if none {
        "fault"
    } else if one && !small {
        "warning"
    } else {
        "ok"
    };
    let remedy = "start at least two of each service, on two machines: with one, its work waits until it is back";
    r.add("services", status, counts.join(", "), remedy);

    let versions: BTreeSet<String> = alive.iter().map(|p| format!("{} (schema {})", p.version, p.migration)).collect();
    let status = if versions.len() > 1 { "warning" } else { "ok" };
    let said = versions.into_iter().collect::<Vec<_>>().join(", ");
    r.add("versions", status, said, "finish the upgrade: processes of two versions are meant for its duration alone");

    let named = |p: &Process, what: String| format!("{} on {}: {what}", p.services, p.machine);
    let off: Vec<String> = alive
        .iter()
        .filter(|p| p.skew_ms.abs() > SKEW_MS)
        .map(|p| named(p, format!("{} ms from the database", p.skew_ms)))
        .collect();
    let status = if off.is_empty() { "ok" } else { "warning" };
    let said = if off.is_empty() { "all processes agree with the database".into() } else { off.join("; ") };
    r.add("clocks", status, said, "run a time service (chrony, systemd-timesyncd) on those machines");

    let full: Vec<String> = alive
        .iter()
        .filter(|p| (0..LEAST_FREE).contains(&p.disk_free))
        .map(|p| named(p, format!("{} MiB free", p.disk_free >> 20)))
        .collect();
    let status = if full.is_empty() { "ok" } else { "fault" };
    let said = if full.is_empty() { "at least 1 GiB free for every process".into() } else { full.join("; ") };
    r.add("disks", status, said, "free at least 1 GiB where their state lies");
}

/// Whether a commit that was answered outlives the loss of the database's machine.
pub(super) async fn durability(tx: &mut Tx, r: &mut Report) -> Result<(), Error> {
    if tx.dialect() != Dialect::Postgres {
        return Ok(());
    }
    let rows: Vec<(String, String)> = sql("SELECT name, setting FROM pg_settings WHERE name IN
          ('fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'server_version_num')")
    .fetch_all(tx)
    .await?;
    judge_durability(&rows.into_iter().collect(), r);
    Ok(())
}

fn judge_durability(set: &BTreeMap<String, String>, r: &mut Report) {
    let is = |name: &str, value: &str| set.get(name).is_some_and(|v| v == value);
    let version: u32 = set.get("server_version_num").and_then(|v| v.parse().ok()).unwrap_or(0);
    if version < 150_000 {
        let said = format!("server_version_num is {version}");
        r.add("PostgreSQL version", "warning", said, "PostgreSQL 15 is the oldest that is tested");
    }
    if is("fsync", "off") || is("full_page_writes", "off") || is("synchronous_commit", "off") {
        let remedy =
            "set fsync, full_page_writes and synchronous_commit to on: what was accepted may be lost to a power cut";
        r.add("PostgreSQL commits", "fault", "not durable when they are answered", remedy);
    } else if set.get("synchronous_standby_names").is_none_or(|s| s.trim().is_empty()) {
        let remedy = "name one in synchronous_standby_names: else a failover may lose what was accepted (`windlass restored` after one)";
        r.add("PostgreSQL standby", "warning", "none is synchronous", remedy);
    } else {
        r.add("PostgreSQL commits", "ok", "durable, and on a standby", "");
    }
}

pub(super) fn brokers(s: &Settings, r: &mut Report) {
    let n = &s.nats;
    let host = |u: &str| {
        let rest = u.split_once("://").map_or(u, |(_, rest)| rest);
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        rest.rsplit_once(':').map_or(rest, |(host, _)| host).trim_matches(['[', ']']).to_owned()
    };
    let local = |u: &str| {
        let h = host(u);
        h == "localhost" || h.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
    };
    let beyond: Vec<&str> = n.urls.iter().chain(&n.agent_urls).map(String::as_str).filter(|u| !local(u)).collect();
    let open = beyond.iter().any(|u| !u.starts_with("tls://")) && n.tls.ca_file.is_none();
    let remedy = "give the servers a certificate (`windlass init --nats-tls-cert`), set nats.tls.ca_file and write tls:// in nats.urls: \
                  frames are signed and secrets sealed, but all else can be read on the way";
    if open {
        r.add("NATS encryption", "warning", "spoken in clear beyond this machine", remedy);
    }
    if n.urls.len() > 1 && n.replicas < 2 {
        let said = format!("{} servers, and 1 copy of each stream", n.urls.len());
        r.add(
            "NATS copies",
            "warning",
            said,
            "set nats.replicas to 3: with the one server that has a stream, its doorbells are gone",
        );
    } else if n.urls.len() == 1 && !local(&n.urls[0]) {
        let remedy =
            "run three servers (`windlass init --nats-node …`): without it work goes on by polling, and agents wait";
        r.add("NATS copies", "warning", "one server", remedy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(judge: impl FnOnce(&mut Report)) -> BTreeMap<String, String> {
        let mut r = Report(Vec::new());
        judge(&mut r);
        for c in &r.0 {
            assert_eq!(
                c.remedy.is_empty(),
                c.status == "ok",
                "{}: a remedy for what is not well, and no other",
                c.name
            );
        }
        r.0.into_iter().map(|c| (c.name, c.status)).collect()
    }

    fn process(services: &str) -> Process {
        Process {
            owner: services.into(),
            services: services.into(),
            version: "1.0.0".into(),
            migration: 11,
            machine: "m".into(),
            started_at: DateTime::UNIX_EPOCH,
            seen_at: DateTime::UNIX_EPOCH,
            skew_ms: 0,
            disk_free: LEAST_FREE,
        }
    }

    #[test]
    fn copies_versions_clocks_and_disks() {
        let judged = |p: Vec<Process>| report(|r| judge_processes(&p, r));
        let two = || SERVICES.iter().chain(&SERVICES).map(|s| process(s)).collect::<Vec<_>>();
        assert!(judged(two()).values().all(|s| s == "ok"));
        assert!(judged(vec![process(&SERVICES.join(","))]).values().all(|s| s == "ok"), "the small form");
        assert_eq!(judged(two()[1..].to_vec())["services"], "warning", "one api");
        assert_eq!(judged(two().into_iter().filter(|p| p.services != "auditor").collect())["services"], "fault");
        let with = |change: fn(&mut Process)| {
            let mut all = two();
            change(&mut all[3]);
            judged(all)
        };
        assert_eq!(with(|p| p.version = "0.9.0".into())["versions"], "warning");
        assert_eq!(with(|p| p.skew_ms = -6_000)["clocks"], "warning");
        assert_eq!(with(|p| p.disk_free = 5)["disks"], "fault");
    }

    #[test]
    fn durability_of_the_database() {
        let judged = |change: &[(&str, &str)]| {
            let mut set: BTreeMap<String, String> = [
                ("fsync", "on"),
                ("full_page_writes", "on"),
                ("synchronous_commit", "on"),
                ("synchronous_standby_names", "a"),
                ("server_version_num", "150004"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
            set.extend(change.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
            report(|r| judge_durability(&set, r))
        };
        assert_eq!(judged(&[])["PostgreSQL commits"], "ok");
        assert_eq!(judged(&[("fsync", "off")])["PostgreSQL commits"], "fault");
        assert_eq!(judged(&[("synchronous_commit", "off")])["PostgreSQL commits"], "fault");
        assert_eq!(judged(&[("synchronous_standby_names", "")])["PostgreSQL standby"], "warning");
        assert_eq!(judged(&[("server_version_num", "140001")])["PostgreSQL version"], "warning");
    }

    #[test]
    fn brokers_in_clear_and_alone() {
        let judged = |urls: &[&str], replicas: usize, ca: bool| {
            let mut s = Settings::default();
            s.nats.urls = urls.iter().map(|u| (*u).to_owned()).collect();
            s.nats.replicas = replicas;
            s.nats.tls.ca_file = ca.then(|| "ca.pem".into());
            report(|r| brokers(&s, r))
        };
        assert!(judged(&["nats://127.0.0.1:4222"], 1, false).is_empty());
        assert!(judged(&["nats://[::1]:1", "nats://localhost:2", "nats://127.0.0.1:3"], 3, false).is_empty());
        assert!(judged(&["tls://n1:4222", "tls://n2:4222", "tls://n3:4222"], 3, true).is_empty());
        assert_eq!(judged(&["nats://n1:4222", "tls://n2:4222"], 3, false)["NATS encryption"], "warning");
        assert_eq!(judged(&["tls://n1:4222", "tls://n2:4222"], 1, false)["NATS copies"], "warning");
        assert_eq!(judged(&["tls://n1:4222"], 1, false)["NATS copies"], "warning");
    }
}
