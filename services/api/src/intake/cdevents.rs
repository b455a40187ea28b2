//! CDEvents 0.4 and 0.5 in CloudEvents, structured or binary mode.
//!
//! Read are `dev.cdevents.artifact.published` and `dev.cdevents.artifact.packaged`, any version. The `CDEvent` stands in
//! `data` (structured) or is the body (binary); `ce-` headers are not signed, so nothing is taken from them.
//!
//! | of the build | from, the first that is there |
//! |---|---|
//! | delivery id | `context.id` |
//! | version | `customData.version`, the version of the package URL `subject.id` |
//! | url | `customData.url`, `download_url` of the package URL |
//! | digest | `customData.digest`, the `sha256:` part of `checksum` of the package URL |
//! | commit | `customData.commit`, `subject.content.change.id` |
//! | committer | `customData.committer`, `subject.content.user` |
//! | size, ref, build_url | `customData` |
//! | built at | `context.timestamp` |

use super::{Build, Verdict, number, purl, text};
use crate::{call::holds_nul, problem::Problem};
use serde_json::Value;

/// A `CDEvent`, with what it means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    pub(crate) delivery: String,
    pub(crate) kind: String,
    /// `customData.project`, for events that come without one in their address.
    pub(crate) project: Option<String>,
    pub(crate) verdict: Verdict,
}

const READY: [&str; 2] = ["dev.cdevents.artifact.published.", "dev.cdevents.artifact.packaged."];

pub(crate) fn read(body: &Value) -> Result<Read, Problem> {
    // Structured mode wraps the CDEvent into a CloudEvent.
    let event = if body.get("specversion").is_some() { body.get("data").unwrap_or(&Value::Null) } else { body };
    // `data` may come as JSON text. What is quoted once more has not been looked through for NUL, which cannot be stored.
    let quoted = event.as_str().filter(|s| !holds_nul(s.as_bytes()));
    let parsed = quoted.and_then(|s| serde_json::from_str::<Value>(s).ok());
    let event = parsed.as_ref().unwrap_or(event);
    let missing = |what: &str| Problem::unprocessable(format!("this is not a CDEvent: `{what}` is missing"), vec![]);
    let delivery = text(event, "context.id").ok_or_else(|| missing("context.id"))?;
    let kind = text(event, "context.type").ok_or_else(|| missing("context.type"))?;
    let verdict = if READY.iter().any(|r| kind.starts_with(r)) {
        build(event)
    } else {
        Verdict::Ignored(format!("{kind} does not say that a build is ready"))
    };
    Ok(Read { delivery, kind, project: text(event, "customData.project"), verdict })
}

fn build(event: &Value) -> Verdict {
    let id = text(event, "subject.id").unwrap_or_default();
    let p = purl::parse(&id).unwrap_or_default();
    let pick = |custom: &str, other: Option<String>| text(event, &format!("customData.{custom}")).or(other);
    let version = pick("version", p.version);
    let url = pick("url", p.download_url);
    let digest = pick("digest", p.sha256);
    let (Some(version), Some(url), Some(digest)) = (version.clone(), url.clone(), digest.clone()) else {
        let what = [("version", version.is_none()), ("url", url.is_none()), ("digest", digest.is_none())];
        let what: Vec<&str> = what.iter().filter(|(_, none)| *none).map(|(n, _)| *n).collect();
        let what = what.join(", ");
        return Verdict::Ignored(format!(
            "it names no {what}: put them into `customData`, or into the package URL `subject.id` (@version, download_url, checksum)"
        ));
    };
    Verdict::Ready(Box::new(Build {
        version,
        url,
        digest,
        size: number(event, "customData.size"),
        git_ref: text(event, "customData.ref"),
        commit: pick("commit", text(event, "subject.content.change.id")),
        committer: pick("committer", text(event, "subject.content.user")),
        build_url: text(event, "customData.build_url"),
        built_at: text(event, "context.timestamp").and_then(|t| t.parse().ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, subject: &str, custom: Value) -> Value {
        json!({
            "context": { "version": "0.4.1", "id": "e1", "source": "/ci", "type": kind, "timestamp": "2026-11-21T05:00:00Z" },
            "subject": { "id": subject, "type": "artifact", "content": { "user": "ann", "change": { "id": "c0ffee" } } },
            "customData": custom,
        })
    }

    #[test]
    fn both_modes_give_the_same_build() {
        let purl =
            format!("pkg:generic/shop@1.0.0?checksum=sha256:{}&download_url=https://ci/x.tar.gz", "a".repeat(64));
        let e = event("dev.cdevents.artifact.published.0.2.0", &purl, json!({ "size": 7, "ref": "main" }));
        let binary = read(&e).expect("reads");
        let Verdict::Ready(b) = &binary.verdict else { panic!("{binary:?}") };
        assert_eq!((b.version.as_str(), b.url.as_str(), b.size), ("1.0.0", "https://ci/x.tar.gz", Some(7)));
        assert_eq!(
            (b.commit.as_deref(), b.committer.as_deref(), b.git_ref.as_deref()),
            (Some("c0ffee"), Some("ann"), Some("main"))
        );
        let structured = json!({ "specversion": "1.0", "id": "other", "source": "x", "type": "y", "data": e });
        assert_eq!(read(&structured).expect("reads"), binary);
        let as_text = json!({ "specversion": "1.0", "data": e.to_string() });
        assert_eq!(read(&as_text).expect("reads"), binary);
    }

    #[test]
    fn what_is_not_a_ready_build_is_ignored_with_the_reason() {
        let reason = |e: &Value| match read(e).expect("reads").verdict {
            Verdict::Ignored(r) => r,
            Verdict::Ready(b) => panic!("{b:?}"),
        };
        assert!(reason(&event("dev.cdevents.build.finished.0.2.0", "x", json!({}))).contains("does not say"));
        assert!(
            reason(&event("dev.cdevents.artifact.packaged.0.2.0", "x", json!({ "version": "1" })))
                .contains("no url, digest")
        );
        assert!(read(&json!([])).is_err());
        assert!(read(&json!({ "context": { "id": 1 } })).is_err());
    }
}
