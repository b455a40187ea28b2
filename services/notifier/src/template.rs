//! From facts to the text of one channel: `MiniJinja`, escaped for the provider, bounded in time and size. Pure.

use crate::{
    markup::{Markup, one_line},
    message::Facts,
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, context, value::Serde};
use serde::{Deserialize, Serialize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use windlass_contracts::envelope::CloudEvent;
use windlass_domain::{
    catalog::{Channel, Provider},
    event::{Event, Severity},
    ids::EventId,
};

/// Instructions a template may run, and bytes it may write: far beyond any message, far below what hurts.
const FUEL: u64 = 200_000;
const MAX_OUTPUT: usize = 256 * 1024;
/// Bytes of the event that a signed webhook carries; a larger payload is left out and said to be.
const MAX_DATA: usize = 256 * 1024;

/// A rendered message as stored in its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// The markup of `text`.
    pub(crate) markup: String,
    /// Plain, one line.
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) severity: Severity,
    pub(crate) event: String,
    pub(crate) event_id: EventId,
    pub(crate) link: String,
    /// Why the channel's own template was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) template_error: Option<String>,
    /// The event itself, for signed webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<serde_json::Value>,
    /// W3C traceparent of what caused the event: the delivery belongs to its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
}

/// Renders an event for a channel. A template that fails never loses the message: the default text is used and says so.
pub(crate) fn render(event: &Event, facts: &Facts, channel: &Channel) -> Message {
    let markup = Markup::of(&channel.provider);
    let (text, template_error) = match &channel.template {
        None => (default_text(markup, facts), None),
        Some(template) => match guarded(markup, template, facts) {
            Ok(text) if text.trim().is_empty() => fallback(markup, facts, &channel.name, "it gives an empty text"),
            Ok(text) => (text, None),
            Err(why) => fallback(markup, facts, &channel.name, &why),
        },
    };
    Message {
        markup: markup.as_str().into(),
        title: facts.title.clone(),
        text: markup.fit(&text, &facts.link),
        severity: facts.severity,
        event: facts.event.clone(),
        event_id: event.id,
        link: facts.link.clone(),
        template_error,
        data: matches!(channel.provider, Provider::Webhook { .. }).then(|| data(event)),
        trace: event.trace.clone(),
    }
}

fn data(event: &Event) -> serde_json::Value {
    let whole = serde_json::to_value(CloudEvent::of(event)).unwrap_or_default();
    if whole.to_string().len() <= MAX_DATA {
        return whole;
    }
    let small = Event { payload: serde_json::json!({ "left_out": "the payload is too large" }), ..event.clone() };
    serde_json::to_value(CloudEvent::of(&small)).unwrap_or_default()
}

fn fallback(markup: Markup, facts: &Facts, channel: &str, why: &str) -> (String, Option<String>) {
    let error = one_line(&format!("the template of channel `{channel}` cannot be used: {why}"), 500);
    let text = format!("{}\n\n{}", default_text(markup, facts), markup.escape(&format!("⚠ {error}")));
    (text, Some(error))
}

/// A panic inside the template engine is one more way for a template to fail.
fn guarded(markup: Markup, template: &str, facts: &Facts) -> Result<String, String> {
    catch_unwind(AssertUnwindSafe(|| evaluate(markup, template, facts)))
        .unwrap_or_else(|_| Err("the template engine failed on it".into()))
}

fn default_text(markup: Markup, facts: &Facts) -> String {
    // The defaults are constants and tested; should one fail all the same, the bare facts go out.
    evaluate(markup, default_template(markup), facts).unwrap_or_else(|why| {
        tracing::error!(%why, markup = markup.as_str(), "a default template failed");
        markup.escape(&format!("{}\n{}", facts.title, facts.link))
    })
}

