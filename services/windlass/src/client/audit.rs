//! `audit`: fetches the trail, and verifies an export offline, with nothing but the public key.

use super::{
    error::Error,
    http::Api,
    out::{Out, short_digest},
    text::clean,
};
use crate::cli::AuditCommand;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufReader, Write},
    path::Path,
};
use windlass_contracts::audit::{
    note::{Checkpoint, PublicKey, last_in},
    story::Act,
    verify::{Report, verify_export},
};

pub(crate) async fn run(
    command: AuditCommand,
    api: impl FnOnce() -> Result<Api, Error>,
    out: Out,
) -> Result<(), Error> {
    match command {
        AuditCommand::Verify { export, key, since } => verify(&export, &key, since.as_deref(), out),
        AuditCommand::Export { output, key } => export(&api()?, output.as_deref(), key.as_deref(), out).await,
        AuditCommand::Checkpoint { key } => checkpoint(&api()?, key, out).await,
    }
}

fn file_error(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, what, source }
}

fn verify(export: &Path, key: &Path, since: Option<&Path>, out: Out) -> Result<(), Error> {
    let text = std::fs::read_to_string(key).map_err(file_error(key, "the public key cannot be read"))?;
    let public: PublicKey = text.trim().parse().map_err(|e| Error::Usage(format!("{}: {e}", key.display())))?;
    let earlier = since
        .map(|p| std::fs::read_to_string(p).map_err(file_error(p, "the earlier checkpoint cannot be read")))
        .transpose()?
        // The auditor's own file of checkpoints will do: its last one counts.
        .map(|text| last_in(&text).unwrap_or(text));
    let file = File::open(export).map_err(file_error(export, "the export cannot be read"))?;
    let report = verify_export(BufReader::new(file), &public, earlier.as_deref())
        .map_err(|e| Error::Usage(super::error::chain(&e)))?;
    if out.json {
        out.json(&serde_json::to_value(&report).unwrap_or_default())?;
    } else {
        show(&report, out)?;
    }
    match report.findings.len() as u64 + report.more_findings {
        0 => Ok(()),
        n => Err(Error::Negative(format!("the audit trail does not verify: {n} finding(s)"))),
    }
}

fn show(report: &Report, out: Out) -> Result<(), Error> {
    let people = |acts: &[Act]| -> String {
        let mut names: Vec<&str> = acts.iter().map(|a| a.who.as_str()).collect();
        names.dedup();
        names.join(", ")
    };
    let rows = report.deployments.iter().map(|(id, s)| {
        let of = |x: &Option<String>| x.clone().unwrap_or_default();
        vec![
            id.clone(),
            format!("{}/{}", of(&s.project), of(&s.environment)),
            of(&s.version),
            of(&s.state),
            people(&s.requested),
            people(&s.approved),
            people(&s.overrode),
            short_digest(&of(&s.digest)).to_owned(),
        ]
    });
    let header = ["DEPLOYMENT", "WHERE", "VERSION", "STATE", "REQUESTED", "APPROVED", "OVERRODE", "PLAN"];
    out.table(&header, rows.collect(), "no deployments")?;
    out.line("")?;
    for f in &report.findings {
        let place = f.leaf.map_or_else(|| format!("line {}", f.line), |l| format!("leaf {l}, line {}", f.line));
        out.line(format!("FOUND  {place}: {}", clean(&f.what, false)))?;
    }
    if report.more_findings > 0 {
        out.line(format!("FOUND  and {} more", report.more_findings))?;
    }
    out.line(format!(
        "{}: {} leaves from {}, {} signed checkpoints, proven up to {}",
        if report.is_good() { "verified" } else { "NOT VERIFIED" },
        report.leaves,
        report.from,
        report.checkpoints,
        report.signed_size
    ))
}

async fn export(api: &Api, output: Option<&Path>, key: Option<&Path>, out: Out) -> Result<(), Error> {
    if let Some(path) = key {
        let text = public_key(api).await?;
        std::fs::write(path, format!("{text}\n")).map_err(file_error(path, "the key cannot be written"))?;
    }
    let Some(path) = output else {
        return api
            .download("/audit/export", |bytes| std::io::stdout().lock().write_all(bytes).map_err(Error::Output))
            .await;
    };
    // A half-written export must not pass for a whole one.
    let beside = path.with_extension("part");
    let mut file = File::create(&beside).map_err(file_error(&beside, "the export cannot be written"))?;
    let mut size = 0_u64;
    let got = api
        .download("/audit/export", |bytes| {
            size += bytes.len() as u64;
            file.write_all(bytes).map_err(file_error(&beside, "the export cannot be written"))
        })
        .await;
    let done = got.and_then(|()| file.sync_all().map_err(file_error(&beside, "the export cannot be written")));
    if let Err(e) = done {
        let _ = std::fs::remove_file(&beside);
        return Err(e);
    }
    std::fs::rename(&beside, path).map_err(file_error(path, "the export cannot be written"))?;
    if out.json {
        return out.json(&json!({ "file": path, "bytes": size }));
    }
    out.line(format!("{size} bytes to {}; verify them with: windlass audit verify {0} --key FILE", path.display()))
}

/// The key as text, whichever way the api wraps it.
async fn public_key(api: &Api) -> Result<String, Error> {
    let bytes = text(api, "/audit/key").await?;
    let key = serde_json::from_str::<Value>(&bytes).ok();
    let key = key.as_ref().and_then(|v| v.get("key").or(Some(v))?.as_str().map(str::to_owned)).unwrap_or(bytes);
    Ok(key.trim().to_owned())
}

async fn text(api: &Api, path: &str) -> Result<String, Error> {
    let mut all = Vec::new();
    api.download(path, |bytes| {
        all.extend_from_slice(bytes);
        Ok(())
    })
    .await?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

async fn checkpoint(api: &Api, key: bool, out: Out) -> Result<(), Error> {
    if key {
        let key = public_key(api).await?;
        return if out.json { out.json(&json!({ "key": key })) } else { out.line(key) };
    }
    let body = text(api, "/audit/checkpoint").await?;
    let wrapped = serde_json::from_str::<Value>(&body).ok();
    let note = wrapped.as_ref().and_then(|v| v.get("note")?.as_str().map(str::to_owned)).unwrap_or(body);
    if out.json {
        let size = Checkpoint::read_unverified(&note).map(|c| c.size).unwrap_or_default();
        return out.json(&wrapped.unwrap_or_else(|| json!({ "note": note, "size": size })));
    }
    out.line(note.trim_end())
}
