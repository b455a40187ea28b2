//! The actions a flow can use: where each runs, what it takes, and what the planner adds so that the step is complete for
//! whoever carries it out.
//!
//! In a resolved step every parameter has its final type: a duration `within` becomes `within_s` in seconds, an absent
//! parameter with a default has that default, an absent one without is left out. `added` lists what comes on top.

use serde_json::{Value, json};

/// Where an action runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// In the executor, once.
    Central,
    /// On each host of a rollout.
    Host,
    Both,
}

/// An action with its documentation.
#[derive(Debug)]
pub struct Action {
    pub name: &'static str,
    pub site: Site,
    pub doc: &'static str,
    pub parameters: &'static [Parameter],
    /// Keys the planner adds to `with`, and what they hold.
    pub added: &'static [(&'static str, &'static str)],
    /// Seconds, when the step names none.
    pub timeout_s: u32,
}

#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    pub default: Preset,
    pub doc: &'static str,
    /// May hold `secrets.<name>`: it is filled in when the step runs and never seen in a process list, URL or log.
    pub secret: bool,
    /// May hold outputs of earlier steps. What a step runs, and as whom, is fixed when the plan is approved.
    pub late: bool,
}

/// A default value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    None,
    Text(&'static str),
    Number(i64),
    Seconds(u64),
    EmptyList,
    EmptyMap,
}

/// What a parameter may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that holds no expressions: values reach a script by its arguments and environment, never by being written
    /// into the script, where they would be code.
    Script,
    Integer {
        min: i64,
        max: i64,
    },
    /// `30s`; resolved to `<name>_s`.
    Duration,
    OneOf(&'static [&'static str]),
    TextList,
    TextMap,
    /// Of HTTP answers: one, a range, or a list of both.
    Statuses,
    /// `http://` or `https://`.
    Url,
    /// Octal text such as `"0644"`.
    Mode,
    /// Absolute, or relative to the root's `shared/`; no `..`.
    Path,
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Parameter {
    Parameter { name, kind, required: true, default: Preset::None, doc, secret: false, late: late(kind) }
}
const fn optional(name: &'static str, kind: Kind, default: Preset, doc: &'static str) -> Parameter {
    Parameter { name, kind, required: false, default, doc, secret: false, late: late(kind) }
}
const fn late(kind: Kind) -> bool {
    matches!(kind, Kind::Text | Kind::TextList | Kind::TextMap | Kind::Url)
}
/// That may hold secrets.
const fn secret(p: Parameter) -> Parameter {
    Parameter { secret: true, ..p }
}
/// Whose value is known when the plan is made.
const fn planned(p: Parameter) -> Parameter {
    Parameter { late: false, ..p }
}

const SCRIPT_ENV: (&str, &str) = (
    "env",
    "the step's own map and WINDLASS_PROJECT, WINDLASS_ENVIRONMENT, WINDLASS_VERSION, WINDLASS_HOST and \
     WINDLASS_RELEASE_DIR (a name under <root>/releases); the agent adds TASK_KEY",
);
const ARTIFACT: [(&str, &str); 4] = [
    ("url", "where the package is"),
    ("digest", "`sha256:<hex>` it must have"),
    ("size", "bytes it must have; null when not known"),
    ("dir", "directory name under <root>/releases"),
];

