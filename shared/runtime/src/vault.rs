//! Secrets that are kept in Vault (KV version 2) and fetched at the moment they are used. Nothing is cached: a
//! value that was rotated there is the one the next task gets.

use crate::{
    Outbound,
    outbound::{OutboundError, Request},
    settings,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::{Method, header::HeaderValue};
use serde_json::Value;
use std::{path::PathBuf, str::FromStr, time::Duration};

const MAX_ANSWER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the setting `vault.address` is not set, so a secret that is kept in Vault cannot be read")]
    NotSet,
    #[error("cannot read `{path}` (setting `{setting}`)")]
    File {
        setting: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("Vault cannot be asked")]
    Outbound(#[from] OutboundError),
    #[error(
        "Vault refused the token of `vault.token_file` for `{path}` (403): it has expired, or its policy lacks `read`"
    )]
    Denied { path: String },
    #[error("Vault has no secret at `{path}`, or its newest version is deleted")]
    Absent { path: String },
    #[error("the secret at `{path}` in Vault has no text under `{key}`")]
    NoKey { path: String, key: String },
    #[error("Vault answered {status} for `{path}`")]
    Status { path: String, status: u16 },
    #[error(
        "what Vault answered for `{path}` is not an answer of a KV version 2 engine: is the mount the first part of it?"
    )]
    Form { path: String },
}

/// Where a secret is: `<mount>/<path>#<key>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    mount: String,
    path: String,
    key: String,
}

/// A text that is no [`Pointer`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a place in Vault: write `<mount>/<path>#<key>`, such as `secret/web/db#password`")]
pub struct BadPointer(String);

impl FromStr for Pointer {
    type Err = BadPointer;

    fn from_str(s: &str) -> Result<Pointer, BadPointer> {
        let bad = || BadPointer(s.chars().take(120).collect());
        let (place, key) = s.split_once('#').ok_or_else(bad)?;
        let (mount, path) = place.split_once('/').ok_or_else(bad)?;
        let part = |p: &str| {
            !p.is_empty()
                && !matches!(p, "." | "..")
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        let good = s.len() <= 512 && part(mount) && path.split('/').all(part) && part(key);
        if good { Ok(Pointer { mount: mount.into(), path: path.into(), key: key.into() }) } else { Err(bad()) }
    }
}

/// The client.
#[derive(Debug, Clone)]
pub struct Vault {
    address: String,
    token_file: PathBuf,
    timeout: Duration,
    outbound: Outbound,
}

impl Vault {
    /// `None` when no address is set.
    pub fn new(settings: &settings::Vault) -> Result<Option<Vault>, VaultError> {
        let Some(address) = &settings.address else { return Ok(None) };
        let token_file = settings.token_file.clone().ok_or(VaultError::NotSet)?;
        // The address is a setting, not a text that somebody typed into a flow: it may well be inside.
        let everywhere = vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        let outbound = match &settings.ca_file {
            None => Outbound::new(everywhere)?,
            Some(path) => {
                let file = |source| VaultError::File { setting: "vault.ca_file", path: path.clone(), source };
                Outbound::with_roots(everywhere, &std::fs::read(path).map_err(file)?)?
            }
        };
        let address = address.trim_end_matches('/').to_owned();
        outbound.check_url(&address)?;
        Ok(Some(Vault { address, token_file, timeout: settings.timeout_s.get(), outbound }))
    }

