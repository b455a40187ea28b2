//! Whether the control plane does its part: commands, times, works with their claims, results, events, clocks.

use super::{Cause, Finding, Phase, Repair, Snapshot, WorkNow, fact};
use crate::{
    deployment::{Bound, State, StepRunKind, StepState, WaitingOn, WaveState},
    task::TaskState,
};

pub(super) fn look(s: &Snapshot, found: &mut Vec<Finding>) {
    commands(s, found);
    due(s, found);
    idle(s, found);
    works(s, found);
    times(s, found);
    if !s.broker_up {
        let text = "NATS is not connected: everything waits for the next poll, and hosts cannot be reached";
        found.push(Finding::new(Cause::BrokerAway, text, vec![]));
    }
    for b in &s.backlogs {
        let Some(oldest) = b.oldest.filter(|at| s.age(*at) >= s.limits.events) else { continue };
        let text = format!("{} events wait for the {}", b.events, b.service);
        let evidence = vec![fact("the oldest event", Some(oldest))];
        found.push(match b.service {
            "relay" => Finding::new(Cause::EventsNotRelayed, text, evidence).with(Repair::Relay),
            _ => Finding::new(Cause::EventsNotTaken, text, evidence),
        });
    }
    if s.skew_s.abs() > s.limits.skew_s {
        let text = format!("the api's clock is {} s from the database's", s.skew_s);
        found.push(Finding::new(Cause::ClockSkew, text, vec![fact("the database's clock", Some(s.now))]));
    }
}

fn commands(s: &Snapshot, found: &mut Vec<Finding>) {
    let late: Vec<_> = s.commands.iter().filter(|c| s.is_late(c.at)).collect();
    if late.is_empty() {
        return;
    }
    let verbs: Vec<&str> = late.iter().map(|c| c.verb.as_str()).collect();
    let text = format!("{} command(s) are stored and not decided: {}", late.len(), super::names(&verbs));
    let evidence = late.iter().map(|c| fact(format!("{} by {} (command {})", c.verb, c.actor, c.id), Some(c.at)));
    let repair = Repair::RingScheduler { commands: late.iter().map(|c| c.id).collect() };
    found.push(Finding::new(Cause::CommandUndecided, text, evidence.collect()).with(repair));
}

fn due(s: &Snapshot, found: &mut Vec<Finding>) {
    if let Some(at) = s.wake_at.filter(|at| s.is_late(*at)) {
        let text = "its time has come and nobody looked at it";
        let evidence = vec![fact("it had to be looked at", Some(at)), fact("it was last changed", Some(s.updated_at))];
        found.push(Finding::new(Cause::NotLookedAt, text, evidence).with(Repair::Look));
    }
    let first = s.queue.first().is_some_and(|o| o.id == s.deployment.id);
    // A plan that cannot be made, or a mark, is why it is left alone.
    let stopped = s.plan.is_some() || s.mark.is_some();
    if s.deployment.state == State::Queued && first && s.lock.is_none() && !stopped && s.is_late(s.updated_at) {
        let text = "its environment is free, it is next, and nobody started it";
        let evidence = vec![fact("it was last changed", Some(s.updated_at))];
        found.push(Finding::new(Cause::NotLookedAt, text, evidence).with(Repair::Look));
    }
}

/// It runs, and there is neither a work nor a person nor a time that it could wait for.
fn idle(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    let by_executor = |w: &WaitingOn| matches!(w.bound(), Bound::Executor(_));
    if d.state.is_active() && s.works.is_empty() && s.is_late(s.updated_at) && d.waiting_on().iter().all(by_executor) {
        let text = "no work of it runs, and nothing else is in its way";
        let evidence = vec![fact("it was last changed", Some(s.updated_at))];
        found.push(Finding::new(Cause::NotLookedAt, text, evidence).with(Repair::Look));
    }
}

