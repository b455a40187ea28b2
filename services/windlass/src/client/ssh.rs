//! `windlass hosts scan-key`: what a host presents as its SSH key, for a person to compare and pin.

use super::{
    error::Error,
    http::{Api, encode},
    out::Out,
    view,
};
use crate::cli::ScanKeyArgs;
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// Asks the host from this machine. A name that the catalog holds stands for its address and port.
pub(crate) async fn scan_key(args: &ScanKeyArgs, api: Result<Api, Error>, out: Out) -> Result<(), Error> {
    let known: Option<Value> = match api {
        Ok(api) => api.get(&format!("/catalog/host/{}", encode(&args.host))).await.ok(),
        Err(_) => None,
    };
    let of = |path: &str| known.as_ref().map(|k| view::text(k, path)).filter(|t| !t.is_empty());
    let address = of("doc/ssh/address").or_else(|| of("doc/address")).unwrap_or_else(|| args.host.clone());
    let port = match args.port {
        Some(p) => p,
        None => of("doc/ssh/port").and_then(|p| p.parse().ok()).unwrap_or(22),
    };
    let found = windlass_executor::scan(&address, port, LIMIT).await.map_err(|e| {
        let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        Error::Negative(format!("{e}{cause}"))
    })?;
    if out.json {
        let keys: Vec<Value> = found.iter().map(|(l, f)| json!({ "host_key": l, "fingerprint": f })).collect();
        return out.json(&json!({ "address": address, "port": port, "keys": keys }));
    }
    out.line(format!("{address}:{port} presents these keys to this machine:"))?;
    for (line, fingerprint) in &found {
        out.line(format!("  {fingerprint}\n    {line}"))?;
    }
    out.line(
        "Compare a fingerprint with the host's own (on its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), \
         then pin that line as `ssh.host_key`.",
    )
}