    /// Reads the newest version.
    pub async fn read(&self, pointer: &Pointer) -> Result<String, VaultError> {
        let path = format!("{}/{}", pointer.mount, pointer.path);
        let file = |source| VaultError::File { setting: "vault.token_file", path: self.token_file.clone(), source };
        let token = tokio::fs::read_to_string(&self.token_file).await.map_err(file)?;
        let mut request =
            Request::new(Method::GET, format!("{}/v1/{}/data/{}", self.address, pointer.mount, pointer.path));
        let mut token =
            HeaderValue::from_str(token.trim()).map_err(|_| file(std::io::Error::other("it does not hold a token")))?;
        token.set_sensitive(true);
        request.headers.insert("x-vault-token", token);
        request.headers.insert("x-vault-request", HeaderValue::from_static("true"));
        request.timeout = self.timeout;
        request.max_response = MAX_ANSWER;
        let answer = self.outbound.send(request).await?;
        match answer.status {
            200 => {}
            403 => return Err(VaultError::Denied { path }),
            404 => return Err(VaultError::Absent { path }),
            status => return Err(VaultError::Status { path, status }),
        }
        let body: Value = serde_json::from_slice(&answer.body).map_err(|_| VaultError::Form { path: path.clone() })?;
        let data = body.pointer("/data/data").ok_or_else(|| VaultError::Form { path: path.clone() })?;
        let value = data.get(&pointer.key).and_then(Value::as_str);
        let no_key = || VaultError::NoKey { path, key: pointer.key.clone() };
        Ok(value.ok_or_else(no_key)?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_vault_are_read_and_nonsense_is_refused() {
        let p: Pointer = "secret/web/db-1#pass.word".parse().expect("reads");
        assert_eq!((p.mount.as_str(), p.path.as_str(), p.key.as_str()), ("secret", "web/db-1", "pass.word"));
        for bad in
            ["", "secret/web", "secret#k", "secret/../x#k", "secret//x#k", "secret/x#", "a/b?c#k", "a/b#k#l", "/a#k"]
        {
            assert!(bad.parse::<Pointer>().is_err(), "{bad}");
        }
    }

    /// Answers like Vault, on a real socket; `/slow` never does.
    fn server(token: &'static str) -> String {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let url = format!("http://{}/", listener.local_addr().expect("address"));
        std::thread::spawn(move || {
            for mut c in listener.incoming().flatten() {
                let (mut head, mut byte) = (Vec::new(), [0; 1]);
                while !head.ends_with(b"\r\n\r\n") && matches!(c.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let (status, body) = match path {
                    "/v1/secret/data/slow" => {
                        std::thread::spawn(move || c.read_to_end(&mut Vec::new()));
                        continue;
                    }
                    _ if !head.contains(&format!("x-vault-token: {token}\r\n")) => (403, "{\"errors\":[]}"),
                    "/v1/secret/data/web/db" => {
                        (200, "{\"data\":{\"data\":{\"password\":\"pw-1\",\"n\":5},\"metadata\":{\"version\":3}}}")
                    }
                    "/v1/kv1/data/x" => (200, "{\"data\":{\"password\":\"pw-1\"}}"),
                    "/v1/secret/data/sealed" => (503, "{\"errors\":[\"Vault is sealed\"]}"),
                    _ => (404, "{\"errors\":[]}"),
                };
                let _ = write!(
                    c,
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        url
    }

    #[tokio::test]
    async fn every_answer_of_vault_is_told_apart_and_no_text_holds_the_token() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().expect("dir");
        let token_file = dir.path().join("token");
        let settings = settings::Vault {
            address: Some(server("tok-right")),
            token_file: Some(token_file.clone()),
            ca_file: None,
            timeout_s: settings::Seconds(Duration::from_millis(300)),
        };
        let v = Vault::new(&settings).expect("client").expect("set");
        let read = async |place: &str| v.read(&place.parse().expect("place")).await;
        assert!(matches!(read("secret/web/db#password").await, Err(VaultError::File { .. })));
        std::fs::write(&token_file, "tok-wrong").expect("token");
        let e = read("secret/web/db#password").await.expect_err("denied");
        assert!(matches!(e, VaultError::Denied { .. }) && !format!("{e} {e:?}").contains("tok-wrong"), "{e:?}");
        // A token that was renewed is used at once.
        std::fs::write(&token_file, "tok-right\n").expect("token");
        assert_eq!(read("secret/web/db#password").await.expect("reads"), "pw-1");
        assert!(matches!(read("secret/web/db#other").await, Err(VaultError::NoKey { .. })));
        assert!(matches!(read("secret/web/db#n").await, Err(VaultError::NoKey { .. })));
        assert!(matches!(read("secret/none#k").await, Err(VaultError::Absent { .. })));
        assert!(matches!(read("kv1/x#password").await, Err(VaultError::Form { .. })));
        assert!(matches!(read("secret/sealed#k").await, Err(VaultError::Status { status: 503, .. })));
        assert!(matches!(read("secret/slow#k").await, Err(VaultError::Outbound(OutboundError::Timeout { .. }))));
        assert!(Vault::new(&settings::Vault::default()).expect("no address").is_none());
    }
}
