//! Looking ahead: plans before and after a request, the inputs of a flow, values with their scopes, drift.

use super::{
    error::Error,
    http::{Api, encode, query},
    out::Out,
    text::clean,
    view,
};
use crate::cli::{AskArgs, DriftArgs, ExplainArgs, PlanArgs, file_of};
use serde_json::Value;
use std::collections::BTreeMap;
use windlass_contracts::{
    http::DeploymentNew,
    preview::{FormField, FormView},
};
use windlass_domain::{flow::input::file_value, plan::Plan};

/// The form of an environment's flow.
async fn form(project: &str, environment: &str, api: &Api) -> Result<FormView, Error> {
    api.get(&format!("/projects/{}/environments/{}/form", encode(project), encode(environment))).await
}

/// A request's body from what was typed; each input is read as its form says.
pub(crate) async fn ask(
    project: &str,
    environment: &str,
    args: &AskArgs,
    hosts: &[String],
    api: &Api,
) -> Result<DeploymentNew, Error> {
    let mut inputs = BTreeMap::new();
    if !args.inputs.is_empty() {
        let form = form(project, environment, api).await?;
        for (name, text) in &args.inputs {
            let field = form.fields.iter().find(|f| f.name == *name);
            inputs.insert(name.clone(), value(name, text, field)?);
        }
    }
    Ok(DeploymentNew {
        environment: environment.to_owned(),
        version: args.version.clone(),
        inputs,
        hosts: hosts.to_vec(),
        add_hosts: args.add_hosts.clone(),
        exclude_hosts: args.exclude_hosts.clone(),
        values: args.values.iter().cloned().collect(),
        ..DeploymentNew::default()
    })
}

fn value(name: &str, text: &str, field: Option<&FormField>) -> Result<Value, Error> {
    let widget = field.map_or("text", |f| f.widget.as_str());
    let text = match file_of(text) {
        None => text.strip_prefix('@').unwrap_or(text).to_owned(),
        Some(path) => {
            let wrong = |e: String| Error::Usage(format!("cannot read {} for input `{name}`: {e}", path.display()));
            let bytes = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
            if widget == "file" {
                let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                return Ok(file_value(&file, &bytes));
            }
            let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text".into()))?;
            text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
        }
    };
    match widget {
        "number" => match serde_json::from_str(&text) {
            Ok(n @ Value::Number(_)) => Ok(n),
            _ => Err(Error::Usage(format!("input `{name}` must be a number, not {text:?}"))),
        },
        "checkbox" => match text.as_str() {
            "true" => Ok(true.into()),
            "false" => Ok(false.into()),
            _ => Err(Error::Usage(format!("input `{name}` must be true or false, not {text:?}"))),
        },
        "file" => Err(Error::Usage(format!("input `{name}` is a file: write {name}=@path"))),
        _ => Ok(Value::String(text)),
    }
}

