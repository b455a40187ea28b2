//! Events of any shape: the project's CEL expressions over `body` and `headers` pick the fields.

use super::{Build, Verdict};
use serde_json::{Map, Value};
use windlass_domain::{
    catalog::GenericHook,
    expression::{Context, eval, eval_bool},
};

/// Headers that mappings have no business with.
const HIDDEN: [&str; 3] = ["authorization", "cookie", "webhook-signature"];

pub(crate) fn headers(all: &actix_web::http::header::HeaderMap) -> Value {
    let shown = all.iter().filter(|(n, _)| !HIDDEN.contains(&n.as_str()));
    let map: Map<String, Value> =
        shown.filter_map(|(n, v)| Some((n.as_str().to_owned(), v.to_str().ok()?.into()))).collect();
    Value::Object(map)
}

/// What the mapping makes of an event; `Err` says which expression does not fit.
pub(crate) fn read(hook: &GenericHook, body: Value, headers: Value) -> Result<Verdict, String> {
    let context = Context::default().with("body", body).with("headers", headers);
    if let Some(when) = &hook.when
        && !eval_bool(when, &context).map_err(|e| format!("`when`: {e}"))?
    {
        return Ok(Verdict::Ignored(format!("`when` is false: {when}")));
    }
    let text = |field: &str, expression: &str| match eval(expression, &context) {
        Ok(Value::String(s)) => Ok(s),
        Ok(Value::Number(n)) => Ok(n.to_string()),
        Ok(other) => Err(format!("`{field}`: {expression} is no text: {other}")),
        Err(e) => Err(format!("`{field}`: {e}")),
    };
    // A field that is only for people does not stop a build.
    let optional = |field: &str, e: &Option<String>| e.as_ref().and_then(|e| text(field, e).ok());
    Ok(Verdict::Ready(Box::new(Build {
        version: text("version", &hook.version)?,
        url: text("url", &hook.url)?,
        digest: text("digest", &hook.digest)?,
        commit: optional("commit", &hook.commit),
        git_ref: optional("git_ref", &hook.git_ref),
        committer: optional("committer", &hook.committer),
        ..Build::default()
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hook() -> GenericHook {
        GenericHook {
            secret: "s".into(),
            when: Some("body.status == 'ok'".into()),
            version: "body.v".into(),
            url: "'https://ci/' + body.v + '.tar.gz'".into(),
            digest: "body.sums.sha256".into(),
            commit: Some("body.nothing".into()),
            git_ref: None,
            committer: Some("headers['x-who']".into()),
        }
    }

    #[test]
    fn expressions_pick_the_fields() {
        let body = json!({ "status": "ok", "v": "1.0", "sums": { "sha256": "sha256:1" } });
        let Ok(Verdict::Ready(b)) = read(&hook(), body, json!({ "x-who": "ann" })) else { panic!("not ready") };
        assert_eq!((b.url.as_str(), b.commit, b.committer.as_deref()), ("https://ci/1.0.tar.gz", None, Some("ann")));
        assert!(matches!(read(&hook(), json!({ "status": "no" }), json!({})), Ok(Verdict::Ignored(_))));
        let e = read(&hook(), json!({ "status": "ok" }), json!({})).expect_err("no version");
        assert!(e.contains("`version`"), "{e}");
        assert!(read(&hook(), json!([1]), json!({})).is_err());
    }
}
