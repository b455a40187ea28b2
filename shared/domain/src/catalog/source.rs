//! Where a project's documents come from when they live in Git, and the small readers that declarations of promotion need.

use super::Environment;
use crate::flow::actions::parse_duration;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor},
};
use std::fmt;

/// A Git repository from which a project's environments and flows are applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `https://…`, `ssh://…` or `user@host:path`; `file://…` only where the setting `source.allow_file` allows it.
    pub git: String,
    /// Branch or tag.
    #[serde(default = "default_ref", rename = "ref")]
    pub reference: String,
    /// Directory in the repository; all `*.yaml` and `*.yml` below it are read.
    #[serde(default = "default_path")]
    pub path: String,
    /// Name of the project secret: a deploy key (OpenSSH private key) for SSH, a token for HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Name of the project secret that signs `POST /hooks/git/<project>` (`X-Hub-Signature-256`), which looks at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// How often to look: `5m`.
    #[serde(default = "default_poll")]
    pub poll: String,
    /// Remove flows and environments that came from here and are there no more. Off: they stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prune: bool,
}

fn default_ref() -> String {
    "main".into()
}
fn default_path() -> String {
    ".windlass/".into()
}
fn default_poll() -> String {
    "5m".into()
}

impl Source {
    pub fn poll_s(&self) -> u64 {
        parse_duration(&self.poll).unwrap_or(300).max(10)
    }

    /// What is wrong, by key.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let plain =
            |s: &str| !s.is_empty() && !s.starts_with('-') && !s.chars().any(|c| c.is_control() || c.is_whitespace());
        let scheme = ["https://", "ssh://", "file:///"].iter().any(|p| self.git.starts_with(p));
        let scp = self.git.split_once(':').is_some_and(|(host, path)| {
            host.contains('@') && !host.contains('/') && !path.starts_with(':') && !path.is_empty()
        });
        if !plain(&self.git) || !(scheme || scp) {
            out.push(("git", "must be an address like https://…, ssh://… or git@host:path".to_owned()));
        } else if self.git.starts_with("https://") && self.git[8..].split('/').next().is_some_and(|h| h.contains('@')) {
            out.push(("git", "must hold no password; store it as a project secret and name it in `secret`".to_owned()));
        }
        let bad_ref = !plain(&self.reference)
            || self.reference.contains("..")
            || self.reference.contains(|c: char| "~^:?*[\\".contains(c));
        if bad_ref {
            out.push(("ref", "must be the name of a branch or tag".to_owned()));
        }
        if self.path.starts_with('/') || self.path.split('/').any(|p| p == "..") || self.path.contains('\0') {
            out.push(("path", "must be a directory inside the repository".to_owned()));
        }
        match parse_duration(&self.poll) {
            Err(e) => out.push(("poll", e)),
            Ok(s) if s < 10 => out.push(("poll", "must be at least 10s".to_owned())),
            Ok(_) => {}
        }
        out
    }
}

impl Environment {
    /// How long an artifact must have been verified in `promote_from`.
    pub fn verified_for_s(&self) -> u64 {
        self.verified_for.as_deref().and_then(|t| parse_duration(t).ok()).unwrap_or(0)
    }
}

/// One name, or a list of them.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or a list of names")
        }
        fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Self::Value, E> {
            Ok(vec![s.to_owned()])
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut out = Vec::new();
            while let Some(s) = items.next_element()? {
                out.push(s);
            }
            Ok(out)
        }
    }
    d.deserialize_any(Names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(git: &str, reference: &str, path: &str, poll: &str) -> Source {
        Source {
            git: git.into(),
            reference: reference.into(),
            path: path.into(),
            secret: None,
            hook: None,
            poll: poll.into(),
            prune: false,
        }
    }

    #[test]
    fn addresses_that_git_would_read_as_something_else_are_refused() {
        let wrong = |git: &str| source(git, "main", ".", "5m").problems().iter().any(|(k, _)| *k == "git");
        for good in ["https://git.example/a.git", "ssh://git@h/a", "git@h:a/b.git", "file:///srv/a"] {
            assert!(!wrong(good), "{good}");
        }
        for bad in ["ext::sh -c id", "--upload-pack=id", "http://h/a", "file://h/a", "https://u:p@h/a", "/srv/a", ""] {
            assert!(wrong(bad), "{bad}");
        }
    }

    #[test]
    fn refs_paths_and_times_are_checked() {
        let keys = |r: &str, p: &str, t: &str| -> Vec<&str> {
            source("https://h/a", r, p, t).problems().into_iter().map(|(k, _)| k).collect()
        };
        assert!(keys("release/1.0", "deploy/", "1h").is_empty());
        assert_eq!(keys("--exec=x", "/etc", "soon"), ["ref", "path", "poll"]);
        assert_eq!(keys("a..b", "a/../b", "1s"), ["ref", "path", "poll"]);
    }
}