/// The table of a flow's inputs.
pub(crate) async fn help_inputs(project: &str, environment: &str, api: &Api, out: Out) -> Result<(), Error> {
    let form = form(project, environment, api).await?;
    if out.json {
        return out.json(&serde_json::to_value(&form).unwrap_or_default());
    }
    out.line(format!("flow {} (revision {}) takes:", form.flow, form.flow_revision))?;
    let rows = form.fields.iter().map(|f| {
        let default = match &f.default {
            Value::Null if f.required => "must be given".into(),
            Value::Null => String::new(),
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        let kind = if f.options.is_empty() { f.widget.replace('_', " ") } else { f.options.join(" | ") };
        vec![f.name.clone(), kind, default, f.hint.clone(), f.description.clone()]
    });
    out.table(&["INPUT", "TYPE", "DEFAULT", "RULES", "DESCRIPTION"], rows.collect(), "no inputs")
}

pub(crate) async fn plan(args: PlanArgs, api: &Api, out: Out) -> Result<(), Error> {
    if let (Some(project), Some(environment), true) = (&args.project, &args.environment, args.ask.help_inputs) {
        return help_inputs(project, environment, api, out).await;
    }
    let answer: Value = match (args.id, &args.project, &args.environment) {
        (Some(id), ..) => api.get(&format!("/deployments/{id}/plan")).await?,
        (None, Some(project), Some(environment)) => {
            let body = ask(project, environment, &args.ask, &args.hosts, api).await?;
            api.post(&format!("/projects/{}/plan", encode(project)), &body).await?
        }
        _ => return Err(Error::Usage("name a deployment, or --project and --environment".into())),
    };
    if let Some(host) = &args.host {
        return one_host(&answer, host, out);
    }
    if out.json {
        return out.json(&answer);
    }
    show(&answer, out)
}

/// What one host would run, step by step; secrets and outputs of other steps by name.
fn one_host(answer: &Value, host: &str, out: Out) -> Result<(), Error> {
    let unread =
        |e: serde_json::Error| Error::Answer { server: "the server".into(), path: "/plan".into(), source: Box::new(e) };
    let plan: Plan = serde_json::from_value(answer["plan"].clone()).map_err(unread)?;
    let Some(index) = plan.host_index(host) else {
        let left = plan.left_out.iter().find(|l| l.host == host);
        let why = left.map_or_else(|| "it is not in the plan".to_owned(), |l| format!("it is left out: {}", l.reason));
        return Err(Error::Negative(format!("host {host} runs nothing: {why}")));
    };
    let mut specs = Vec::new();
    for step in plan.steps.iter().filter(|s| !s.skipped) {
        if let Ok(spec) = plan.task_spec(&step.id, index) {
            specs.push(spec);
        }
    }
    if out.json {
        return out.json(&serde_json::to_value(&specs).unwrap_or_default());
    }
    for spec in &specs {
        out.line(format!(
            "{}  ({} {} to {}/{})",
            spec.step, plan.project, spec.version, plan.project, spec.environment
        ))?;
        for (n, s) in spec.steps.iter().enumerate() {
            let always = if s.always { ", always" } else { "" };
            out.line(format!("  {}. {}  {} (at most {} s{always})", n + 1, s.id, s.action, s.timeout_s))?;
            for (key, v) in &s.with {
                let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                out.line(format!("       {key}: {}", clean(&named(&text), false)))?;
            }
        }
    }
    if specs.is_empty() { out.line(format!("host {host} takes part in no rollout")) } else { Ok(()) }
}

/// Markers in words: `<secret db_password>`.
fn named(text: &str) -> String {
    text.replace('\u{fdd0}', "<").replace('\u{fdd1}', ">")
}

/// A plan as tables: what changes where, in which order, and what stands before it.
pub(crate) fn show(answer: &Value, out: Out) -> Result<(), Error> {
    let r = &answer["report"];
    let flow = (view::text(r, "flow"), view::text(r, "flow_revision"));
    let place = format!("{}/{}", view::text(r, "project"), view::text(r, "environment"));
    out.line(format!(
        "{} {} to {place}, flow {} revision {}",
        view::text(r, "kind"),
        view::text(r, "version"),
        flow.0,
        flow.1
    ))?;
    out.line(format!("digest  {}", view::text(answer, "digest")))?;
    let (holder, queue) = (view::text(r, "lock/holder"), view::list(r, "lock/queue").len());
    let lock = if holder.is_empty() { "free".to_owned() } else { format!("held by deployment {holder}") };
    out.line(format!("lock    {lock}, {queue} waiting"))?;
    for (word, key) in [("gate", "gates"), ("look", "warnings")] {
        for text in view::list(r, key) {
            out.line(format!("{word}    {}", clean(text.as_str().unwrap_or_default(), false)))?;
        }
    }
    if let Some(inputs) = view::at(r, "inputs").and_then(Value::as_object) {
        for (name, v) in inputs {
            let text = match v.get("secret").and_then(Value::as_str) {
                Some(_) => "(secret)".to_owned(),
                None => v
                    .get("sha256")
                    .map_or_else(|| v.to_string(), |d| format!("file, sha256 {}", d.as_str().unwrap_or_default())),
            };
            out.line(format!("input   {name} = {}", clean(&text, false)))?;
        }
    }
    out.line("")?;
    let rows = view::list(r, "hosts").iter().map(|h| {
        let change = match (view::text(h, "change").as_str(), view::text(h, "from").as_str()) {
            ("same", _) => "same".to_owned(),
            ("changes", "") => format!("another release -> {}", view::text(h, "to")),
            ("changes", from) => format!("{from} -> {}", view::text(h, "to")),
            _ => "unknown".to_owned(),
        };
        let note = if view::text(h, "temporary") == "true" { "temporary" } else { "" };
        vec![
            view::text(h, "name"),
            view::text(h, "address"),
            view::text(h, "agent").replace('_', " "),
            change,
            [note, &view::text(h, "locked")].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", "),
        ]
    });
    out.table(&["HOST", "ADDRESS", "AGENT", "CHANGE", "NOTE"], rows.collect(), "no hosts")?;
    out.line("")?;
    let rows = view::list(r, "steps").iter().flat_map(|s| {
        let what = match view::text(s, "action") {
            a if a.is_empty() => view::joined(s, "host_steps"),
            a => a,
        };
        let state = match view::text(s, "skipped").as_str() {
            "true" => format!("skipped {}", view::text(s, "note")),
            _ => view::text(s, "note"),
        };
        let groups = view::list(s, "groups");
        let first =
            vec![view::text(s, "id"), view::text(s, "kind"), view::joined(s, "needs"), what, state.trim().to_owned()];
        let waves = view::list(s, "waves").iter().enumerate().map(|(n, w)| {
            let hosts: Vec<&str> = w.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            vec![
                format!("  wave {}", n + 1),
                format!("{} host(s)", hosts.len()),
                String::new(),
                shortened(&hosts),
                groups.get(n).and_then(Value::as_str).unwrap_or_default().to_owned(),
            ]
        });
        std::iter::once(first).chain(waves).collect::<Vec<_>>()
    });
    out.table(&["STEP", "KIND", "NEEDS", "WHAT", "NOTE"], rows.collect(), "no steps")
}

