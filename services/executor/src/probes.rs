//! Probes: the looks at a wave while it bakes. A look asks every probe once: what the executor asks itself at the same time,
//! what runs on the wave's hosts as tasks of their own (`wave::side`). A probe that fails so many looks in a row settles the
//! work at once; else the end of the bake does.
//!
//! How often a probe has failed in a row is this process's memory: a new owner goes on looking and begins to count anew. It
//! never looks longer than until the end of the bake and for one look more.

mod judge;

use crate::{
    central::{http, prometheus, unknown_action},
    dispatch::{Draft, SERVICE},
    error::Stop,
    lease::Lease,
    plans::PlanView,
    secrets,
    shared::{Shared, work_event},
    single::{self, Control},
    wave::side::{self, Heeds, Side},
};
use futures::future::{BoxFuture, join_all};
use judge::{Counts, Looked, Standing};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::Notify,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use windlass_domain::{
    event::Severity,
    plan::{PlanProbe, PlanProbes, segment},
    task::{StepOutcome, Task},
    work::{CentralWork, ProbeWork, Verdict, WorkResult},
};
use windlass_store::{Error, events, works, works::Claim};

/// What a look on hosts may take beyond its offer and its steps.
const MARGIN: Duration = Duration::from_secs(30);

/// Looks until a probe fails, the time is over, the work is aborted, or the claim is lost.
pub(crate) async fn drive(
    shared: Arc<Shared>,
    claim: Claim,
    probe: ProbeWork,
    bell: Arc<Notify>,
    stop: CancellationToken,
) -> Result<(), Stop> {
    let control = Control::default();
    let (shared, claim, probe) = (&shared, &claim, &probe);
    let run = || {
        Box::pin(async {
            if let Err(error) = single::heed_abort(shared, claim.work.id, &control).await {
                return Ok(Err(error));
            }
            // What runs on hosts is ended first when the deployment is aborted.
            looks(shared, claim, probe, &control.abort).await.map(Ok)
        })
    };
    let settle = |result: WorkResult| async move { settle(shared, claim, probe, &result).await };
    single::drive(shared, claim, &control, &bell, &stop, run, settle).await
}

async fn settle(shared: &Shared, claim: &Claim, probe: &ProbeWork, result: &WorkResult) -> Result<(), Error> {
    let mut tx = shared.ctx.store.write().await?;
    works::lock_desired(&mut tx, claim.work.id).await?;
    let now = tx.now().await?;
    let version = works::settle(&mut tx, claim.work.id, claim.epoch, result).await?;
    let mut payload = serde_json::json!({
        "work": claim.work.id, "step": probe.step, "wave": probe.wave, "attempt": probe.attempt, "version": version,
    });
    if let (WorkResult::Probe { verdict, probes, reason }, Some(p)) = (result, payload.as_object_mut()) {
        p.insert("verdict".into(), serde_json::json!(verdict));
        p.insert("probes".into(), serde_json::json!(probes));
        p.insert("reason".into(), serde_json::json!(reason));
    }
    let draft = Draft { what: "work.settled", severity: Severity::Info, actor: SERVICE.into(), payload };
    events::append(&mut tx, work_event(&claim.work, draft, now)).await?;
    tx.commit().await
}

fn without_a_look(reason: String) -> WorkResult {
    WorkResult::Probe { verdict: Verdict::Inconclusive, probes: Vec::new(), reason: Some(reason) }
}

/// Looks again and again; what came of it.
async fn looks(
    shared: &Arc<Shared>,
    claim: &Claim,
    probe: &ProbeWork,
    abort: &CancellationToken,
) -> Result<WorkResult, Stop> {
    let work = &claim.work;
    let mut lease = Lease::second(Arc::clone(shared), work.id, claim.epoch);
    let view = loop {
        match shared.plans.get(&shared.ctx.store, work.deployment, &work.plan_digest).await {
            Ok(Ok(view)) => break view,
            Ok(Err(problem)) => return Ok(without_a_look(problem.to_string())),
            Err(error) => lease.after_failure(&error).await?,
        }
    };
    let Some(probes) = view.rollout(&probe.step).and_then(|r| r.probes.clone()) else {
        return Ok(without_a_look(format!("the plan has no probes for the step `{}`", probe.step)));
    };
    let mut standings = Standing::of_all(&probes);
    let every = Duration::from_secs(probes.every_s.max(1).into());
    loop {
        if abort.is_cancelled() {
            end(shared, claim, &view, probe).await?;
            return Ok(aborted(standings));
        }
        let started = Instant::now();
        let looked = look(shared, claim, &view, probe, &probes, abort).await?;
        if abort.is_cancelled() {
            return Ok(aborted(standings));
        }
        for (id, said) in looked {
            if let Some(s) = standings.iter_mut().find(|s| s.id() == id) {
                s.take(said);
            }
        }
        let left = (probe.until - chrono::Utc::now()).to_std().ok();
        let failed = standings.iter().any(Standing::has_failed);
        let (Some(left), false) = (left.filter(|l| !l.is_zero()), failed) else {
            return Ok(judge::result(standings));
        };
        // The clock on the wall may be set meanwhile, so the end is looked at again after each pause.
        let pause = every.saturating_sub(started.elapsed()).min(left).max(Duration::from_millis(10));
        tokio::select! {
            () = abort.cancelled() => {
                end(shared, claim, &view, probe).await?;
                return Ok(aborted(standings));
            }
            () = tokio::time::sleep(pause) => {}
        }
        if probe.until <= chrono::Utc::now() {
            return Ok(judge::result(standings));
        }
    }
}