/// Every action there is.
pub const ACTIONS: &[Action] = &[
    Action {
        name: "artifact.fetch",
        site: Site::Host,
        doc: "Downloads the release's package, checks size and digest, and unpacks it into its release directory.",
        parameters: &[],
        added: &ARTIFACT,
        timeout_s: 600,
    },
    Action {
        name: "artifact.verify",
        site: Site::Both,
        doc: "Checks the package by digest and size, and its age; on a host it checks what was unpacked there.",
        parameters: &[optional(
            "max_age",
            Kind::Duration,
            Preset::None,
            "Refuse packages that were built longer ago; resolved as `max_age_s`.",
        )],
        added: &[ARTIFACT[0], ARTIFACT[1], ARTIFACT[2], ARTIFACT[3], ("built_at", "when it was built, RFC 3339")],
        timeout_s: 300,
    },
    Action {
        name: "release.switch",
        site: Site::Host,
        doc: "Points <root>/current at a release directory by an atomic rename, and removes old releases.",
        parameters: &[
            optional(
                "to",
                Kind::OneOf(&["artifact", "last_known_good"]),
                Preset::Text("artifact"),
                "Which release; resolved to `dir` and then left out.",
            ),
            optional("keep", Kind::Integer { min: 1, max: 100 }, Preset::Number(5), "How many releases stay on disk."),
        ],
        added: &[("dir", "directory name under <root>/releases")],
        timeout_s: 60,
    },
    Action {
        name: "service.restart",
        site: Site::Host,
        doc: "Restarts a systemd unit, or runs a command where there is no systemd. Takes one of the two.",
        parameters: &[
            planned(optional("unit", Kind::Text, Preset::None, "Name of the systemd unit.")),
            planned(optional("command", Kind::TextList, Preset::None, "Program and arguments; no shell reads them.")),
            planned(optional("account", Kind::Text, Preset::None, "Account of the project that runs it.")),
        ],
        added: &[SCRIPT_ENV],
        timeout_s: 120,
    },
    Action {
        name: "script",
        site: Site::Host,
        doc: "Runs a script with an interpreter. Values reach it by `args` and `env`.",
        parameters: &[
            required("run", Kind::Script, "The script. It holds no expressions."),
            planned(optional(
                "interpreter",
                Kind::Text,
                Preset::Text("bash"),
                "Program that reads it: a name on PATH or a path.",
            )),
            optional("args", Kind::TextList, Preset::EmptyList, "Arguments of the script."),
            secret(optional("env", Kind::TextMap, Preset::EmptyMap, "Environment of the script.")),
            secret(optional("stdin", Kind::Text, Preset::None, "What the script reads on its standard input.")),
            planned(optional(
                "user",
                Kind::Text,
                Preset::None,
                "System user that runs it, if the host's policy allows it.",
            )),
            planned(optional("account", Kind::Text, Preset::None, "Account of the project that runs it.")),
        ],
        added: &[SCRIPT_ENV],
        timeout_s: 600,
    },
    Action {
        name: "file.put",
        site: Site::Host,
        doc: "Writes a file by write, fsync and rename.",
        parameters: &[
            required("path", Kind::Path, "Absolute, or relative to <root>/shared."),
            secret(required("content", Kind::Text, "What the file holds.")),
            optional(
                "encoding",
                Kind::OneOf(&["text", "base64"]),
                Preset::None,
                "Whether `content` is the text itself (when absent) or base64 of the bytes.",
            ),
            optional("mode", Kind::Mode, Preset::Text("0644"), "Octal permissions, as text."),
        ],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "http.check",
        site: Site::Host,
        doc: "Asks a URL from the host until it answers as expected or the time is up.",
        parameters: &[
            required("url", Kind::Url, "What to ask."),
            optional("status", Kind::Integer { min: 100, max: 599 }, Preset::Number(200), "Status it must answer."),
            optional("expect_body", Kind::Text, Preset::None, "Text the body must contain."),
            optional("within", Kind::Duration, Preset::Seconds(30), "How long to try; resolved as `within_s`."),
            optional("interval", Kind::Duration, Preset::Seconds(1), "Time between tries; resolved as `interval_s`."),
        ],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "lb.drain",
        site: Site::Host,
        doc: "Takes the host off the environment's load balancers and waits until its connections have gone; first in a rollout.",
        parameters: &[planned(optional("lb", Kind::Text, Preset::None, "Name of one load balancer; all when absent."))],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "lb.attach",
        site: Site::Host,
        doc: "Brings the host back to them, however its other steps ended; last in a rollout.",
        parameters: &[planned(optional("lb", Kind::Text, Preset::None, "As at `lb.drain`."))],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "prometheus.query",
        site: Site::Central,
        doc: "Asks Prometheus an instant query; gives `value` (a number, null unless there is exactly one sample) and `series`.",
        parameters: &[
            required("url", Kind::Url, "Where Prometheus is, such as `http://prometheus:9090`."),
            required("query", Kind::Text, "PromQL."),
            secret(optional("headers", Kind::TextMap, Preset::EmptyMap, "Headers to send.")),
            optional("within", Kind::Duration, Preset::Seconds(30), "How long to try; resolved as `within_s`."),
        ],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "http.request",
        site: Site::Central,
        doc: "Sends a request from the executor and checks the answer, trying again until the time is up.",
        parameters: &[
            required("url", Kind::Url, "What to ask."),
            optional(
                "method",
                Kind::OneOf(&["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
                Preset::Text("GET"),
                "HTTP method.",
            ),
            secret(optional("headers", Kind::TextMap, Preset::EmptyMap, "Headers to send.")),
            secret(optional("body", Kind::Text, Preset::None, "Body to send.")),
            optional(
                "expect_status",
                Kind::Statuses,
                Preset::Number(200),
                "Status it must answer: one, a range such as `200-299`, or a list of them.",
            ),
            optional("expect_body", Kind::Text, Preset::None, "Text the body must contain."),
            optional("within", Kind::Duration, Preset::Seconds(30), "How long to try; resolved as `within_s`."),
        ],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "ansible.playbook",
        site: Site::Central,
        doc: "Runs an Ansible playbook from the executor against the deployment's hosts; their labels are groups (`role_web`).",
        parameters: &[
            required(
                "playbook",
                Kind::Script,
                "The playbook. It holds no expressions; Ansible's own `{{ }}` reads `vars`.",
            ),
            secret(optional(
                "vars",
                Kind::TextMap,
                Preset::EmptyMap,
                "Variables, as texts that Ansible takes as they are. `windlass_version` and others come on top.",
            )),
            optional(
                "connection",
                Kind::OneOf(&["ssh", "local"]),
                Preset::Text("ssh"),
                "By `ssh` as the catalog's hosts say, or on the executor's own machine.",
            ),
            optional("become", Kind::OneOf(&["yes", "no"]), Preset::Text("no"), "Run tasks as another user."),
            planned(optional(
                "become_user",
                Kind::Text,
                Preset::None,
                "The user that `become` becomes; root when absent.",
            )),
            planned(optional("tags", Kind::TextList, Preset::EmptyList, "Only tasks with one of these tags.")),
            optional(
                "check",
                Kind::OneOf(&["yes", "no"]),
                Preset::Text("no"),
                "Change nothing, only say what would change.",
            ),
        ],
        added: &[],
        timeout_s: 3600,
    },
    Action {
        name: "notify",
        site: Site::Central,
        doc: "Sends a message to the channels whose rules fit.",
        parameters: &[
            required("message", Kind::Text, "What to say."),
            optional(
                "severity",
                Kind::OneOf(&["info", "notice", "action", "alert"]),
                Preset::Text("notice"),
                "How loud it is.",
            ),
        ],
        added: &[],
        timeout_s: 60,
    },
    Action {
        name: "wait",
        site: Site::Central,
        doc: "Waits.",
        parameters: &[required("for", Kind::Duration, "How long; resolved as `for_s`.")],
        added: &[],
        timeout_s: 60,
    },
];

/// The action of that name.
pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|a| a.name == name)
}

