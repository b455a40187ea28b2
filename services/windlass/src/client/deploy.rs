//! Deployments: requesting, deciding, watching and intervening.

use super::{
    error::Error,
    follow,
    http::{Api, encode, query},
    out::{Out, short_digest, time},
    plan,
    text::clean,
    view,
};
use crate::cli::{
    AcceptArgs, ChooseArgs, ConfirmArgs, DecideArgs, DeployArgs, HostsArgs, HostsReasonArgs, IdArgs, LogsArgs,
    ReasonArgs, StatusArgs, WaitArgs,
};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;
use windlass_contracts::http::{
    AcceptBody, ChooseBody, ConfirmBody, DecisionBody, DeploymentDetail, DeploymentNew, HostCounts, HostRun, HostsBody,
    HostsReasonBody, NoBody, ReasonBody,
};
use windlass_domain::deployment::State;

/// How long a command may stay undecided before the client gives up on its outcome.
const OUTCOME: Duration = Duration::from_secs(30);
/// `logs -f` ends with its deployment; nothing waits for ever all the same.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// Sends a command. The api answers its outcome, or 202 and `pending` when the scheduler is slow: then this waits.
pub(super) async fn command(api: &Api, path: &str, body: &impl Serialize) -> Result<Value, Error> {
    let mut answer: Value = api.post(path, body).await?;
    let deadline = Instant::now() + OUTCOME;
    loop {
        match view::text(&answer, "state").as_str() {
            "pending" if Instant::now() >= deadline => {
                let what = format!("the decision on command {}", view::text(&answer, "id"));
                return Err(Error::Deadline { what, seconds: OUTCOME.as_secs() });
            }
            "pending" => tokio::time::sleep(Duration::from_millis(250)).await,
            "refused" => {
                let (title, detail) = (view::text(&answer, "code"), view::text(&answer, "detail"));
                return Err(Error::Problem { status: 409, title, detail, body: answer, retry_after: None });
            }
            _ => return Ok(answer),
        }
        answer = api.get(&format!("/commands/{}", view::text(&answer, "id"))).await?;
    }
}

pub(crate) async fn deploy(args: DeployArgs, api: &Api, out: Out) -> Result<(), Error> {
    if args.ask.help_inputs {
        return plan::help_inputs(&args.project, &args.environment, api, out).await;
    }
    let asked = plan::ask(&args.project, &args.environment, &args.ask, &args.hosts, api).await?;
    let kind = args.hotfix.then(|| "hotfix".to_owned());
    let body = DeploymentNew { not_before: args.at, note: args.note, kind, ..asked };
    let answer = command(api, &format!("/projects/{}/deployments", encode(&args.project)), &body).await?;
    requested(&answer, &args.wait, api, out).await
}

/// A new deployment came of it: say its id, and watch it if asked.
pub(super) async fn requested(answer: &Value, wait: &WaitArgs, api: &Api, out: Out) -> Result<(), Error> {
    let id: Option<Uuid> = view::text(answer, "new_deployment").parse().ok();
    let Some(id) = id.filter(|_| wait.wait || wait.follow) else {
        if out.json {
            return out.json(answer);
        }
        let id = id.map(|i| i.to_string()).unwrap_or_default();
        return out.line(format!("deployment {id} is requested; see: windlass status {id}"));
    };
    if !out.json {
        out.line(format!("deployment {id} is requested"))?;
    }
    watch(id, wait, None, api, out).await
}

/// Waits for the end and turns a bad one into exit 1.
async fn watch(id: Uuid, wait: &WaitArgs, until: Option<&str>, api: &Api, out: Out) -> Result<(), Error> {
    let status = if wait.follow {
        follow::follow(api, id, wait.timeout, out).await?
    } else {
        follow::wait(api, id, until, wait.timeout).await?
    };
    if out.json {
        out.json(&status)?;
    } else {
        show(&status, out)?;
    }
    let state = view::text(&status, "state");
    match follow::state_of(&status) {
        _ if until == Some(state.as_str()) => Ok(()),
        Some(State::Succeeded) => Ok(()),
        _ => Err(Error::Negative(format!("deployment {id} ended {state}"))),
    }
}

pub(crate) async fn status(args: StatusArgs, api: &Api, out: Out) -> Result<(), Error> {
    if let Some(id) = args.id {
        if args.wait.wait || args.wait.follow {
            return watch(id, &args.wait, args.until.as_deref(), api, out).await;
        }
        let status: Value = api.get(&format!("/deployments/{id}")).await?;
        return if out.json { out.json(&status) } else { show(&status, out) };
    }
    let limit = args.limit.to_string();
    let filters = [
        ("project", args.project.as_deref()),
        ("environment", args.environment.as_deref()),
        ("tier", args.tier.as_deref()),
        ("state", args.state.as_deref()),
        ("limit", Some(limit.as_str())),
    ];
    let page: Value = api.get(&query("/deployments", &filters)).await?;
    if out.json {
        return out.json(&page);
    }
    let rows = view::items(&page).iter().map(|d| {
        vec![
            view::text(d, "id"),
            format!("{}/{}", view::text(d, "project"), view::text(d, "environment")),
            view::text(d, "version"),
            view::text(d, "state"),
            view::text(d, "requested_by"),
            view::time(d, "requested_at"),
            waiting(d).join("; "),
        ]
    });
    let header = ["ID", "WHERE", "VERSION", "STATE", "BY", "REQUESTED", "WAITING FOR"];
    out.table(&header, rows.collect(), "no deployments; request one with: windlass deploy")
}