fn aborted(standings: Vec<Standing>) -> WorkResult {
    let probes = standings.into_iter().map(Standing::said).collect();
    WorkResult::Probe {
        verdict: Verdict::Inconclusive,
        probes,
        reason: Some("stopped: the deployment was aborted".into()),
    }
}

/// One look at everything, by probe.
async fn look(
    shared: &Arc<Shared>,
    claim: &Claim,
    view: &Arc<PlanView>,
    probe: &ProbeWork,
    probes: &PlanProbes,
    abort: &CancellationToken,
) -> Result<BTreeMap<String, Looked>, Stop> {
    let mut questions: Vec<BoxFuture<'_, (String, Looked)>> = Vec::new();
    for p in &probes.central {
        questions.push(Box::pin(async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => (p.id.clone(), Looked::nothing("stopped: the deployment was aborted")),
                said = ask(shared, claim, probe, p) => (p.id.clone(), said),
            }
        }));
    }
    let central = join_all(questions);
    let on_hosts = async {
        if probes.on_hosts.is_empty() || probe.hosts.is_empty() {
            let nobody = || Looked::nothing("no host of the wave is well, so nothing could be asked there");
            return Ok(probes.on_hosts.iter().map(|s| (s.id.clone(), nobody())).collect());
        }
        let steps: u64 = probes.on_hosts.iter().map(|s| u64::from(s.timeout_s)).sum();
        let limit = Duration::from_secs(steps) + shared.ctx.settings.executor.offer_timeout_s.get() + MARGIN;
        let asked = side::run(shared, claim, view, side_of(probe, Heeds::Work));
        let tasks = match tokio::time::timeout(limit, asked).await {
            Ok(tasks) => tasks?,
            // A busy or locked host, for example: a look does not wait for it as a task of the wave would.
            Err(_) => end(shared, claim, view, probe).await?,
        };
        Ok::<BTreeMap<String, Looked>, Stop>(counted(probes, &probe.hosts, &tasks))
    };
    let (central, on_hosts) = tokio::join!(central, on_hosts);
    let mut all = on_hosts?;
    all.extend(central);
    Ok(all)
}

/// Ends what runs on hosts.
async fn end(shared: &Arc<Shared>, claim: &Claim, view: &Arc<PlanView>, probe: &ProbeWork) -> Result<Vec<Task>, Stop> {
    side::run(shared, claim, view, side_of(probe, Heeds::End)).await
}

fn side_of(probe: &ProbeWork, heeds: Heeds) -> Side {
    Side {
        step: probe.step.clone(),
        segment: segment::PROBES,
        hosts: probe.hosts.clone(),
        outputs: probe.outputs.clone(),
        heeds,
    }
}

/// How each probe came out on the hosts: the ids of the tasks' steps are those of the probes.
fn counted(probes: &PlanProbes, hosts: &[String], tasks: &[Task]) -> BTreeMap<String, Looked> {
    let by_host: BTreeMap<&str, &Task> = tasks.iter().map(|t| (t.host.as_str(), t)).collect();
    let mut out = BTreeMap::new();
    for (index, step) in probes.on_hosts.iter().enumerate() {
        let mut counts = Counts::default();
        for host in hosts {
            let t = by_host.get(host.as_str());
            let said = t.and_then(|t| t.steps.iter().find(|s| s.index as usize == index));
            let why = |text: Option<&str>| match text.filter(|t| !t.is_empty()) {
                Some(text) => format!("{host}: {text}"),
                None => host.clone(),
            };
            match said.map(|s| s.outcome) {
                Some(StepOutcome::Succeeded) => counts.ok += 1,
                Some(StepOutcome::Failed | StepOutcome::TimedOut) => {
                    counts.failed += 1;
                    counts.first_failed.get_or_insert(why(said.map(|s| s.message.as_str())));
                }
                // Not reached, or it has not said so.
                Some(StepOutcome::Cancelled | StepOutcome::Skipped) | None => {
                    counts.not_asked.get_or_insert(why(t.and_then(|t| t.reason.as_deref())));
                }
            }
            counts.total += 1;
        }
        out.insert(step.id.clone(), Looked::on_hosts(counts));
    }
    out
}

/// Asks a probe of the executor once, with what it refers to filled in and what comes back masked.
async fn ask(shared: &Shared, claim: &Claim, probe: &ProbeWork, p: &PlanProbe) -> Looked {
    let step = CentralWork { step: probe.step.clone(), attempt: probe.attempt, outputs: probe.outputs.clone() };
    let (with, masker) = match secrets::fill(shared, &claim.work, &step, &p.with).await {
        Ok(Ok(filled)) => filled,
        Ok(Err(reason)) => return Looked::nothing(reason),
        Err(error) => return Looked::nothing(crate::central::chain(&error)),
    };
    let within = with.get("within_s").and_then(serde_json::Value::as_u64).unwrap_or(u64::MAX);
    let timeout = Duration::from_secs(within.min(p.timeout_s.into()).max(1));
    let asked = async {
        match p.action.as_str() {
            "http.request" => http::once(shared, None, &with, timeout, 1, &masker).await,
            "prometheus.query" => prometheus::once(shared, &with, timeout).await,
            other => crate::central::failed(unknown_action(other)),
        }
    };
    let Ok(done) = tokio::time::timeout(timeout, asked).await else {
        return Looked::nothing(format!("it did not answer within {} s", timeout.as_secs()));
    };
    let failed = done.failed.map(|reason| masker.text(&reason));
    let output = windlass_domain::reference::clean(masker.value(&done.output));
    Looked::central(&p.action, output, failed)
}
