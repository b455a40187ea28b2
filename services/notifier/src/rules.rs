//! Which channels hear an event. Pure.

use windlass_domain::{
    catalog::{Channel, ChannelRule},
    event::{Aggregate, Event, Severity},
};

/// Raised when a notification is given up; the only event about notifications that is itself told, so that a dead
/// channel is heard of without a loop.
pub(crate) const DEAD: &str = "notification.dead";

/// The channels that hear this event.
pub(crate) fn hearers<'a>(event: &Event, channels: &'a [Channel]) -> Vec<&'a Channel> {
    let about_us = event.aggregate == Aggregate::Notification.as_str();
    if about_us && (event.what != DEAD || event.severity != Severity::Alert) {
        return Vec::new();
    }
    // The aggregate id of an event about notifications is the channel it is about: that one cannot carry it.
    channels
        .iter()
        .filter(|c| !(about_us && c.name == event.aggregate_id))
        .filter(|c| c.rules.iter().any(|r| fits(r, event)))
        .collect()
}

fn fits(rule: &ChannelRule, event: &Event) -> bool {
    event.severity >= rule.severity
        && names(&rule.projects, event.project.as_deref())
        && names(&rule.environments, event.environment.as_deref())
        && (rule.events.is_empty() || rule.events.iter().any(|p| is_event(p, &event.what)))
}

/// An empty list takes everything; a list takes only what carries one of its names.
fn names(list: &[String], name: Option<&str>) -> bool {
    list.is_empty() || name.is_some_and(|n| list.iter().any(|x| x == n))
}

fn is_event(pattern: &str, what: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => what.starts_with(prefix),
        None if pattern.ends_with('.') => what.starts_with(pattern),
        None => what == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_domain::{catalog::Provider, ids::EventId};

    fn event(what: &str, project: Option<&str>, environment: Option<&str>, severity: Severity) -> Event {
        Event {
            id: EventId(uuid::Uuid::nil()),
            aggregate: if what.starts_with("notification.") { "notification" } else { "deployment" }.into(),
            aggregate_id: "ops".into(),
            agg_seq: 1,
            what: what.into(),
            project: project.map(Into::into),
            environment: environment.map(Into::into),
            severity,
            actor: "person:ann".into(),
            at: chrono::DateTime::UNIX_EPOCH,
            payload: serde_json::Value::Null,
            trace: None,
        }
    }

    fn channel(name: &str, rule: serde_json::Value) -> Channel {
        Channel {
            name: name.into(),
            provider: Provider::Slack { url: "u".into() },
            rules: vec![serde_json::from_value(rule).expect("rule")],
            template: None,
        }
    }

    fn heard(rule: serde_json::Value, e: &Event) -> bool {
        !hearers(e, &[channel("other", rule)]).is_empty()
    }

    #[test]
    fn each_part_of_a_rule_narrows_it() {
        use serde_json::json;
        let e = event("deployment.failed", Some("shop"), Some("prod"), Severity::Alert);
        assert!(heard(json!({}), &e));
        assert!(heard(json!({"projects": ["x", "shop"], "environments": ["prod"], "severity": "alert"}), &e));
        assert!(!heard(json!({"projects": ["sho"]}), &e));
        assert!(!heard(json!({"environments": ["beta"]}), &e));
        for (pattern, yes) in [
            ("deployment.failed", true),
            ("deployment.", true),
            ("deployment.*", true),
            ("deploy*", true),
            ("*", true),
            ("deployment", false),
            ("deployment.fail", false),
            ("deployment.failed.", false),
            ("task.*", false),
        ] {
            assert_eq!(heard(json!({"events": [pattern]}), &e), yes, "{pattern}");
        }
        assert!(heard(json!({"events": ["task.", "deployment.failed"]}), &e), "any pattern will do");
        let global = event("agent.orphan", None, None, Severity::Alert);
        assert!(heard(json!({}), &global));
        assert!(!heard(json!({"projects": ["shop"]}), &global), "what has no project is not the project's");
    }

    #[test]
    fn quiet_events_are_heard_only_by_who_asks_for_them() {
        use serde_json::json;
        let e = event("task.settled", Some("shop"), None, Severity::Info);
        assert!(!heard(json!({}), &e));
        assert!(heard(json!({"severity": "info"}), &e));
        assert!(!heard(json!({"severity": "action"}), &event("deployment.succeeded", None, None, Severity::Notice)));
        assert!(
            hearers(&e, &[Channel { rules: vec![], ..channel("none", json!({})) }]).is_empty(),
            "no rule, no message"
        );
    }

    #[test]
    fn a_dead_letter_is_told_to_the_others_only_and_nothing_else_about_ourselves_is() {
        use serde_json::json;
        let all = [channel("ops", json!({"severity": "info"})), channel("mail", json!({"severity": "info"}))];
        let names = |e: &Event| hearers(e, &all).into_iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&event(DEAD, None, None, Severity::Alert)), ["mail"]);
        assert!(names(&event(DEAD, None, None, Severity::Info)).is_empty());
        assert!(names(&event("notification.failing", None, None, Severity::Alert)).is_empty());
    }
}