/// What it waits for, in words.
fn waiting(d: &Value) -> Vec<String> {
    view::list(d, "waiting_on").iter().map(|w| view::text(w, "text")).collect()
}

/// One deployment with its waves and hosts.
fn show(status: &Value, out: Out) -> Result<(), Error> {
    let d: DeploymentDetail = serde_json::from_value(status.clone()).map_err(|e| Error::Answer {
        server: "the server".into(),
        path: "/deployments".into(),
        source: e.into(),
    })?;
    let s = &d.summary;
    let mut lines = vec![
        format!("deployment  {}", s.id),
        format!("what        {} {} to {}/{}", s.kind, s.version, s.project, s.environment),
        format!("state       {}", s.state),
    ];
    lines.extend(s.waiting_on.iter().map(|w| format!("waiting     {}", w.text)));
    lines.extend(attention(&d));
    lines.extend(Some(counts(&s.hosts)).filter(|c| !c.is_empty()).map(|c| format!("hosts       {c}")));
    lines.push(format!("requested   {} by {}", time(s.requested_at), s.requested_by));
    lines.extend(s.started_at.map(|t| format!("started     {}", time(t))));
    lines.extend(s.ended_at.map(|t| format!("ended       {}", time(t))));
    for a in &d.approvals {
        lines.push(format!("{:<10}  {} {} {}", a.decision, time(a.at), a.person, a.comment));
    }
    lines.extend(
        d.reopened.iter().map(|r| format!("run         {}, taken up again by {} {}", d.run, r.who, time(r.at))),
    );
    if let Some(a) = &d.amendment {
        let inputs: Vec<String> = a.inputs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        lines.push(format!("other input {} by {}: {}", inputs.join(" "), a.by.who, a.by.reason));
        lines.extend(
            a.missing.iter().map(|m| format!("            approval {} of {} for {}", m.have, m.quorum, m.name)),
        );
        lines.push(format!("            approve with --digest {}", a.digest));
    }
    lines.extend(d.pause.iter().map(|p| format!("paused      by {}: {}", p.who, p.reason)));
    lines.extend(d.end.iter().map(|e| format!("why         {} ({})", e.reason, e.who)));
    lines.extend(d.rollback_of.map(|r| format!("goes back   from deployment {r}")));
    lines.extend(d.rolled_back_by.map(|r| format!("rolled back by deployment {r}")));
    lines.push(format!("plan        {}", d.plan_digest));
    if !d.actions.is_empty() {
        lines.push(format!("you may     {}", d.actions.join(", ")));
    }
    lines.push(String::new());
    lines.iter().try_for_each(|l| out.line(clean(l.trim_end(), false)))?;

    let mut rows = vec![];
    for step in d.steps {
        let attempt = step.attempt.map(|a| a.to_string()).unwrap_or_default();
        if step.kind != "rollout" {
            let forced = step.forced.as_ref().map(|b| format!("{}: {}", b.who, b.reason));
            let why = step.reason.or(forced).unwrap_or_default();
            rows.push(vec![step.id, String::new(), step.action.unwrap_or_default(), step.state, attempt, why]);
            continue;
        }
        for wave in step.waves {
            for h in wave.hosts {
                let why = why(&h);
                let (wave, attempt) = ((wave.index + 1).to_string(), h.attempt.to_string());
                rows.push(vec![step.id.clone(), wave, h.host, h.state, attempt, why]);
            }
        }
    }
    out.table(&["STEP", "WAVE", "HOST", "STATE", "TRY", "WHY"], rows, "no steps")
}

/// Who answers for it and until when, where it waits for a person.
fn attention(d: &DeploymentDetail) -> Vec<String> {
    let claim = d.claim.as_ref().map(|c| format!("claimed     by {} {} {}", c.who, time(c.at), c.reason));
    let deadline = d.attention.as_ref().map(|a| {
        let owner =
            if a.claimed { String::new() } else { format!("; nobody has claimed it ({} requested it)", a.owner) };
        format!("deadline    {}, then {} (waits since {}){owner}", time(a.deadline), a.then, time(a.since))
    });
    claim.into_iter().chain(deadline).collect()
}

