//! What a handler is given: who asks, what about, and the request, already read and admitted.

use crate::{
    auth::Who,
    problem::{Fail, Problem},
    state::State,
    table::group_of,
};
use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderMap},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;
use windlass_contracts::{command::Command, http::Page};
use windlass_domain::{
    access::{Permission, Target},
    event::{Aggregate, NewEvent, Severity},
};
use windlass_runtime::Settings;
use windlass_store::{Store, Tx, bundles, deployments, idempotency};

/// What the path names.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Name and group.
    pub(crate) project: Option<(String, String)>,
    pub(crate) deployment: Option<Box<deployments::Stored>>,
    /// The number of the deployment's last event when it was read.
    pub(crate) last_event: u64,
    pub(crate) command: Option<Box<Command>>,
    pub(crate) bundle: Option<Box<bundles::Stored>>,
    /// All projects of the bundle, with their groups.
    pub(crate) projects: Vec<(String, String)>,
}

impl Found {
    /// The permission on every project of the bundle.
    pub(crate) fn all_may(&self, who: &Who, p: Permission) -> bool {
        self.projects.iter().all(|(name, group)| who.actor.may(p, Target::Project { name, group }))
    }

    pub(crate) fn target(&self) -> Target<'_> {
        match &self.project {
            Some((name, group)) => Target::Project { name, group },
            None => Target::Global,
        }
    }
}

pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) who: Option<Who>,
    pub(crate) found: Found,
    pub(crate) params: HashMap<String, String>,
    pub(crate) query: HashMap<String, String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// W3C traceparent.
    pub(crate) trace: String,
    /// Method, path and query: a part of what an idempotency key stands for.
    pub(crate) uri: String,
}

pub(crate) type Answer = Result<HttpResponse, Fail>;

/// The current time as both databases keep it.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

pub(crate) fn ok<T: Serialize>(body: &T) -> Answer {
    json(StatusCode::OK, body)
}

pub(crate) fn json<T: Serialize>(status: StatusCode, body: &T) -> Answer {
    Ok(HttpResponse::build(status).insert_header((header::CACHE_CONTROL, "no-store")).json(body))
}

/// An idempotency key, claimed or not.
pub(crate) enum Once {
    /// Go on; [`Call::keep`] the answer before the commit.
    New,
    /// Answered before.
    Again(StatusCode, Value),
}

impl Call {
    pub(crate) fn store(&self) -> &Store {
        self.state.store()
    }
    pub(crate) fn settings(&self) -> &Settings {
        self.state.settings()
    }

    pub(crate) fn who(&self) -> Result<&Who, Fail> {
        self.who.as_ref().ok_or_else(|| Fail::Internal("a handler asked who calls on a route without tokens".into()))
    }

    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn uuid(&self, name: &str) -> Result<Uuid, Problem> {
        self.param(name).parse().map_err(|_| Problem::not_found())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// A query parameter, when given and not empty.
    pub(crate) fn ask(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Refuses query parameters the route does not know: a misspelt filter must not widen a list.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        match self.query.keys().find(|k| !known.contains(&k.as_str())) {
            None => Ok(()),
            Some(k) => Err(Problem::invalid(format!("unknown query parameter `{k}`; known are: {}", known.join(", ")))),
        }
    }

    pub(crate) fn page(&self) -> Result<(u32, Option<&str>), Problem> {
        Ok((crate::page::limit(self.ask("limit"))?, self.ask("cursor")))
    }

    /// The JSON body; an empty one is `{}`.
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let bytes: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        read_json(bytes)
    }

    pub(crate) fn project(&self) -> Result<(&str, &str), Fail> {
        let p = self.found.project.as_ref();
        p.map(|(n, g)| (n.as_str(), g.as_str())).ok_or_else(|| Problem::not_found().into())
    }

    pub(crate) fn deployment(&self) -> Result<&deployments::Stored, Fail> {
        self.found.deployment.as_deref().ok_or_else(|| Problem::not_found().into())
    }

    pub(crate) fn bundle(&self) -> Result<&bundles::Stored, Fail> {
        self.found.bundle.as_deref().ok_or_else(|| Problem::not_found().into())
    }

    /// For rows and items: the permission on this project (`None`: on what belongs to none).
    pub(crate) async fn may(&self, tx: &mut Tx, p: Permission, project: Option<&str>) -> Result<bool, Fail> {
        let who = self.who()?;
        Ok(match project {
            None => who.actor.may(p, Target::Global),
            Some(name) => match group_of(tx, name).await? {
                Some(group) => who.actor.may(p, Target::Project { name, group: &group }),
                None => who.actor.may(p, Target::Global),
            },
        })
    }

    /// An event by this caller, with this request's trace.
    pub(crate) fn event(&self, aggregate: Aggregate, id: impl Into<String>, what: &str, payload: Value) -> NewEvent {
        NewEvent {
            id: Uuid::now_v7().into(),
            aggregate,
            aggregate_id: id.into(),
            what: what.into(),
            project: self.found.project.as_ref().map(|(n, _)| n.clone()),
            environment: None,
            severity: Severity::Info,
            actor: self.who.as_ref().map_or_else(|| "service:api".into(), Who::name),
            at: now(),
            payload,
            trace: Some(self.trace.clone()),
        }
    }