fn evaluate(markup: Markup, template: &str, facts: &Facts) -> Result<String, String> {
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(64);
    env.set_auto_escape_callback(move |_| AutoEscape::Custom(markup.as_str().into()));
    // What the template's author wrote is markup; what comes out of an event is text.
    env.set_formatter(move |out, _state: &mut State<'_, '_>, value| {
        if value.is_undefined() || value.is_none() {
            return Ok(());
        }
        let text = value.to_string();
        let text = if value.is_safe() { text } else { markup.escape(&text) };
        out.write_str(&text).map_err(Error::from)
    });
    // Ways round the escape.
    env.remove_filter("safe");
    env.add_filter("escape", |v: Value| v);
    env.add_filter("e", |v: Value| v);
    env.add_filter("tojson", |v: Value| -> Result<String, Error> {
        serde_json::to_string(&Serde(&v).0)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(e))
    });
    let t = env.template_from_named_str("template", template).map_err(|e| explain(&e))?;
    let mut out = Bounded(Vec::new());
    t.render_captured_to(variables(facts), &mut out).map_err(|e| explain(&e))?;
    String::from_utf8(out.0).map_err(|_| "it gives bytes that are no text".into())
}

fn explain(e: &Error) -> String {
    let place = e.line().map(|l| format!(" (line {l})")).unwrap_or_default();
    format!("{}{}{place}", e.kind(), e.detail().map(|d| format!(": {d}")).unwrap_or_default())
}

fn variables(f: &Facts) -> Value {
    let facts: Vec<Value> = f.list().into_iter().map(|(label, value)| context! { label, value }).collect();
    context! {
        title => f.title.clone(),
        summary => f.summary.clone(),
        mark => mark(f.severity),
        severity => f.severity.as_str(),
        event => f.event.clone(),
        event_id => f.event_id.clone(),
        at => f.at.clone(),
        project => f.project.clone(),
        environment => f.environment.clone(),
        version => f.version.clone(),
        who => f.who.clone(),
        host => f.host.clone(),
        waiting_on => f.waiting_on.clone(),
        todo => f.todo.clone(),
        // Made of our own address and an id; escaping would break it.
        link => Value::from_safe_string(f.link.clone()),
        facts,
        payload => Value::from(Serde(&f.payload)),
    }
}

/// Louder for what a person must act on.
fn mark(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "⚪",
        Severity::Notice => "🟢",
        Severity::Action => "🟡 ACTION NEEDED:",
        Severity::Alert => "🔴 ALERT:",
    }
}

fn default_template(markup: Markup) -> &'static str {
    match markup {
        Markup::Slack => {
            "*{{ mark }} {{ title }}*\n\
             {% if summary %}{{ summary }}\n{% endif %}\
             {% for f in facts %}*{{ f.label }}:* {{ f.value }}\n{% endfor %}\
             {% if todo %}➡ {{ todo }}\n{% endif %}\
             <{{ link }}|Open in Windlass>"
        }
        // The card's header shows the title; an empty line ends a paragraph.
        Markup::Feishu | Markup::Teams => {
            "{{ mark }}\n\n\
             {% if summary %}{{ summary }}\n\n{% endif %}\
             {% for f in facts %}**{{ f.label }}:** {{ f.value }}\n\n{% endfor %}\
             {% if todo %}➡ {{ todo }}\n\n{% endif %}\
             [Open in Windlass]({{ link }})"
        }
        Markup::Dingtalk => {
            "### {{ mark }} {{ title }}\n\n\
             {% if summary %}{{ summary }}\n\n{% endif %}\
             {% for f in facts %}- **{{ f.label }}:** {{ f.value }}\n{% endfor %}\n\
             {% if todo %}➡ {{ todo }}\n\n{% endif %}\
             [Open in Windlass]({{ link }})"
        }
        Markup::Wecom => {
            "**{{ mark }} {{ title }}**\n\
             {% if summary %}{{ summary }}\n{% endif %}\
             {% for f in facts %}> {{ f.label }}: {{ f.value }}\n{% endfor %}\n\
             {% if todo %}➡ {{ todo }}\n{% endif %}\
             [Open in Windlass]({{ link }})"
        }
        Markup::Plain => {
            "{{ mark }} {{ title }}\n\n\
             {% if summary %}{{ summary }}\n\n{% endif %}\
             {% for f in facts %}{{ f.label }}: {{ f.value }}\n{% endfor %}\n\
             {% if todo %}What to do: {{ todo }}\n\n{% endif %}\
             {{ link }}\n"
        }
    }
}

