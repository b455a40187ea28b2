//! Multi-document YAML to [`Item`]s, with the document, line and column in every error.

use super::{
    Account, Channel, Connectivity, Environment, Group, Host, HostGroup, Item, Kind, MAX_HOST_FILE_BYTES, Policy,
    Project, Provider, decode,
};
use crate::{
    approval::ApprovalRule,
    artifact::is_name,
    expression,
    flow::parse as flow_parse,
    selector::Selector,
    span::{Place, Problem, suggestion},
    yaml::{self, Fields, Key, Node, Problems, Value, join, shorten},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One document of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub item: Item,
    /// Where it begins.
    pub place: Place,
    /// Its text.
    pub source: String,
}

/// What is wrong, in which document, where, and what to write instead. Lines count from the start of the whole text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadError {
    /// From 1, empty documents not counted; 0 when the text as a whole cannot be read.
    pub document: u32,
    pub place: Option<Place>,
    /// Keys and indices down to it: `approvals[0].quorum`.
    pub path: String,
    pub message: String,
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.document > 0 {
            write!(f, "document {}, ", self.document)?;
        }
        Problem { place: self.place, path: self.path.clone(), message: self.message.clone() }.fmt(f)
    }
}

impl std::error::Error for ReadError {}

/// Most problems that are told at once.
const MAX_ERRORS: usize = 100;

