//! `doctor run`: what holds a deployment, and the repairs that are safe.

use super::{error::Error, http::Api, out::Out, text::clean, view};
use crate::cli::DoctorRunArgs;
use serde_json::Value;
use windlass_contracts::http::RepairBody;

pub(crate) async fn run(a: DoctorRunArgs, api: &Api, out: Out) -> Result<(), Error> {
    if a.apply {
        let body = RepairBody { cause: a.cause, apply: true };
        let done: Value = api.post(&format!("/deployments/{}/repair", a.id), &body).await?;
        return if out.json { out.json(&done) } else { repaired(&done, out) };
    }
    let d: Value = api.get(&format!("/deployments/{}/diagnosis", a.id)).await?;
    if out.json {
        out.json(&d)?;
    } else {
        show(&d, &a.id.to_string(), out)?;
    }
    let faults = view::list(&d, "findings").iter().filter(|f| view::text(f, "severity") == "fault").count();
    match faults {
        0 => Ok(()),
        n => Err(Error::Negative(format!("{n} fault(s) found"))),
    }
}

fn show(d: &Value, id: &str, out: Out) -> Result<(), Error> {
    let line = |text: String| out.line(clean(text.trim_end(), false));
    line(view::text(d, "summary"))?;
    let mut repairs = false;
    for f in view::list(d, "findings") {
        line(String::new())?;
        let t = |k| view::text(f, k);
        line(format!("{:<7} {}: {}", t("severity"), t("cause"), t("text")))?;
        for e in view::list(f, "evidence") {
            line(format!("        - {}", e.as_str().unwrap_or_default()))?;
        }
        if t("severity") != "fine" {
            line(format!("        do: {}", t("remedy")))?;
        }
        if view::at(f, "repair").is_some_and(Value::is_object) {
            repairs = true;
            line(format!("        repair {}: {}", t("repair/kind"), t("repair/does")))?;
        }
    }
    if repairs {
        line(String::new())?;
        line(format!("nothing was changed; to repair: windlass doctor run {id} --apply"))?;
        line(format!("no repair will ever: {}", view::joined(d, "never")))?;
    }
    Ok(())
}

fn repaired(done: &Value, out: Out) -> Result<(), Error> {
    for s in view::list(done, "steps") {
        let t = |k| view::text(s, k);
        out.line(clean(&format!("{}: {} ({})", t("cause"), t("outcome"), t("kind")), false))?;
    }
    out.line(format!("see what became of it: windlass doctor run {}", view::text(done, "deployment")))
}