    /// Claims the request's `Idempotency-Key` in this transaction, before anything else in it.
    pub(crate) async fn once(&self, tx: &mut Tx) -> Result<Once, Fail> {
        let Some(key) = self.header("idempotency-key") else { return Ok(Once::New) };
        if key.is_empty() || key.len() > 200 {
            return Err(Problem::invalid("`Idempotency-Key` must have 1 to 200 characters; a UUID is good").into());
        }
        match idempotency::claim(tx, &self.who()?.actor.person, key, &self.hash(), now()).await? {
            idempotency::Claim::New => Ok(Once::New),
            idempotency::Claim::Answered { status, response } => {
                let status =
                    StatusCode::from_u16(status).map_err(|_| Fail::Internal("a stored status is none".into()))?;
                Ok(Once::Again(status, self.unseal(response)?))
            }
            idempotency::Claim::OtherRequest => {
                let detail = "this `Idempotency-Key` was used for another request; make a new key for a new request";
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail).into())
            }
        }
    }

    /// Stores the answer under the request's key, if it has one.
    pub(crate) async fn keep<T: Serialize>(&self, tx: &mut Tx, status: StatusCode, answer: &T) -> Result<(), Fail> {
        let Some(key) = self.header("idempotency-key") else { return Ok(()) };
        let value = serde_json::to_value(answer).map_err(|e| Fail::Internal(e.to_string()))?;
        // Some answers hold a token; none may rest in clear.
        let bytes = value.to_string();
        let sealed = self.state.ctx.sealer.seal("idempotency", key, bytes.as_bytes());
        let sealed = sealed.map_err(|e| Fail::Internal(e.to_string()))?;
        let value = Value::String(STANDARD.encode(sealed));
        Ok(idempotency::store(tx, &self.who()?.actor.person, key, status.as_u16(), &value).await?)
    }

    fn unseal(&self, stored: Value) -> Result<Value, Fail> {
        let bad = |e: String| Fail::Internal(format!("a stored answer cannot be opened: {e}"));
        let bytes = STANDARD.decode(stored.as_str().unwrap_or_default()).map_err(|e| bad(e.to_string()))?;
        let key = self.header("idempotency-key").unwrap_or_default();
        let plain = self.state.ctx.sealer.open("idempotency", key, &bytes).map_err(|e| bad(e.to_string()))?;
        serde_json::from_slice(&plain).map_err(|e| bad(e.to_string()))
    }

    fn hash(&self) -> Vec<u8> {
        let mut h = Sha256::new();
        h.update(self.uri.as_bytes());
        h.update([0]);
        h.update(&self.body);
        h.finalize().to_vec()
    }

    /// The revision that `If-Match` names. `*` and its absence ask for none.
    pub(crate) fn if_match(&self) -> Result<Option<i64>, Problem> {
        match self.header("if-match") {
            None | Some("*") => Ok(None),
            Some(tag) => {
                let n = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
                n.map(Some).ok_or_else(|| Problem::invalid("`If-Match` must be an ETag this api gave, as `\"3\"`"))
            }
        }
    }
}

/// Reads JSON; a fault names its line and column.
pub(crate) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if holds_nul(bytes) {
        return Err(Problem::invalid(
            "a text of the body holds the character NUL (\\u0000), which cannot be stored; remove it",
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let fault = windlass_contracts::http::Fault {
            at: String::new(),
            detail: e.to_string(),
            line: u32::try_from(e.line()).ok(),
            column: u32::try_from(e.column()).ok(),
        };
        Problem { errors: vec![fault], ..Problem::invalid(format!("the body is not what this address takes: {e}")) }
    })
}

/// Whether a JSON text has an escaped NUL: `\u0000` behind an even number of backslashes.
pub(crate) fn holds_nul(json: &[u8]) -> bool {
    let escape = b"\\u0000";
    json.windows(escape.len())
        .enumerate()
        .any(|(i, w)| w == escape && json[..i].iter().rev().take_while(|b| **b == b'\\').count() % 2 == 0)
}

/// One page: `limit + 1` rows were asked for, the extra one only says that there are more.
pub(crate) fn page<R, T, C: Serialize>(
    mut rows: Vec<R>,
    limit: u32,
    cursor: impl Fn(&R) -> C,
    view: impl FnMut(R) -> T,
) -> Page<T> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = more.then(|| rows.last().map(|r| crate::page::encode(&cursor(r)))).flatten();
    Page { items: rows.into_iter().map(view).collect(), next }
}

#[cfg(test)]
mod tests {
    use super::holds_nul;

    #[test]
    fn only_an_escaped_nul_is_one() {
        for (slashes, is) in [(1, true), (2, false), (3, true), (4, false)] {
            assert_eq!(holds_nul(format!("\"x{}u0000\"", "\\".repeat(slashes)).as_bytes()), is, "{slashes}");
        }
        assert!(!holds_nul(b"\"u0000 \\u000\""));
    }
}