/// Reads all documents, or says everything that is wrong with them.
pub fn read(source: &str) -> Result<Vec<Document>, Vec<ReadError>> {
    let tell = |document: u32, p: Problem| ReadError { document, place: p.place, path: p.path, message: p.message };
    let nodes = yaml::documents(source).map_err(|p| vec![tell(0, p)])?;
    let sources = sources(source, &nodes);
    let mut documents: Vec<Document> = Vec::new();
    let mut errors = Vec::new();
    let mut seen: BTreeMap<(Kind, String), (u32, Place)> = BTreeMap::new();
    for ((i, node), text) in (1u32..).zip(&nodes).zip(sources) {
        let mut problems = Problems::default();
        let item = read_one(node, &text, &mut problems);
        if let Some(item) = &item {
            let key = (item.kind(), item.key());
            if let Some((first, place)) = seen.get(&key) {
                let what = key.0.as_str();
                let message =
                    format!("{what} `{}` is already in document {first} ({place}); remove one of the two", key.1);
                problems.add(node.place, "", message);
            } else {
                seen.insert(key, (i, node.place));
            }
        }
        match flow_parse::finish(item, problems) {
            Ok(item) => documents.push(Document { item, place: node.place, source: text }),
            Err(p) => errors.extend(p.into_iter().map(|p| tell(i, p))),
        }
        if errors.len() >= MAX_ERRORS {
            break;
        }
    }
    if documents.is_empty() && errors.is_empty() {
        let message = "there is no document; each has `kind:` and a name".into();
        errors.push(ReadError { document: 0, place: None, path: String::new(), message });
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

/// The text of each document: from its `---` to the next.
fn sources(source: &str, nodes: &[Node]) -> Vec<String> {
    let lines: Vec<&str> = source.split_inclusive('\n').collect();
    let marker = |l: &str| l.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with(char::is_whitespace));
    let mut markers: Vec<usize> = (0..lines.len()).filter(|i| marker(lines[*i])).collect();
    markers.push(lines.len());
    nodes
        .iter()
        .map(|n| {
            let at = n.place.line as usize - 1;
            let from = markers.partition_point(|m| *m <= at);
            let begin = from.checked_sub(1).map_or(0, |i| markers[i]);
            let end = markers.get(from).copied().unwrap_or(lines.len());
            let text = lines.get(begin..end).unwrap_or_default().concat();
            text.strip_prefix("---").unwrap_or(&text).trim().to_string()
        })
        .collect()
}

fn read_one(node: &Node, source: &str, problems: &mut Problems) -> Option<Item> {
    let mut f = Fields::of(node, "", "a document", problems)?;
    let all = || Kind::ALL.map(Kind::as_str).join(", ");
    let Some(kind_node) = f.take("kind") else {
        problems.add(node.place, "", format!("the key `kind` is missing; add one of {}", all()));
        return None;
    };
    let kind = kind_node.as_text().and_then(|t| Kind::ALL.into_iter().find(|k| k.as_str() == t));
    let Some(kind) = kind else {
        let near = kind_node.as_text().map_or_else(String::new, |t| suggestion(t, Kind::ALL.map(Kind::as_str)));
        let text = format!("must be one of {}, not {}{near}", all(), kind_node.kind());
        problems.add(kind_node.place, "kind", text);
        return None;
    };
    if kind == Kind::Flow {
        let project = flow_parse::read_name(&mut f, "project", problems);
        let flow = flow_parse::read(f, problems);
        return Some(Item::Flow { project: project?, flow: flow?, source: source.into() });
    }
    let mut c = Checks { node, problems };
    match kind {
        Kind::Project => c.decode::<Project>().map(|p| {
            c.project(&p);
            Item::Project(p)
        }),
        Kind::Environment if !c.balancer_keys() => None,
        Kind::Environment => c.decode::<Environment>().map(|e| {
            c.environment(&e);
            Item::Environment(e)
        }),
        Kind::Host => c.decode::<Host>().map(|h| {
            c.host(&h);
            Item::Host(h)
        }),
        Kind::Policy => c.decode::<Policy>().map(|p| {
            c.policy(&p);
            Item::Policy(p)
        }),
        Kind::Group => c.decode::<Group>().map(|g| {
            c.name(&["name"], &g.name);
            c.values(&["values"], &g.values);
            Item::Group(g)
        }),
        Kind::Plugin => c.decode::<crate::plugin::Plugin>().map(|p| {
            p.problems().into_iter().for_each(|(key, text)| c.wrong(&[key], text));
            Item::Plugin(p)
        }),
        Kind::HostGroup => c.decode::<HostGroup>().map(|g| {
            c.name(&["name"], &g.name);
            c.names(&["hosts"], &g.hosts);
            if g.hosts.is_empty() {
                c.wrong(&["hosts"], "must name at least one host");
            }
            Item::HostGroup(g)
        }),
        Kind::Channel if !c.provider_keys() => None,
        Kind::Channel => c.decode::<Channel>().map(|x| {
            c.channel(&x);
            Item::Channel(x)
        }),
        Kind::Flow => None,
    }
}

pub(super) struct Checks<'n, 'p> {
    pub(super) node: &'n Node,
    pub(super) problems: &'p mut Problems,
}

const NAME_RULE: &str = "must be a name (1 to 63 of a-z, 0-9, `_` and `-`, beginning with a letter or digit)";

impl<'n> Checks<'n, '_> {
    fn decode<T: for<'de> Deserialize<'de>>(&mut self) -> Option<T> {
        decode::from_node(self.node, &["kind"]).map_err(|p| self.problems.0.push(p)).ok()
    }

    /// The value at a path such as `["hosts", "0"]`, or the nearest there is.
    fn at(&self, path: &[&str]) -> &'n Node {
        let mut n = self.node;
        for p in path {
            let next = match &n.value {
                Value::List(l) => p.parse().ok().and_then(|i: usize| l.get(i)),
                _ => n.get(p),
            };
            match next {
                Some(x) => n = x,
                None => break,
            }
        }
        n
    }

    pub(super) fn wrong(&mut self, path: &[&str], message: impl Into<String>) {
        let mut text = String::new();
        for p in path {
            text = if p.parse::<usize>().is_ok() { format!("{text}[{p}]") } else { join(&text, p) };
        }
        self.problems.add(self.at(path).place, &text, message);
    }

    pub(super) fn name(&mut self, path: &[&str], name: &str) {
        if !is_name(name) {
            self.wrong(path, format!("{NAME_RULE}, not {:?}", shorten(name)));
        }
    }

    fn names(&mut self, path: &[&str], names: &[String]) {
        let mut seen = BTreeSet::new();
        for (i, n) in names.iter().enumerate() {
            let index = i.to_string();
            let path: Vec<&str> = path.iter().copied().chain([index.as_str()]).collect();
            self.name(&path, n);
            if !seen.insert(n) {
                self.wrong(&path, format!("`{}` is listed twice; keep one", shorten(n)));
            }
        }
    }

    fn filled(&mut self, path: &[&str], text: &str) {
        if text.trim().is_empty() {
            self.wrong(path, "must not be empty");
        }
    }

    fn project(&mut self, p: &Project) {
        self.name(&["name"], &p.name);
        self.name(&["group"], &p.group);
        self.values(&["values"], &p.values);
        for (key, text) in p.source.iter().flat_map(|s| s.problems()) {
            self.wrong(&["source", key], text);
        }
        if let Some(s) = &p.source {
            for (key, name) in [("secret", &s.secret), ("hook", &s.hook)] {
                name.iter().for_each(|n| self.name(&["source", key], n));
            }
        }
        for (name, account) in &p.accounts {
            self.account(name, account);
        }
        for (key, source) in [("cdevents", &p.hooks.cdevents), ("github", &p.hooks.github)] {
            if let Some(h) = source {
                self.name(&["hooks", key, "secret"], &h.secret);
            }
        }
        let Some(g) = &p.hooks.generic else { return };
        self.name(&["hooks", "generic", "secret"], &g.secret);
        let given = [("when", &g.when), ("commit", &g.commit), ("git_ref", &g.git_ref), ("committer", &g.committer)];
        let given = given.into_iter().filter_map(|(k, v)| v.as_deref().map(|v| (k, v)));
        let needed = [("version", g.version.as_str()), ("url", g.url.as_str()), ("digest", g.digest.as_str())];
        for (key, source) in needed.into_iter().chain(given) {
            match expression::check(source) {
                Err(e) => self.wrong(&["hooks", "generic", key], e.to_string()),
                Ok(roots) => {
                    if let Some(r) = roots.iter().find(|r| !["body", "headers"].contains(&r.as_str())) {
                        let text = format!(
                            "`{}` reads `{}`; only `body` and `headers` exist here",
                            shorten(source),
                            shorten(r)
                        );
                        self.wrong(&["hooks", "generic", key], text);
                    }
                }
            }
        }
    }

    fn environment(&mut self, e: &Environment) {
        for (key, name) in [("project", &e.project), ("name", &e.name), ("flow", &e.flow), ("pool", &e.pool)] {
            self.name(&[key], name);
        }
        self.names(&["hosts"], &e.hosts);
        if let Some(s) = &e.selector
            && let Err(error) = s.parse::<Selector>()
        {
            self.wrong(&["selector"], format!("is not a selector: {error}"));
        }
        self.names(&["groups"], &e.groups);
        self.names(&["exclude"], &e.exclude);
        if let Some(i) = e.exclude.iter().position(|x| e.hosts.contains(x)) {
            let text = format!("`{}` is named in `hosts` too; remove it from one of the two", shorten(&e.exclude[i]));
            self.wrong(&["exclude", &i.to_string()], text);
        }
        if e.hosts.is_empty() && e.groups.is_empty() && e.selector.is_none() {
            let text =
                "an environment needs `hosts: [...]`, `groups: [...]` or `selector: <labels>`, or it has no hosts";
            self.wrong(&[], text);
        }
        self.names(&["promote_from"], &e.promote_from);
        if e.promote_from.contains(&e.name) {
            self.wrong(&["promote_from"], "an environment cannot be promoted from itself");
        }
        if let Some(Err(text)) = e.verified_for.as_deref().map(crate::flow::actions::parse_duration) {
            self.wrong(&["verified_for"], text);
        } else if e.verified_for.is_some() && e.promote_from.is_empty() {
            self.wrong(&["verified_for"], "says how long `promote_from` must have been good; name that too");
        }
        for (key, name) in [("service", &e.service), ("tier", &e.tier)] {
            if let Some(n) = name {
                self.name(&[key], n);
            }
        }
        self.connectivity(e.connectivity.as_ref());
        self.balancers(e);
        for key in ["name", "project", "service", "tier"] {
            if e.values.contains_key(key) {
                let text = format!("`env.{key}` is the environment's own; give the value another name");
                self.wrong(&["values", key], text);
            }
        }
        self.values(&["values"], &e.values);
    }

    fn values(&mut self, path: &[&str], values: &BTreeMap<String, serde_json::Value>) {
        for key in values.keys() {
            if !crate::values::is_key(key) {
                let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                let text = "a value's name has at most 63 letters, digits and `_` and begins with no digit, so that \
                            expressions can say `values.<name>`";
                self.wrong(&path, text);
            }
        }
    }

    fn host(&mut self, h: &Host) {
        self.name(&["name"], &h.name);
        for (key, text) in h.ssh.iter().flat_map(|s| s.problems(&h.name)) {
            self.wrong(&["ssh", key], text);
        }
        self.filled(&["address"], &h.address);
        if h.address.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
            self.wrong(&["address"], format!("must be a host name or an address, not {:?}", shorten(&h.address)));
        }
        let fits = |s: &str| {
            (1..=253).contains(&s.len())
                && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'/'))
        };
        for (k, _) in h.labels.iter().filter(|(k, v)| !fits(k) || !fits(v)) {
            let text =
                "a label's name and value have letters, digits, `.`, `_`, `-` and `/`, as selectors can name no others";
            self.wrong(&["labels", k], text);
        }
        self.values(&["values"], &h.values);
        for (name, text) in &h.files {
            if !crate::values::is_key(name) {
                let text = "a file's name has letters, digits and `_`, so that expressions can say `host.files.<name>`";
                self.wrong(&["files", name], text);
            }
            if text.len() > MAX_HOST_FILE_BYTES {
                let text = format!(
                    "has {} bytes, more than {MAX_HOST_FILE_BYTES}: put it into the artifact, or fetch it in a step",
                    text.len()
                );
                self.wrong(&["files", name], text);
            }
        }
        if h.max_tasks == Some(0) {
            self.wrong(&["max_tasks"], "must be at least 1; to keep tasks off a host lock it: windlass hosts lock");
        }
    }

    fn account(&mut self, name: &str, a: &Account) {
        if !is_name(name) {
            self.wrong(&["accounts", name], format!("an account's name {NAME_RULE}"));
        }
        let plain = a.user.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if a.user.is_empty() || !plain || a.user.starts_with('-') {
            let text = format!("must be the name of a user on the hosts, not {:?}", shorten(&a.user));
            self.wrong(&["accounts", name, "user"], text);
        }
        if let Some(key) = &a.ssh_key {
            self.name(&["accounts", name, "ssh_key"], key);
        }
    }

    fn connectivity(&mut self, c: Option<&Connectivity>) {
        if c.is_some_and(|c| !(5..=86_400).contains(&c.within_s)) {
            self.wrong(&["connectivity", "within_s"], "must be 5 to 86400 seconds; agents speak every 5 seconds");
        }
    }

    fn policy(&mut self, p: &Policy) {
        self.name(&["name"], &p.name);
        self.names(&["match", "projects"], &p.matches.projects);
        self.names(&["match", "environments"], &p.matches.environments);
        self.names(&["match", "tiers"], &p.matches.tiers);
        self.connectivity(p.connectivity.as_ref());
        self.names(&["on_artifact"], &p.on_artifact);
        let mut seen = BTreeSet::new();
        for (i, r) in p.approvals.iter().enumerate() {
            let i = i.to_string();
            self.rule(&i, r);
            if !seen.insert(&r.name) {
                self.wrong(
                    &["approvals", &i, "name"],
                    format!("`{}` is used twice; name each rule differently", shorten(&r.name)),
                );
            }
        }
        self.names(&["on_verified"], &p.on_verified);
        if p.expires_s == Some(0) {
            self.wrong(&["expires_s"], "must be at least 1 second");
        }
    }

    fn rule(&mut self, i: &str, r: &ApprovalRule) {
        self.name(&["approvals", i, "name"], &r.name);
        if r.quorum == 0 {
            self.wrong(&["approvals", i, "quorum"], "must be at least 1; remove the rule if nobody needs to approve");
        }
        let people: BTreeSet<&String> = r.people.iter().collect();
        if !r.people.is_empty() && people.len() < r.quorum as usize {
            let text = format!("asks for {} people but names {}; name more or lower it", r.quorum, people.len());
            self.wrong(&["approvals", i, "quorum"], text);
        }
    }

    /// Serde buffers what has a `type`, and loses the places in it: its keys are checked here.
    fn provider_keys(&mut self) -> bool {
        const PROVIDERS: [(&str, &[&str]); 7] = [
            ("slack", &["url"]),
            ("feishu", &["url", "sign"]),
            ("dingtalk", &["url", "sign"]),
            ("wecom", &["url"]),
            ("teams", &["url"]),
            ("webhook", &["url", "sign"]),
            ("email", &["server", "tls", "from", "to", "username", "password"]),
        ];
        let Some(node) = self.node.get("provider") else { return true };
        let Value::Map(entries) = &node.value else { return true };
        let names = PROVIDERS.map(|(n, _)| n);
        let Some(kind) = node.get("type") else {
            let text = format!("the key `type` is missing; write one of {}", names.join(", "));
            self.problems.add(node.place, "provider", text);
            return false;
        };
        let word = kind.as_word().unwrap_or_default();
        let Some((_, keys)) = PROVIDERS.iter().find(|(n, _)| *n == word) else {
            let text = format!("must be one of {}, not {}{}", names.join(", "), kind.kind(), suggestion(&word, names));
            self.problems.add(kind.place, "provider.type", text);
            return false;
        };
        let unknown = |(k, _): &&(Key, Node)| k.name != "type" && !keys.contains(&k.name.as_str());
        let mut fine = true;
        for (key, _) in entries.iter().filter(unknown) {
            let near = suggestion(&key.name, keys.iter().copied());
            let text = format!("unknown key `{}`{near}; {word} has: type, {}", shorten(&key.name), keys.join(", "));
            self.problems.add(key.place, "provider", text);
            fine = false;
        }
        fine
    }

    fn channel(&mut self, c: &Channel) {
        self.name(&["name"], &c.name);
        let secrets: Vec<(&str, &String)> = match &c.provider {
            Provider::Slack { url } | Provider::Wecom { url } | Provider::Teams { url } => vec![("url", url)],
            Provider::Feishu { url, sign } | Provider::Dingtalk { url, sign } => {
                [("url", Some(url)), ("sign", sign.as_ref())].into_iter().filter_map(|(k, v)| Some((k, v?))).collect()
            }
            Provider::Webhook { url, sign } => vec![("url", url), ("sign", sign)],
            Provider::Email { password, from, to, server, .. } => {
                self.filled(&["provider", "from"], from);
                let port = server.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok());
                if port.is_none() {
                    self.wrong(&["provider", "server"], format!("must be `host:port`, not {:?}", shorten(server)));
                }
                if to.is_empty() {
                    self.wrong(&["provider", "to"], "must name at least one address");
                }
                password.iter().map(|p| ("password", p)).collect()
            }
        };
        for (key, name) in secrets {
            if !is_name(name) {
                let text = "must be the name of a channel secret, never the value itself; store it with \
                            `windlass secret set channel/<name>`";
                self.wrong(&["provider", key], text);
            }
        }
        if c.rules.is_empty() {
            self.wrong(&["rules"], "must hold at least one rule, or nothing is ever sent; `- {}` sends everything");
        }
        for (i, r) in c.rules.iter().enumerate() {
            let i = i.to_string();
            self.names(&["rules", &i, "projects"], &r.projects);
            self.names(&["rules", &i, "environments"], &r.environments);
        }
    }
}

#[cfg(test)]
mod tests;
