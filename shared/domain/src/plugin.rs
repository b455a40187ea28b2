//! Plugins: actions of central steps that are programs or services of their own. The catalog says what one is called, how it
//! is reached and which values it takes; a release freezes that definition, and the plan's digest covers it.

use crate::artifact::is_name;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod schema;

pub use schema::{Fault, MAX_SCHEMA_BYTES, check, check_schema};

/// What `uses:` of a step that is a plugin begins with.
pub const PREFIX: &str = "plugin/";
/// Longest a call may take.
pub const MAX_TIMEOUT_S: u32 = 7 * 86_400;

/// One version of a plugin. Versions stand side by side in the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    pub name: String,
    /// `1.2.0`: numbers with dots between them.
    pub version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    pub transport: Transport,
    /// JSON Schema of `with`: an object with named properties.
    #[serde(default = "anything")]
    pub inputs: Value,
    /// JSON Schema of the step's outputs.
    #[serde(default = "anything")]
    pub outputs: Value,
    /// What it can be asked.
    #[serde(default = "only_execute")]
    pub verbs: Vec<Verb>,
    /// Executing a call a second time does no harm: the plugin recognises the call's key, or the work is idempotent.
    #[serde(default)]
    pub retry_safe: bool,
    /// Seconds a call may take in all, waiting and polling included, when the step names no time.
    #[serde(default = "default_timeout")]
    pub timeout_s: u32,
    /// Inputs that may hold secrets.
    #[serde(default)]
    pub secrets: Vec<String>,
}

fn anything() -> Value {
    serde_json::json!({ "type": "object" })
}
fn only_execute() -> Vec<Verb> {
    vec![Verb::Execute]
}
fn default_timeout() -> u32 {
    300
}

/// How a plugin is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transport {
    /// A program beside the executor.
    Exec {
        /// Relative to the setting `executor.plugins_dir`.
        path: String,
        /// `sha256:<hex>` of the file; a file with another digest is never run.
        digest: String,
    },
    /// A NATS service on the services account; its subjects follow from name, version and verb.
    Nats {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Is it done already, or under way?
    Check,
    Execute,
    /// How far is what was answered with `running`?
    Poll,
    /// Something came for what was answered with `waiting`.
    Callback,
    /// Stop what was begun: the deployment was aborted, or the time is up.
    Cancel,
    /// Take back what was done.
    Undo,
}

impl Verb {
    pub const ALL: [Verb; 6] = [Verb::Check, Verb::Execute, Verb::Poll, Verb::Callback, Verb::Cancel, Verb::Undo];
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Check => "check",
            Verb::Execute => "execute",
            Verb::Poll => "poll",
            Verb::Callback => "callback",
            Verb::Cancel => "cancel",
            Verb::Undo => "undo",
        }
    }
}

impl Plugin {
    /// `name@version`: its key in the catalog.
    pub fn key(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
    /// The action of a planned step that calls it.
    pub fn action(&self) -> String {
        format!("{PREFIX}{}", self.key())
    }
    pub fn has(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    /// Everything that is wrong with the definition: the key it is about, and what to write instead.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        if !is_name(&self.name) {
            out.push(("name", "must be a name (1 to 63 of a-z, 0-9, `_` and `-`)".into()));
        }
        if parse_version(&self.version).is_none() {
            out.push(("version", "must be one to four numbers with dots between them, such as \"1.2.0\"".into()));
        }
        if let Transport::Exec { path, digest } = &self.transport {
            let inside = !path.is_empty()
                && !path.starts_with('/')
                && !path.contains('\0')
                && path.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
            if !inside {
                out.push(("transport", "`path` must be a path below `executor.plugins_dir`, without `..`".into()));
            }
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
                let text =
                    "`digest` must be `sha256:` and 64 lower-case hexadecimal digits; `sha256sum FILE` prints them";
                out.push(("transport", text.into()));
            }
        }
        for (key, schema) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            if let Err(e) = check_schema(schema) {
                out.push((key, e));
            } else if schema.get("type") != Some(&Value::from("object")) {
                out.push((key, "must be the schema of an object: begin with `type: object`".into()));
            }
        }
        if !self.has(Verb::Execute) {
            out.push(("verbs", "must hold `execute`".into()));
        }
        let mut verbs = self.verbs.clone();
        verbs.sort_unstable();
        if verbs.windows(2).any(|w| w[0] == w[1]) {
            out.push(("verbs", "names a verb twice; keep one".into()));
        }
        if self.timeout_s == 0 || self.timeout_s > MAX_TIMEOUT_S {
            out.push(("timeout_s", format!("must be from 1 to {MAX_TIMEOUT_S} seconds")));
        }
        let known = self.inputs.get("properties").and_then(Value::as_object);
        for s in &self.secrets {
            if !known.is_some_and(|k| k.contains_key(s)) {
                out.push(("secrets", format!("`{s}` is not a property of `inputs`; declare it there")));
            }
        }
        out
    }
}

