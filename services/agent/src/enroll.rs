//! Enrolment: trade a one-time token for an identity. The key is made here and its seed never leaves the host.

use crate::{
    facts, files,
    identity::{Identity, IdentityError},
};
use nkeys::KeyPair;
use std::{path::Path, time::Duration};
use windlass_contracts::http::{Enroll, Enrolled, PREFIX, Problem};

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(
        "{0} is not an http or https URL; give the address of the console, for example https://windlass.example.org"
    )]
    Url(String),
    #[error("{0} is plain HTTP to another machine: the token could be read on the way. Use https, or --allow-http")]
    PlainHttp(String),
    #[error("{state} already holds the identity of host {host}; give another --state, or remove it to enrol anew")]
    Exists { state: String, host: String },
    #[error("cannot make the directory {0}")]
    Dir(String, #[source] std::io::Error),
    #[error("cannot reach {0}")]
    Reach(String, #[source] reqwest::Error),
    #[error("enrolment was refused ({status}): {detail}")]
    Refused { status: u16, detail: String },
    #[error("the answer of {0} is not an identity this agent can use")]
    Answer(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Enrols and writes the identity. Refuses to replace one that is there.
pub async fn enroll(
    server: &str,
    token: &str,
    state: &Path,
    root: Option<&Path>,
    allow_http: bool,
) -> Result<Identity, EnrollError> {
    let url = reqwest::Url::parse(server).map_err(|_| EnrollError::Url(server.to_owned()))?;
    match url.scheme() {
        "https" => {}
        "http" if allow_http || is_loopback(&url) => {}
        "http" => return Err(EnrollError::PlainHttp(server.to_owned())),
        _ => return Err(EnrollError::Url(server.to_owned())),
    }
    if let Ok(old) = Identity::load(state) {
        return Err(EnrollError::Exists { state: state.display().to_string(), host: old.host });
    }
    files::private_dir(state).map_err(|e| EnrollError::Dir(state.display().to_string(), e))?;
    let key = KeyPair::new_user();
    let body = Enroll { token: token.trim().to_owned(), public_key: key.public_key(), facts: facts::facts(root) };
    let target = format!("{}{PREFIX}/enroll", server.trim_end_matches('/'));
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|e| EnrollError::Reach(target.clone(), e))?;
    let answer = client.post(&target).json(&body).send().await.map_err(|e| EnrollError::Reach(target.clone(), e))?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(|e| EnrollError::Reach(target.clone(), e))?;
    if !status.is_success() {
        let detail = match serde_json::from_slice::<Problem>(&bytes) {
            Ok(p) => p.detail,
            Err(_) => "no reason given; is this the address of a Windlass console?".to_owned(),
        };
        return Err(EnrollError::Refused { status: status.as_u16(), detail });
    }
    let got: Enrolled = serde_json::from_slice(&bytes).map_err(|_| EnrollError::Answer(target.clone()))?;
    let keys_fit = [&got.executor_key, &got.approval_key].iter().all(|k| KeyPair::from_public_key(k).is_ok());
    if !keys_fit || got.nats_urls.is_empty() {
        return Err(EnrollError::Answer(target));
    }
    let identity = Identity {
        agent_id: got.agent_id.into(),
        host: got.host,
        nats_urls: got.nats_urls,
        jwt: got.jwt,
        executor_key: got.executor_key,
        approval_key: got.approval_key,
        nats_ca: got.nats_ca,
    };
    identity.save(state, &key)?;
    Ok(identity)
}

fn is_loopback(url: &reqwest::Url) -> bool {
    url.host_str().is_some_and(|h| {
        h == "localhost"
            || h.trim_start_matches('[')
                .trim_end_matches(']')
                .parse::<std::net::IpAddr>()
                .is_ok_and(|a| a.is_loopback())
    })
}
