//! GitHub webhooks. Read are:
//! - `release`, action `published`: the tag without a leading `v` is the version; the first asset `*.tar.gz` with a SHA-256
//!   `digest` is the artifact (`browser_download_url`, `size`); `target_commitish`, `author.login`.
//! - `package` and `registry_package`, action `published`: `package_version.version`; the first `package_files[]` `*.tar.gz`
//!   with a `sha256` (`download_url`, `size`).
//! - `workflow_run`, action `completed`, conclusion `success`: GitHub itself names no artifact in it. A sender that adds
//!   `artifacts[]` (`version`, `url` or `archive_download_url`, `digest`, `size` or `size_in_bytes`), beside or in
//!   `workflow_run`, is read; one without is ignored.
//!
//! All else is ignored with the reason. The delivery id is `X-GitHub-Delivery`. That header is not signed; a replay under
//! another id finds the artifact registered and requests nothing.

use super::{Build, Verdict, number, text};
use serde_json::Value;

fn version_of_tag(tag: &str) -> String {
    match tag.strip_prefix('v') {
        Some(v) if v.starts_with(|c: char| c.is_ascii_digit()) => v.to_owned(),
        _ => tag.to_owned(),
    }
}

fn list<'a>(v: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    v.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn read(event: &str, body: &Value) -> Verdict {
    let action = text(body, "action").unwrap_or_default();
    let ignored = |why: &str| Verdict::Ignored(format!("{event} {action}: {why}"));
    match (event, action.as_str()) {
        ("release", "published") => {
            let tag = text(body, "release.tag_name").unwrap_or_default();
            let asset = list(body, "/release/assets").find(|a| {
                text(a, "name").is_some_and(|n| n.ends_with(".tar.gz"))
                    && text(a, "digest").is_some_and(|d| d.starts_with("sha256:"))
            });
            let Some(a) = asset else { return ignored("no asset *.tar.gz with a sha256 digest") };
            Verdict::Ready(Box::new(Build {
                version: version_of_tag(&tag),
                url: text(a, "browser_download_url").unwrap_or_default(),
                digest: text(a, "digest").unwrap_or_default(),
                size: number(a, "size"),
                git_ref: Some(tag),
                commit: text(body, "release.target_commitish"),
                committer: text(body, "release.author.login"),
                build_url: text(body, "release.html_url"),
                built_at: text(body, "release.published_at").and_then(|t| t.parse().ok()),
            }))
        }
        ("package" | "registry_package", "published") => {
            let p = body.get("package").or_else(|| body.get("registry_package")).unwrap_or(&Value::Null);
            let v = p.get("package_version").unwrap_or(&Value::Null);
            let file = list(v, "/package_files")
                .find(|f| text(f, "name").is_some_and(|n| n.ends_with(".tar.gz")) && text(f, "sha256").is_some());
            let Some(f) = file else { return ignored("no file *.tar.gz with a sha256") };
            Verdict::Ready(Box::new(Build {
                version: text(v, "version").unwrap_or_default(),
                url: text(f, "download_url").unwrap_or_default(),
                digest: format!("sha256:{}", text(f, "sha256").unwrap_or_default().to_lowercase()),
                size: number(f, "size"),
                git_ref: text(v, "target_commitish"),
                commit: text(v, "target_oid"),
                committer: text(v, "author.login"),
                build_url: text(v, "html_url"),
                built_at: text(v, "created_at").and_then(|t| t.parse().ok()),
            }))
        }
        ("workflow_run", "completed") => {
            let run = body.get("workflow_run").unwrap_or(&Value::Null);
            let conclusion = text(run, "conclusion").unwrap_or_default();
            if conclusion != "success" {
                return ignored(&format!("it ended as {conclusion}"));
            }
            let Some(a) = list(body, "/artifacts").chain(list(run, "/artifacts")).find(|a| text(a, "digest").is_some())
            else {
                return ignored(
                    "it names no artifact with a digest; publish a release, or post a CDEvent from the workflow",
                );
            };
            Verdict::Ready(Box::new(Build {
                version: text(a, "version")
                    .or_else(|| text(run, "head_branch").map(|b| version_of_tag(&b)))
                    .unwrap_or_default(),
                url: text(a, "url").or_else(|| text(a, "archive_download_url")).unwrap_or_default(),
                digest: text(a, "digest").unwrap_or_default(),
                size: number(a, "size").or_else(|| number(a, "size_in_bytes")),
                git_ref: text(run, "head_branch"),
                commit: text(run, "head_sha"),
                committer: text(run, "actor.login"),
                build_url: text(run, "html_url"),
                built_at: text(run, "updated_at").and_then(|t| t.parse().ok()),
            }))
        }
        ("release" | "package" | "registry_package" | "workflow_run", _) => {
            ignored("only published and completed count")
        }
        _ => ignored("not an event that says a build is ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_published_release_is_ready() {
        let digest = format!("sha256:{}", "b".repeat(64));
        let body = json!({ "action": "published", "release": {
            "tag_name": "v1.2.0", "target_commitish": "main", "author": { "login": "ann" },
            "assets": [{ "name": "notes.txt" }, { "name": "shop.tar.gz", "digest": digest, "browser_download_url": "https://gh/x.tar.gz", "size": 9 }] } });
        let Verdict::Ready(b) = read("release", &body) else { panic!("not ready") };
        assert_eq!(
            (b.version.as_str(), b.digest, b.size, b.git_ref.as_deref()),
            ("1.2.0", digest, Some(9), Some("v1.2.0"))
        );
    }

    #[test]
    fn the_rest_is_ignored() {
        for (event, body) in [
            (
                "release",
                json!({ "action": "published", "release": { "tag_name": "v1", "assets": [{ "name": "a.tar.gz" }] } }),
            ),
            ("release", json!({ "action": "edited" })),
            ("workflow_run", json!({ "action": "completed", "workflow_run": { "conclusion": "failure" } })),
            ("workflow_run", json!({ "action": "completed", "workflow_run": { "conclusion": "success" } })),
            ("package", json!({ "action": "published" })),
            ("ping", json!({ "zen": "x" })),
            ("release", json!([1])),
        ] {
            assert!(matches!(read(event, &body), Verdict::Ignored(_)), "{event} {body}");
        }
    }
}
