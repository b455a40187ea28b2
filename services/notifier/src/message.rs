//! What a message says: the facts of an event, gathered from it and put into plain words. Pure.

use crate::markup::{one_line, shorten};
use serde_json::{Map, Value};
use windlass_domain::event::{Aggregate, Event, Severity};

/// Longest sentence taken from an event, and longest fact, in characters.
const SUMMARY: usize = 1_500;
const FACT: usize = 300;

/// All that a template can use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    /// What happened, one line, with where.
    pub(crate) title: String,
    /// The event's own words: reason, detail, or the text of a `notify` step.
    pub(crate) summary: Option<String>,
    pub(crate) severity: Severity,
    pub(crate) event: String,
    pub(crate) event_id: String,
    /// UTC, to the second.
    pub(crate) at: String,
    pub(crate) project: Option<String>,
    pub(crate) environment: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) who: String,
    pub(crate) host: Option<String>,
    pub(crate) waiting_on: Option<String>,
    /// What a reader should do now.
    pub(crate) todo: Option<String>,
    /// The page of the console that shows it.
    pub(crate) link: String,
    pub(crate) payload: Value,
}

/// What the caller knows of the event's deployment beyond the event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) version: Option<String>,
    pub(crate) waiting_on: Option<String>,
}

impl Facts {
    /// What the event itself says goes before what is `known`.
    pub(crate) fn of(e: &Event, known: &Known, public_url: &str) -> Facts {
        let none = Map::new();
        let p = e.payload.as_object().unwrap_or(&none);
        let said = |keys: &[&str]| keys.iter().find_map(|k| p.get(*k)).and_then(words).map(|s| one_line(&s, FACT));
        let base = public_url.trim_end_matches('/');
        let link = if e.aggregate == Aggregate::Deployment.as_str() {
            // The console's own routes stand behind the `#`.
            format!("{base}/#/deployments/{}", url_safe(&e.aggregate_id))
        } else {
            format!("{base}/")
        };
        let host = said(&["host", "hosts", "failed_hosts", "unknown_hosts"]);
        let what = match (e.what.as_str(), said(&["outcome"]), &host) {
            ("task.settled", Some(outcome), Some(host)) => format!("host {host}: {}", outcome.replace('_', " ")),
            _ => said(&["title"]).unwrap_or_else(|| headline(&e.what)),
        };
        let place = match (&e.project, &e.environment) {
            (Some(p), Some(env)) => format!("{p}/{env}: "),
            (Some(p), None) => format!("{p}: "),
            _ => String::new(),
        };
        let summary = ["message", "text", "summary", "reason", "detail", "error", "note", "end"]
            .iter()
            .find_map(|k| p.get(*k))
            .and_then(words)
            .map(|s| shorten(s.trim(), SUMMARY))
            .filter(|s| !s.is_empty());
        Facts {
            title: one_line(&format!("{place}{what}"), 200),
            summary,
            severity: e.severity,
            event: e.what.clone(),
            event_id: e.id.to_string(),
            at: e.at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            project: e.project.clone(),
            environment: e.environment.clone(),
            version: said(&["version"]).or_else(|| known.version.as_deref().map(|v| one_line(v, FACT))),
            who: said(&["by"]).unwrap_or_else(|| who(&e.actor)),
            host,
            waiting_on: said(&["waiting_on"]).or_else(|| known.waiting_on.as_deref().map(|w| one_line(w, FACT))),
            todo: said(&["remedy"]).or_else(|| todo(&e.what, e.severity).map(Into::into)),
            link,
            payload: e.payload.clone(),
        }
    }

    /// Label and value of every fact there is, in the order a reader wants them.
    pub(crate) fn list(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("Project", self.project.as_deref()),
            ("Environment", self.environment.as_deref()),
            ("Version", self.version.as_deref()),
            ("Host", self.host.as_deref()),
            ("By", Some(self.who.as_str())),
            ("Waits for", self.waiting_on.as_deref()),
            ("At", Some(self.at.as_str())),
        ];
        all.into_iter().filter_map(|(label, value)| Some((label, value?))).collect()
    }
}

/// A JSON value as words: names in a list are joined, a structured thing shows its own text or kind.
fn words(v: &Value) -> Option<String> {
    match v {
        Value::Null => None,
        Value::String(s) if s.trim().is_empty() => None,
        Value::String(s) => Some(s.clone()),
        Value::Bool(_) | Value::Number(_) => Some(v.to_string()),
        Value::Array(items) => {
            let all: Vec<String> = items.iter().take(20).filter_map(words).collect();
            let more = if items.len() > 20 { format!(" and {} more", items.len() - 20) } else { String::new() };
            (!all.is_empty()).then(|| format!("{}{more}", all.join(", ")))
        }
        Value::Object(o) => {
            let known =
                ["text", "message", "detail", "reason", "name", "host"].iter().find_map(|k| o.get(*k)).and_then(words);
            known.or_else(|| {
                let kind = ["kind", "type", "on"].iter().find_map(|k| o.get(*k)).and_then(Value::as_str)?;
                Some(kind.replace('_', " "))
            })
        }
    }
}

fn who(actor: &str) -> String {
    one_line(actor.strip_prefix("person:").unwrap_or(actor), FACT)
}

