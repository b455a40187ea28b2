//! NATS JWTs (version 2 claims), encoded by hand: header and claims as base64url JSON, signed with the issuer's nkey.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use windlass_contracts::frames::MAX_FRAME;

/// An agent needs two: its frames, and answers to its own requests.
const AGENT_SUBSCRIPTIONS: u32 = 8;
/// The only algorithm NATS accepts.
const ALGORITHM: &str = "ed25519-nkey";

/// Encodes and signs. `subject` is the public key that the claims are about.
pub(crate) fn sign(
    issuer: &KeyPair,
    subject: &str,
    name: &str,
    issued_at: i64,
    nats: Value,
) -> Result<String, nkeys::error::Error> {
    let header = json!({ "typ": "JWT", "alg": ALGORITHM });
    let mut claims = json!({
        "iat": issued_at,
        "iss": issuer.public_key(),
        "name": name,
        "sub": subject,
        "nats": nats,
    });
    let digest = Sha256::digest(claims.to_string().as_bytes());
    claims["jti"] = URL_SAFE_NO_PAD.encode(digest).into();
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = issuer.sign(text.as_bytes())?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The claims of a JWT of our own; `None` if it is not one. The signature is the server's to check.
pub(crate) fn claims(jwt: &str) -> Option<Value> {
    let body = jwt.trim().split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
}

pub(crate) fn operator(system_account: &str) -> Value {
    json!({ "type": "operator", "version": 2, "system_account": system_account })
}

/// What JetStream may use in an account.
#[derive(Debug, Clone, Copy)]
pub(crate) enum JetStream {
    Off,
    Disk(i64),
}

pub(crate) fn account(jetstream: JetStream, revoked: &BTreeMap<String, i64>) -> Value {
    let mut limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": 0,
    });
    if let JetStream::Disk(bytes) = jetstream {
        limits["mem_storage"] = 0.into();
        limits["disk_storage"] = bytes.into();
        limits["streams"] = 64.into();
        limits["consumer"] = 1024.into();
    }
    json!({
        "type": "account", "version": 2, "limits": limits,
        "default_permissions": { "pub": {}, "sub": {} },
        "revocations": revoked,
    })
}

/// Of an agent: a few subscriptions, no message that is larger than a frame, and no way in but the client protocol.
pub(crate) fn agent(publish: &[String], subscribe: &[String]) -> Value {
    let mut claims = user(publish, subscribe);
    claims["subs"] = AGENT_SUBSCRIPTIONS.into();
    claims["payload"] = MAX_FRAME.into();
    claims["allowed_connection_types"] = json!(["STANDARD"]);
    claims
}

pub(crate) fn user(publish: &[String], subscribe: &[String]) -> Value {
    json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "pub": { "allow": publish }, "sub": { "allow": subscribe },
    })
}
