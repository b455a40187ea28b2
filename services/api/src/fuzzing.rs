//! Doors to the readers of foreign bytes, for the tests that throw bytes at them (`tests/hostile`). Nothing else uses them.

use crate::{
    auth,
    intake::{self, Verdict, cdevents, generic, github},
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