fn shortened(hosts: &[&str]) -> String {
    match hosts.len() {
        0..=8 => hosts.join(", "),
        n => format!("{} and {} more", hosts[..8].join(", "), n - 8),
    }
}

pub(crate) async fn explain(args: &ExplainArgs, api: &Api, out: Out) -> Result<(), Error> {
    let Some((project, environment)) = args.place.split_once('/') else {
        return Err(Error::Usage("write <project>/<environment>".into()));
    };
    let path = format!("/projects/{}/environments/{}/values", encode(project), encode(environment));
    let answer: Value = api.get(&query(&path, &[("host", args.host.as_deref())])).await?;
    if out.json {
        return out.json(&answer);
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut rows = Vec::new();
    for v in view::list(&answer, "values") {
        let hidden = view::list(v, "shadows").iter();
        let hidden = hidden.map(|s| format!("{}: {}", view::text(s, "scope"), text(&s["value"])));
        rows.push(vec![
            view::text(v, "key"),
            text(&v["value"]),
            view::text(v, "scope"),
            hidden.collect::<Vec<_>>().join(", "),
        ]);
    }
    for s in view::list(&answer, "secrets") {
        rows.push(vec![view::text(s, "name"), "(secret)".into(), view::text(s, "scope"), view::joined(s, "shadows")]);
    }
    out.table(&["KEY", "VALUE", "FROM", "HIDES"], rows, "no values")
}

pub(crate) async fn drift(args: &DriftArgs, api: &Api, out: Out) -> Result<(), Error> {
    let filters = [("project", args.project.as_deref()), ("environment", args.environment.as_deref())];
    let answer: Value = api.get(&query("/drift", &filters)).await?;
    if out.json {
        return out.json(&answer);
    }
    let rows = view::items(&answer).iter().filter(|d| args.all || view::text(d, "state") != "same").map(|d| {
        let reported = match view::text(d, "reported") {
            v if v.is_empty() => view::text(d, "reported_dir"),
            v => v,
        };
        vec![
            format!("{}/{}", view::text(d, "project"), view::text(d, "environment")),
            view::text(d, "host"),
            view::text(d, "state"),
            view::text(d, "intended"),
            reported,
            view::time(d, "last_seen_at"),
        ]
    });
    out.table(
        &["WHERE", "HOST", "STATE", "INTENDED", "REPORTED", "SEEN"],
        rows.collect(),
        "every host has what it should have",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(widget: &str) -> FormField {
        FormField {
            name: "x".into(),
            label: String::new(),
            widget: widget.into(),
            description: String::new(),
            required: true,
            default: Value::Null,
            options: vec![],
            hint: String::new(),
        }
    }

    #[test]
    fn inputs_are_read_as_their_form_says() {
        let read = |widget: &str, text: &str| value("x", text, Some(&field(widget))).ok();
        assert_eq!(read("text", "5"), Some("5".into()), "text stays text");
        assert_eq!(read("number", "5"), Some(5.into()));
        assert_eq!(read("number", "five"), None);
        assert_eq!(read("checkbox", "true"), Some(true.into()));
        assert_eq!(read("checkbox", "yes"), None);
        assert_eq!(read("text", "@@me"), Some("@me".into()));
        assert_eq!(read("file", "text"), None, "a file is read from a path");
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("app.conf");
        std::fs::write(&path, "port=1\n").expect("writes");
        let at = format!("@{}", path.display());
        assert_eq!(read("file", &at), Some(file_value("app.conf", b"port=1\n")));
        assert_eq!(read("password", &at), Some("port=1".into()), "without the last line break");
        assert_eq!(read("text", "@/nowhere/at/all"), None);
    }

    #[test]
    fn secrets_are_shown_by_name() {
        assert_eq!(named("Bearer \u{fdd0}secret:token\u{fdd1}"), "Bearer <secret:token>");
    }
}
