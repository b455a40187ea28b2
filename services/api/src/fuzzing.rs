//! Doors to the readers of foreign bytes, for the tests that throw bytes at them (`tests/hostile`). Nothing else uses them.

use crate::{
    auth,
    intake::{self, Verdict, cdevents, generic, github, purl, signature},
    page,
};
use serde_json::Value;
use windlass_domain::{Timestamp, artifact::Artifact, catalog::GenericHook};

/// The artifact that an event would register (not validated yet), or why it is none.
fn outcome(verdict: &Verdict) -> Result<Artifact, String> {
    match verdict {
        Verdict::Ready(b) => Ok(intake::artifact("project", b, Timestamp::UNIX_EPOCH)),
        Verdict::Ignored(why) => Err(why.clone()),
    }
}

pub fn github(event: &str, body: &Value) -> Result<Artifact, String> {
    outcome(&github::read(event, body))
}

/// The delivery's id, and what the event says.
pub fn cdevents(body: &Value) -> Result<(String, Result<Artifact, String>), String> {
    cdevents::read(body).map(|r| (r.delivery, outcome(&r.verdict))).map_err(|p| p.detail)
}

pub fn generic(hook: &GenericHook, body: Value, headers: Value) -> Result<Artifact, String> {
    generic::read(hook, body, headers).and_then(|v| outcome(&v))
}

/// Version, download address and digest of a package URL.
pub fn purl(text: &str) -> Option<[Option<String>; 3]> {
    purl::parse(text).map(|p| [p.version, p.download_url, p.sha256])
}

pub fn signed_as_github(secret: &[u8], header: Option<&str>, body: &[u8]) -> bool {
    signature::github(secret, header, body)
}

/// `headers`: `webhook-id`, `webhook-timestamp`, `webhook-signature`. `now` in Unix seconds.
pub fn signed_as_standard(secret: &[u8], headers: [Option<&str>; 3], body: &[u8], now: i64) -> bool {
    let [id, timestamp, signature] = headers;
    signature::standard(secret, id, timestamp, signature, body, now)
}

/// The id and the secret's SHA-256, if the text is a token with this prefix.
pub fn token(prefix: &str, text: &str) -> Option<(uuid::Uuid, Vec<u8>)> {
    auth::parse(prefix, text)
}

/// What a cursor of a list of deployments stands for.
pub fn cursor(text: &str) -> Option<Value> {
    page::decode(text).ok()
}

/// The cursor of a place in a list.
pub fn cursor_of(place: &Value) -> String {
    page::encode(place)
}
