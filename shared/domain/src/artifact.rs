//! Artifacts: immutable built things, registered once and referred to by digest ever after.

use crate::{Timestamp, ids::ArtifactId};
use serde::{Deserialize, Serialize};

/// What a CI hands over. `project` + `version` name it for people, `digest` names it for machines; the same version with
/// another digest is refused, never overwritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub id: ArtifactId,
    pub project: String,
    pub version: String,
    /// `sha256:` and 64 lower-case hex digits.
    pub digest: String,
    /// Where hosts fetch it: `http`, `https` or `file` URL of a `.tar.gz`.
    pub url: String,
    /// Bytes; checked on the host when known.
    pub size: Option<u64>,
    /// Branch or tag it was built from.
    pub git_ref: Option<String>,
    pub commit: Option<String>,
    pub committer: Option<String>,
    /// Link to the build for people.
    pub build_url: Option<String>,
    /// When the build ended (the release directory's `<time>` part); registration time when the CI did not say.
    pub built_at: Timestamp,
}

/// Why an artifact was not accepted. Every variant names the field and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("`{field}` must match {rule}, got {got:?}")]
    Field { field: &'static str, rule: &'static str, got: String },
    #[error("`digest` must be `sha256:` followed by 64 lower-case hex digits, got {0:?}")]
    Digest(String),
    #[error("`url` must start with http://, https:// or file://, got {0:?}")]
    Url(String),
    #[error("`{field}` holds a control character, which no host, header or terminal should get: {got:?}; leave it out")]
    Control { field: &'static str, got: String },
}

/// True for names that are safe as one path component, one subject token and one label value:
/// 1-63 characters, `[a-z0-9]` first, then `[a-z0-9_-]`.
pub fn is_name(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=63).contains(&b.len())
        && b[0].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-'))
}

/// True for versions: 1-100 characters of `[A-Za-z0-9.+_-]`, not starting with `.` or `-`.
pub fn is_version(s: &str) -> bool {
    let b = s.as_bytes();
    (1..=100).contains(&b.len())
        && !matches!(b[0], b'.' | b'-')
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'+' | b'_' | b'-'))
}

/// True for `sha256:<64 lower-case hex digits>`.
pub fn is_digest(s: &str) -> bool {
    s.strip_prefix("sha256:")
        .is_some_and(|h| h.len() == 64 && h.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)))
}

/// What stands where a version would, in a deployment that ships nothing. No version looks like it.
pub const NO_ARTIFACT: &str = "no artifact";

impl ArtifactId {
    /// Of a release that ships nothing.
    pub const NONE: ArtifactId = ArtifactId(uuid::Uuid::nil());
}

impl Artifact {
    /// What a deployment is made with whose flow ships nothing; it is never stored.
    pub fn none(project: &str) -> Artifact {
        Artifact {
            id: ArtifactId::NONE,
            project: project.to_owned(),
            version: NO_ARTIFACT.into(),
            digest: String::new(),
            url: String::new(),
            size: None,
            git_ref: None,
            commit: None,
            committer: None,
            build_url: None,
            built_at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Checks every field that later becomes a path, a header or a URL.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !is_name(&self.project) {
            return Err(Invalid::Field {
                field: "project",
                rule: "[a-z0-9][a-z0-9_-]{0,62}",
                got: self.project.clone(),
            });
        }
        if !is_version(&self.version) {
            let rule = "[A-Za-z0-9+_][A-Za-z0-9.+_-]{0,99}";
            return Err(Invalid::Field { field: "version", rule, got: self.version.clone() });
        }
        if !is_digest(&self.digest) {
            return Err(Invalid::Digest(self.digest.clone()));
        }
        if !["http://", "https://", "file://"].iter().any(|p| self.url.starts_with(p))
            || self.url.contains(char::is_whitespace)
        {
            return Err(Invalid::Url(self.url.clone()));
        }
        let texts = [
            ("url", Some(&self.url)),
            ("git_ref", self.git_ref.as_ref()),
            ("commit", self.commit.as_ref()),
            ("committer", self.committer.as_ref()),
            ("build_url", self.build_url.as_ref()),
        ];
        for (field, text) in texts {
            if let Some(got) = text.filter(|t| t.chars().any(char::is_control)) {
                return Err(Invalid::Control { field, got: got.clone() });
            }
        }
        Ok(())
    }

    /// The directory under `<root>/releases` this artifact unpacks to in an environment:
    /// `<project>_<environment>_<version>_<ref>_<time>_<committer>`, each part reduced to `[A-Za-z0-9.+-]` so that the
    /// underscores separate.
    pub fn release_dir(&self, environment: &str) -> String {
        let part = |s: &str| -> String {
            let kept: String = s
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || ".+-".contains(c) { c } else { '-' })
                .take(40)
                .collect();
            if kept.trim_matches(['.', '-']).is_empty() { "none".into() } else { kept }
        };
        format!(
            "{}_{}_{}_{}_{}_{}",
            part(&self.project),
            part(environment),
            part(&self.version),
            part(self.git_ref.as_deref().or(self.commit.as_deref()).unwrap_or("none")),
            self.built_at.format("%Y%m%dT%H%M%SZ"),
            part(self.committer.as_deref().unwrap_or("none"))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_dir_never_leaves_its_parent() {
        let a = Artifact {
            id: uuid::Uuid::nil().into(),
            project: "shop".into(),
            version: "1.0.0".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            url: "https://ci/x.tar.gz".into(),
            size: None,
            git_ref: Some("../../etc".into()),
            commit: None,
            committer: Some("..".into()),
            build_url: None,
            built_at: "2026-11-21T02:03:04Z".parse().expect("time"),
        };
        assert_eq!(a.release_dir("beta"), "shop_beta_1.0.0_..-..-etc_20261121T020304Z_none");
        assert!(a.validate().is_ok());
        assert!(Artifact { digest: "md5:1".into(), ..a.clone() }.validate().is_err());
        assert!(Artifact { url: "ftp://x".into(), ..a }.validate().is_err());
    }
}