impl Action {
    /// The parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }
    /// May it stand among a rollout's steps?
    pub fn on_host(&self) -> bool {
        self.site != Site::Central
    }
    /// May it stand outside rollouts?
    pub fn central(&self) -> bool {
        self.site != Site::Host
    }
}

impl Parameter {
    /// The key it has in a resolved step.
    pub fn resolved_name(&self) -> String {
        if self.kind == Kind::Duration { format!("{}_s", self.name) } else { self.name.into() }
    }
    /// The resolved default.
    pub fn default_value(&self) -> Option<Value> {
        match self.default {
            Preset::None => None,
            Preset::Text(t) => Some(json!(t)),
            Preset::Number(n) => Some(json!(n)),
            Preset::Seconds(s) => Some(json!(s)),
            Preset::EmptyList => Some(json!([])),
            Preset::EmptyMap => Some(json!({})),
        }
    }

    /// A value without expressions to its resolved form; the error says what to write instead.
    pub fn resolve(&self, value: &Value) -> Result<Value, String> {
        let shown = || brief(value);
        let text = || word(value).ok_or_else(|| format!("must be text, not {}", shown()));
        match self.kind {
            Kind::Text | Kind::Script => text().map(Value::String),
            Kind::Integer { min, max } => match value.as_i64() {
                Some(n) if (min..=max).contains(&n) => Ok(json!(n)),
                _ => Err(format!("must be a whole number from {min} to {max}, not {}", shown())),
            },
            Kind::Duration => {
                parse_duration(&text().map_err(|e| format!("{e}; write `30s`, `2m`, `1h` or `7d`"))?).map(|s| json!(s))
            }
            Kind::OneOf(words) => match value.as_str().filter(|t| words.contains(t)) {
                Some(t) => Ok(json!(t)),
                None => Err(format!("must be one of {}, not {}", words.join(", "), shown())),
            },
            Kind::TextList => value
                .as_array()
                .and_then(|l| l.iter().map(|v| word(v).map(Value::String)).collect::<Option<Vec<_>>>())
                .map(Value::Array)
                .ok_or_else(|| format!("must be a list of texts such as [\"a\", \"b\"], not {}", shown())),
            Kind::TextMap => value
                .as_object()
                .and_then(|m| m.iter().map(|(k, v)| Some((k.clone(), Value::String(word(v)?)))).collect::<Option<_>>())
                .map(Value::Object)
                .ok_or_else(|| format!("must be a map of texts such as {{KEY: \"value\"}}, not {}", shown())),
            Kind::Statuses => super::statuses::resolve(value),
            Kind::Url => match text()? {
                t if ["http://", "https://"].iter().any(|p| t.len() > p.len() && t.starts_with(p))
                    && !t.contains(|c: char| c.is_whitespace() || c.is_control()) =>
                {
                    Ok(json!(t))
                }
                _ => Err(format!("must be a URL that begins with http:// or https://, not {}", shown())),
            },
            Kind::Mode => match value.as_str() {
                Some(t) if (3..=4).contains(&t.len()) && t.bytes().all(|c| (b'0'..=b'7').contains(&c)) => Ok(json!(t)),
                _ => Err(format!("must be octal permissions in quotes such as \"0644\", not {}", shown())),
            },
            Kind::Path => match text()? {
                t if !t.is_empty() && !t.contains('\0') && t.split('/').all(|p| p != "..") => Ok(json!(t)),
                _ => Err(format!("must be a path without `..`, not {}", shown())),
            },
        }
    }
}