fn url_safe(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// `deployment.awaiting_approval` becomes `Deployment: awaiting approval`; the common ones read better than that.
fn headline(what: &str) -> String {
    let known = match what {
        "deployment.requested" => "deployment requested",
        "deployment.awaiting_approval" => "approval wanted",
        "deployment.awaiting_confirmation" => "confirmation of a wave wanted",
        "deployment.needs_intervention" => "deployment FAILED on hosts and needs a person",
        "deployment.plan_changed" => "the plan changed and needs a decision",
        "deployment.refused" => "deployment could not be planned",
        "deployment.rollback_impossible" => "ROLLBACK IMPOSSIBLE",
        "deployment.overridden" => "an unknown host was overridden by a person",
        "deployment.approved" => "deployment approved",
        "deployment.rejected" => "deployment rejected",
        "deployment.started" => "deployment started",
        "deployment.succeeded" => "deployment succeeded",
        "deployment.failed" => "deployment FAILED",
        "deployment.paused" => "deployment paused",
        "deployment.aborting" => "deployment is being aborted",
        "deployment.aborted" => "deployment aborted",
        "deployment.rolled_back" => "deployment rolled back",
        "deployment.expired" => "deployment expired",
        "deployment.cancelled" => "deployment cancelled",
        "agent.orphan" => "a host runs a task nobody knows",
        "audit.restored" => "the database was RESTORED: history went back",
        "notify.requested" => "message from the flow",
        "notification.dead" => "a notification could not be delivered",
        _ => "",
    };
    if !known.is_empty() {
        return known.into();
    }
    let text = what.replacen('.', ": ", 1).replace(['_', '.'], " ");
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or(text)
}

fn todo(what: &str, severity: Severity) -> Option<&'static str> {
    match (what, severity) {
        ("deployment.awaiting_approval" | "deployment.plan_changed", _) => Some(
            "Review the plan, then approve, reject or accept it in the console or with `windlass approve` or `accept`.",
        ),
        ("deployment.awaiting_confirmation", _) => Some("Look at the first hosts, then confirm or abort."),
        ("deployment.paused" | "deployment.needs_intervention", _) => {
            Some("Decide how it goes on: retry, skip, ignore, exclude the host, abort or roll back.")
        }
        ("deployment.failed", _) => Some("Read the log of the failed host, then retry or roll back."),
        ("task.settled", Severity::Action) => {
            Some("Look at the host. The lock is held until the agent reports or a person overrides the task.")
        }
        ("audit.restored", _) => Some(
            "Releases that ran are paused and automation is held everywhere: look at the hosts, then resume or abort, and release the holds.",
        ),
        ("agent.orphan", _) => Some("Look at the host: it runs what this installation did not ask for."),
        (crate::rules::DEAD, _) => {
            Some("Repair the channel; `windlass notifications list --state dead` names what to `retry`.")
        }
        (_, Severity::Alert) => Some("Open the link and decide: retry, skip, abort or roll back."),
        (_, Severity::Action) => Some("A person must act: open the link."),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use windlass_domain::ids::EventId;

    fn event(what: &str, payload: Value) -> Event {
        Event {
            id: EventId(uuid::Uuid::nil()),
            aggregate: "deployment".into(),
            aggregate_id: "0193".into(),
            agg_seq: 1,
            what: what.into(),
            project: Some("shop".into()),
            environment: Some("prod".into()),
            severity: Severity::Alert,
            actor: "person:ann".into(),
            at: chrono::DateTime::UNIX_EPOCH,
            payload,
            trace: None,
        }
    }

    fn known() -> Known {
        Known { version: Some("1.2.0".into()), waiting_on: Some("approval 0 of 1".into()) }
    }

    #[test]
    fn what_is_known_fills_in_what_the_event_does_not_say() {
        let lost = json!({"host": "web1", "outcome": "unknown", "by": "service:executor"});
        let f = Facts::of(&event("task.settled", lost), &known(), "");
        assert_eq!(f.title, "shop/prod: host web1: unknown");
        assert_eq!((f.waiting_on.as_deref(), f.who.as_str()), (Some("approval 0 of 1"), "service:executor"));
        let f = Facts::of(
            &event("deployment.aborted", json!({"end": {"who": "ann", "reason": "wrong build"}})),
            &known(),
            "",
        );
        assert_eq!(f.summary.as_deref(), Some("wrong build"));
    }

    #[test]
    fn the_facts_a_reader_needs_are_found() {
        let e = event(
            "deployment.failed",
            json!({"reason": "2 hosts failed", "failed_hosts": ["web1", "web2"],
            "waiting_on": {"kind": "a_person"}}),
        );
        let f = Facts::of(&e, &known(), "https://w.example/");
        assert_eq!(f.title, "shop/prod: deployment FAILED");
        assert_eq!(f.summary.as_deref(), Some("2 hosts failed"));
        assert_eq!(f.link, "https://w.example/#/deployments/0193");
        let list = f.list();
        for want in [("Version", "1.2.0"), ("Host", "web1, web2"), ("By", "ann"), ("Waits for", "a person")] {
            assert!(list.contains(&want), "{want:?} in {list:?}");
        }
        assert!(f.todo.is_some());
        assert_eq!(Facts::of(&event("x.y_z", json!({"version": "9"})), &known(), "").version.as_deref(), Some("9"));
    }

    #[test]
    fn any_payload_and_any_name_give_a_message() {
        for payload in [json!(null), json!(3), json!([1]), json!({"reason": {}, "version": [], "host": null})] {
            let f = Facts::of(&event("work.host_lost.again", payload), &Known::default(), "http://w");
            assert_eq!(f.title, "shop/prod: Work: host lost again");
        }
        let long = Facts::of(
            &event("a", json!({"title": "t\nBcc: x".repeat(100), "message": "m".repeat(9_999)})),
            &Known::default(),
            "",
        );
        assert!(long.title.chars().count() <= 200 && !long.title.contains('\n'));
        assert!(long.summary.expect("summary").chars().count() <= SUMMARY);
    }
}
