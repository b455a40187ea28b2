//! What the agent says about its host: cheap to read, nothing secret.

use std::{fs, path::Path};

/// The release directory that is current in a deployment root.
pub fn current(root: &Path) -> Option<String> {
    let to = fs::read_link(root.join("current")).ok()?;
    to.file_name().map(|n| n.to_string_lossy().into_owned())
}

/// os, arch, hostname, cores, `memory_mb`, and the current release of the deployment root.
pub fn facts(root: Option<&Path>) -> serde_json::Value {
    let read = |p: &str| fs::read_to_string(p).unwrap_or_default();
    let hostname = read("/proc/sys/kernel/hostname").trim().to_owned();
    let os = read("/etc/os-release")
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| std::env::consts::OS.to_owned(), |s| s.trim_matches('"').to_owned());
    let memory_mb = read("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kb| kb / 1024);
    let current = root.and_then(current);
    serde_json::json!({
        "os": os,
        "arch": std::env::consts::ARCH,
        "hostname": hostname,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_mb": memory_mb,
        "root": root.map(|r| r.display().to_string()),
        "current_release": current,
    })
}