/// `uses:` of a plugin step, without `plugin/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference<'a> {
    pub name: &'a str,
    /// The newest one when absent.
    pub version: Option<&'a str>,
}

/// Reads `plugin/<name>` or `plugin/<name>@<version>`; `None` for every other action, and for what is no such name.
pub fn reference(uses: &str) -> Option<Reference<'_>> {
    let rest = uses.strip_prefix(PREFIX)?;
    let (name, version) = match rest.split_once('@') {
        Some((n, v)) => (n, Some(v)),
        None => (rest, None),
    };
    let fits = is_name(name) && version.is_none_or(|v| parse_version(v).is_some());
    fits.then_some(Reference { name, version })
}

/// A version's numbers, in the order versions have. Missing ones count as 0.
pub fn parse_version(text: &str) -> Option<[u32; 4]> {
    let mut out = [0; 4];
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    for (to, part) in out.iter_mut().zip(parts) {
        let plain =
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        *to = part.parse().ok().filter(|_| plain)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plugin() -> Plugin {
        serde_json::from_value(json!({
            "name": "page", "version": "1.2.0",
            "transport": { "type": "exec", "path": "page.py", "digest": format!("sha256:{}", "a".repeat(64)) },
            "inputs": { "type": "object", "properties": { "token": { "type": "string" } } },
            "secrets": ["token"],
        }))
        .expect("reads")
    }

    #[test]
    fn a_good_definition_has_no_problems_and_a_bad_one_all_of_them() {
        assert_eq!(plugin().problems(), vec![]);
        assert_eq!(plugin().action(), "plugin/page@1.2.0");
        let bad = Plugin {
            name: "A".into(),
            version: "v1".into(),
            transport: Transport::Exec { path: "../x".into(), digest: "sha256:1".into() },
            inputs: json!({ "type": "strin" }),
            outputs: json!({ "type": "string" }),
            verbs: vec![Verb::Check, Verb::Check],
            timeout_s: 0,
            secrets: vec!["nope".into()],
            ..plugin()
        };
        let keys: Vec<&str> = bad.problems().into_iter().map(|(k, _)| k).collect();
        let want = [
            "name",
            "version",
            "transport",
            "transport",
            "inputs",
            "outputs",
            "verbs",
            "verbs",
            "timeout_s",
            "secrets",
        ];
        assert_eq!(keys, want);
    }

    #[test]
    fn references_are_read_exactly() {
        let r = |s| reference(s).map(|r| (r.name, r.version));
        assert_eq!(r("plugin/jira"), Some(("jira", None)));
        assert_eq!(r("plugin/jira@1.2.0"), Some(("jira", Some("1.2.0"))));
        for no in
            ["jira", "plugin/", "plugin/Ji", "plugin/jira@", "plugin/jira@1.", "plugin/jira@01", "plugin/a/b", "script"]
        {
            assert_eq!(r(no), None, "{no}");
        }
        assert!(parse_version("1.10") > parse_version("1.9.9"));
        assert!(parse_version("1.2.3.4.5").is_none());
    }
}