fn works(s: &Snapshot, found: &mut Vec<Finding>) {
    let pick = |f: &dyn Fn(&WorkNow) -> bool| -> Vec<&WorkNow> { s.works.iter().filter(|w| f(w)).collect() };
    let named = |works: &[&WorkNow]| super::names(&works.iter().map(|w| w.what.as_str()).collect::<Vec<_>>());
    let bells = |works: &[&WorkNow]| works.iter().map(|w| (w.pool.clone(), w.id)).collect::<Vec<_>>();

    let alive = |w: &WorkNow| s.pools.get(&w.pool).copied();
    let ready = |w: &WorkNow| w.phase == Phase::Ready && s.is_late(w.updated_at);
    for served in [false, true] {
        let all = pick(&|w| ready(w) && alive(w).is_some() == served);
        let Some(one) = all.first() else { continue };
        let mut evidence: Vec<_> =
            all.iter().map(|w| fact(format!("{} is ready for pool {}", w.what, w.pool), Some(w.updated_at))).collect();
        let (cause, text) = if served {
            (
                Cause::ExecutorsFull,
                format!("executors of pool {} are alive and have not taken {}", one.pool, named(&all)),
            )
        } else {
            evidence.push(fact(format!("no claim of pool {} is alive", one.pool), None));
            (Cause::NoExecutor, format!("no executor serves pool {}, which {} waits for", one.pool, named(&all)))
        };
        // When the claims of others end says nothing of since when this waits.
        evidence.extend(
            alive(one).map(|at| fact(format!("a claim of pool {} holds until {}", one.pool, super::moment(at)), None)),
        );
        found.push(Finding::new(cause, text, evidence).with(Repair::RingPool { works: bells(&all) }));
    }

    let dead = pick(&|w| w.phase == Phase::Running && w.expires_at.is_some_and(|at| at < s.now));
    if !dead.is_empty() {
        let evidence = dead.iter().map(|w| {
            let who = w.owner.as_deref().unwrap_or("nobody");
            fact(format!("the claim of {who} on {} ran out", w.what), w.expires_at)
        });
        let text = format!("the executor that had {} let its claim run out", named(&dead));
        let repair = Repair::ReleaseClaims { works: bells(&dead) };
        found.push(Finding::new(Cause::ExecutorDead, text, evidence.collect()).with(repair));
    }

    let late = pick(&|w| w.result_version > w.applied && s.is_late(w.updated_at));
    if !late.is_empty() {
        let evidence = late.iter().map(|w| {
            let text = format!("{} was settled (result {}, applied {})", w.what, w.result_version, w.applied);
            fact(text, Some(w.updated_at))
        });
        let text = format!("the result of {} was not taken", named(&late));
        found.push(Finding::new(Cause::ResultNotApplied, text, evidence.collect()).with(Repair::Look));
    }
}

/// Waits that end by themselves.
fn times(s: &Snapshot, found: &mut Vec<Finding>) {
    let d = &s.deployment;
    let mut until = |what: String, at| {
        let text = format!("it waits for {what} until {}", super::moment(at));
        let mut f = Finding::new(Cause::Timed, text, vec![fact(what, Some(at))]);
        f.since = None;
        found.push(f);
    };
    match d.state {
        State::Scheduled => {
            if let Some(at) = d.not_before.filter(|at| *at > s.now) {
                until("its start time".into(), at);
            }
        }
        State::Running | State::Paused => {
            for step in &d.steps {
                if let Some(at) = step.tries.next_at.filter(|at| *at > s.now && step.state == StepState::Waiting) {
                    until(format!("the next try of {}", step.id), at);
                }
                if let Some(at) = step.repeat.as_ref().and_then(|r| r.next_at).filter(|at| *at > s.now) {
                    until(format!("the next run of {}", step.id), at);
                }
                let StepRunKind::Rollout(r) = &step.kind else { continue };
                for (n, w) in (1u32..).zip(&r.waves) {
                    match w.state {
                        WaveState::Baking { until: at } if at > s.now => {
                            until(format!("the bake time of wave {n} of {}", step.id), at);
                        }
                        WaveState::Probing { until: at } if at > s.now => {
                            until(format!("the probes of wave {n} of {}", step.id), at);
                        }
                        WaveState::Retrying { at } if at > s.now => {
                            until(format!("the next try of wave {n} of {}", step.id), at);
                        }
                        _ => {}
                    }
                }
            }
        }
        _ => {}
    }
}

/// What it is doing: the answer when nothing is wrong.
pub(super) fn doing(s: &Snapshot) -> Finding {
    let d = &s.deployment;
    if d.state.is_terminal() {
        let why = d.end.as_ref().map(|e| format!(": {} ({})", e.reason, e.who)).unwrap_or_default();
        let text = format!("it has ended {}{why}", d.state.as_str().replace('_', " "));
        return Finding::new(Cause::Ended, text, vec![fact("it ended", d.ended_at)]);
    }
    let mut evidence = Vec::new();
    for w in s.works.iter().filter(|w| w.phase == Phase::Running && w.expires_at.is_none_or(|at| at >= s.now)) {
        let until = w.expires_at.map(|at| format!(", its claim holds until {}", super::moment(at))).unwrap_or_default();
        let who = w.owner.as_deref().unwrap_or("an executor");
        evidence.push(fact(format!("{who} carries {}{until}", w.what), Some(w.created_at)));
    }
    let granted: Vec<_> = s.tasks.iter().filter(|t| t.state == TaskState::Granted).collect();
    for t in &granted {
        evidence
            .push(fact(format!("{} runs {} (attempt {})", t.host, t.step, t.attempt), t.started_at.or(t.granted_at)));
    }
    let works: Vec<&str> = s.works.iter().filter(|w| w.phase == Phase::Running).map(|w| w.what.as_str()).collect();
    let text = match (works.is_empty(), granted.len(), d.state.is_active()) {
        (true, _, true) => "no work of it runs".to_owned(),
        (true, _, false) => "it was requested and nothing holds it".to_owned(),
        (false, 0, _) => format!("at work: {}", super::names(&works)),
        (false, n, _) => format!("at work: {}, on {n} host(s)", super::names(&works)),
    };
    Finding::new(Cause::Working, text, evidence)
}