/// Refuses to grow past [`MAX_OUTPUT`].
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + b.len() > MAX_OUTPUT {
            return Err(std::io::Error::other("the text is too long"));
        }
        self.0.extend_from_slice(b);
        Ok(b.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod injection;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Known;
    use serde_json::json;
    use windlass_domain::catalog::Provider;

    fn event(payload: serde_json::Value) -> Event {
        Event {
            id: EventId(uuid::Uuid::nil()),
            aggregate: "deployment".into(),
            aggregate_id: "0193".into(),
            agg_seq: 1,
            what: "deployment.failed".into(),
            project: Some("shop".into()),
            environment: Some("prod".into()),
            severity: Severity::Alert,
            actor: "person:ann".into(),
            at: chrono::DateTime::UNIX_EPOCH,
            payload,
            trace: None,
        }
    }

    fn channel(provider: serde_json::Value, template: Option<&str>) -> Channel {
        let provider: Provider = serde_json::from_value(provider).expect("provider");
        Channel { name: "ops".into(), provider, rules: vec![], template: template.map(Into::into) }
    }

    fn with(template: &str, payload: serde_json::Value) -> Message {
        let e = event(payload);
        let c = channel(json!({"type": "slack", "url": "u"}), Some(template));
        render(&e, &Facts::of(&e, &Known { version: Some("1.2.0".into()), ..Known::default() }, "https://w"), &c)
    }

    #[test]
    fn a_template_sees_the_facts_and_its_own_markup_stands() {
        let m = with(
            "<!here> *{{ project }}* {{ version }} {{ payload.list | join('+') }} {{ nothing }}{{ link }}",
            json!({"list": ["a", "b"]}),
        );
        assert_eq!(m.text, "<!here> *shop* 1.2.0 a+b https://w/#/deployments/0193");
        assert_eq!(m.template_error, None);
    }

    #[test]
    fn no_value_gets_round_the_escape() {
        let payload = json!({"reason": "<!channel>", "l": ["<!channel>"]});
        for t in [
            "{{ summary }}",
            "{{ summary | upper | lower }}",
            "{{ summary | e }}",
            "{{ summary | escape }}",
            "{{ payload | tojson }}",
            "{{ payload.l | tojson(indent=2) }}x",
            "{{ payload.l | join('') }}",
            "{{ payload.l }}",
            "{{ '' ~ summary }}",
            "{% set x %}{{ summary }}{% endset %}{{ x }}",
            "{% macro m(v) %}{{ v }}{% endmacro %}{{ m(summary) }}",
            "{% filter lower %}{{ summary }}{% endfilter %}",
            "{% autoescape false %}{{ summary }}{% endautoescape %}",
            "{% autoescape 'html' %}{{ summary }}{% endautoescape %}",
            "{{ summary | safe }}",
            "{{ summary | replace('x', '') }}",
            "{{ summary | format }}",
        ] {
            let m = with(t, payload.clone());
            assert!(!m.text.contains("<!channel>"), "{t}: {}", m.text);
            assert!(m.text.contains("channel"), "{t}: {}", m.text);
        }
    }

    #[test]
    fn a_template_that_fails_still_gives_the_default_text_and_says_why() {
        for (t, why) in [
            ("{{ unclosed", "syntax error"),
            ("{{ summary.a.b.c }}", "undefined"),
            ("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}", "fuel"),
            ("{% for a in range(9000) %}0123456789012345678901234567890123456789{% endfor %}", "write"),
            ("{{ 'x' * 100000000000 }}", "too large"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
            ("{% include 'etc/passwd' %}", "template not found"),
            ("{{ nope() }}", "unknown function"),
            ("   ", "empty text"),
        ] {
            let m = with(t, json!({"reason": "boom"}));
            let error = m.template_error.clone().unwrap_or_default();
            assert!(error.contains(why) && error.contains("`ops`"), "{t}: {error}");
            assert!(
                m.text.contains("deployment FAILED") && m.text.contains("boom") && m.text.contains("⚠"),
                "{t}: {}",
                m.text
            );
        }
    }

    #[test]
    fn only_webhooks_carry_the_event_and_never_a_giant_one() {
        let e = event(json!({"a": "x".repeat(300_000)}));
        let facts = Facts::of(&e, &Known::default(), "https://w");
        assert_eq!(render(&e, &facts, &channel(json!({"type": "slack", "url": "u"}), None)).data, None);
        let data =
            render(&e, &facts, &channel(json!({"type": "webhook", "url": "u", "sign": "s"}), None)).data.expect("data");
        assert_eq!(data["data"]["payload"]["left_out"], "the payload is too large");
        assert_eq!(data["data"]["actor"], "person:ann");
    }
}