/// `30s`, `2m`, `1h`, `7d` to seconds; at most 30 days.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{} is not a duration; write a whole number and a unit: `30s`, `2m`, `1h` or `7d`", quoted(text));
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds = digits.parse::<u64>().map_err(|_| wrong())? * unit;
    if seconds > 30 * 86_400 { Err(format!("{} is longer than the limit of 30d", quoted(text))) } else { Ok(seconds) }
}

/// Text, or a number or boolean as text.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// A value for an error message: short, and never more than a line.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::String(s) => format!("the text {}", quoted(s)),
        Value::Number(n) => format!("the number {n}"),
        Value::Bool(b) => format!("{b}"),
        Value::Null => "nothing".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a map".into(),
    }
}

fn quoted(s: &str) -> String {
    if s.chars().count() <= 60 { format!("{s:?}") } else { format!("{:?}...", s.chars().take(60).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_fits_its_own_kind() {
        for a in ACTIONS {
            assert!(!a.doc.is_empty() && a.timeout_s > 0, "{}", a.name);
            for p in a.parameters {
                assert!(!(p.required && p.default != Preset::None), "{}.{}", a.name, p.name);
                if let (Some(d), false) = (p.default_value(), p.kind == Kind::Duration) {
                    assert_eq!(p.resolve(&d), Ok(d.clone()), "{}.{}", a.name, p.name);
                }
            }
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90s"), Ok(90));
        assert_eq!(parse_duration("2m"), Ok(120));
        assert_eq!(parse_duration("7d"), Ok(604_800));
        for bad in ["", "s", "5", "-1s", "1.5h", "1w", "99999999999d", "31d", "5 s", "é"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn values_are_checked_for_their_kind() {
        let p = |a: &str, n: &str| find(a).and_then(|a| a.parameter(n)).expect("in the table");
        assert!(p("http.check", "url").resolve(&json!("file:///etc/passwd")).is_err());
        assert!(p("http.check", "status").resolve(&json!("200")).is_err());
        assert!(p("file.put", "mode").resolve(&json!(644)).is_err());
        assert!(p("file.put", "path").resolve(&json!("a/../../b")).is_err());
        assert!(p("release.switch", "keep").resolve(&json!(0)).is_err());
        assert_eq!(p("http.check", "within").resolve(&json!("1m")), Ok(json!(60)));
    }
}