/// Hosts counted apart; states nobody is in are left out.
pub(super) fn counts(c: &HostCounts) -> String {
    let all = [
        ("succeeded", c.succeeded),
        ("running", c.running),
        ("failed", c.failed),
        ("unknown", c.unknown),
        ("auto stopped", c.auto_stopped),
        ("hand stopped", c.hand_stopped),
        ("not started", c.not_started),
        ("ignored", c.ignored),
        ("excluded", c.excluded),
        ("waiting", c.waiting),
    ];
    let some: Vec<String> = all.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
    if some.is_empty() { String::new() } else { format!("{} of {}", some.join(", "), c.total) }
}

/// Why a host is where it is: who said so, what went wrong, where it stands with the load balancers.
fn why(h: &HostRun) -> String {
    let mut out: Vec<String> = h.reason.iter().cloned().collect();
    out.extend(h.by.as_ref().map(|b| format!("{}: {}", b.who, b.reason)));
    let traffic = h.task.as_ref().and_then(|t| t.traffic.as_ref()).filter(|t| t.state != "attached");
    out.extend(traffic.map(|t| {
        let reason = t.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        format!("{}{reason}", t.state.replace('_', " "))
    }));
    out.join("; ")
}

/// The deployment's current plan.
async fn plan_of(id: Uuid, api: &Api) -> Result<Value, Error> {
    api.get(&format!("/deployments/{id}/plan")).await
}

pub(crate) async fn decide(args: DecideArgs, verb: &str, api: &Api, out: Out) -> Result<(), Error> {
    let digest = match args.digest {
        Some(d) => d,
        None => {
            let plan = plan_of(args.id, api).await?;
            if !out.json {
                plan::show(&plan, out)?;
            }
            if !args.yes {
                match out.ask(&format!("{verb} this plan?")) {
                    Some(true) => {}
                    Some(false) => return Err(Error::Usage("nothing was sent".into())),
                    None => {
                        return Err(Error::Usage(format!(
                            "nobody can be asked here: give --digest {} (the plan shown above), or --yes",
                            view::text(&plan, "digest")
                        )));
                    }
                }
            }
            view::text(&plan, "digest")
        }
    };
    let body = DecisionBody { digest: digest.clone(), comment: args.comment };
    let answer = command(api, &format!("/deployments/{}/{verb}", args.id), &body).await?;
    told(&answer, &format!("{verb}: {}", short_digest(&digest)), out)
}

fn told(answer: &Value, what: &str, out: Out) -> Result<(), Error> {
    if out.json {
        return out.json(answer);
    }
    let detail = view::text(answer, "detail");
    out.line(clean(
        &if detail.is_empty() { format!("done: {what}") } else { format!("done: {what} ({detail})") },
        false,
    ))
}

pub(super) async fn verb(id: Uuid, verb: &str, body: impl Serialize, api: &Api, out: Out) -> Result<(), Error> {
    let answer = command(api, &format!("/deployments/{id}/{verb}"), &body).await?;
    told(&answer, verb, out)
}

pub(crate) async fn with_reason(args: ReasonArgs, name: &str, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, name, ReasonBody { reason: args.reason }, api, out).await
}
pub(crate) async fn with_hosts(args: HostsArgs, name: &str, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, name, HostsBody { hosts: args.hosts }, api, out).await
}
pub(crate) async fn with_hosts_and_reason(args: HostsReasonArgs, name: &str, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, name, HostsReasonBody { hosts: args.hosts, reason: args.reason }, api, out).await
}
pub(crate) async fn resume(args: IdArgs, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, "resume", NoBody {}, api, out).await
}
pub(crate) async fn confirm(args: ConfirmArgs, api: &Api, out: Out) -> Result<(), Error> {
    // People count waves from one, the api from zero.
    verb(args.id, "confirm", ConfirmBody { wave: args.wave - 1 }, api, out).await
}

pub(crate) async fn choose(args: ChooseArgs, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, "choose", ChooseBody { step: args.step, branch: args.branch }, api, out).await
}
pub(crate) async fn accept(args: AcceptArgs, api: &Api, out: Out) -> Result<(), Error> {
    verb(args.id, "accept", AcceptBody { digest: args.digest }, api, out).await
}

pub(crate) async fn logs(args: LogsArgs, api: &Api, out: Out) -> Result<(), Error> {
    let filter = follow::LogFilter { host: args.host, step: args.step };
    if args.follow {
        return follow::log_until_end(api, args.id, Instant::now() + LONGEST, filter, out).await;
    }
    let mut printer = follow::LogPrinter::new(filter, out);
    let mut cursor: Option<String> = None;
    loop {
        let path =
            query(&format!("/deployments/{}/logs", args.id), &[("cursor", cursor.as_deref()), ("limit", Some("500"))]);
        let page: Value = api.get(&path).await?;
        view::items(&page).iter().try_for_each(|chunk| printer.chunk(chunk))?;
        let next = view::text(&page, "next");
        if next.is_empty() || Some(&next) == cursor.as_ref() {
            return printer.finish();
        }
        cursor = Some(next);
    }
}
