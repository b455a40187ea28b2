//! Bearer tokens: `wl_<id>_<secret>`. The secret is shown once; its SHA-256 is what is stored.

use crate::problem::{Fail, Problem};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use windlass_domain::{access::Actor, ids::TokenId};
use windlass_store::{Tx, tokens};

/// A token just made.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) id: Uuid,
    pub(crate) text: String,
    pub(crate) hash: Vec<u8>,
}

/// A new token; `prefix` is `wl` for people and `we` for enrolment.
pub(crate) fn mint(prefix: &str) -> Fresh {
    let (id, secret) = (Uuid::now_v7(), rand::random::<[u8; 32]>());
    let text = format!("{prefix}_{}_{}", id.simple(), URL_SAFE_NO_PAD.encode(secret));
    Fresh { id, text, hash: Sha256::digest(secret).to_vec() }
}

/// The id and the secret's hash; `None` when the text is no token at all.
pub(crate) fn parse(prefix: &str, text: &str) -> Option<(Uuid, Vec<u8>)> {
    let rest = text.strip_prefix(prefix)?.strip_prefix('_')?;
    let (id, secret) = rest.split_at_checked(32)?;
    let secret = secret.strip_prefix('_')?;
    if secret.len() != 43 || id.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let secret = URL_SAFE_NO_PAD.decode(secret).ok()?;
    Some((Uuid::try_parse(id).ok()?, Sha256::digest(secret).to_vec()))
}

pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Who is asking: the person, what the token allows, and how it is limited.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) actor: Actor,
    pub(crate) display: String,
    pub(crate) token: TokenId,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

impl Who {
    /// As events name it.
    pub(crate) fn name(&self) -> String {
        format!("person:{}", self.actor.person)
    }
}

/// Reads rights anew at every request: a token revoked, a grant taken away or a person disabled counts at once.
pub(crate) async fn authenticate(tx: &mut Tx, header: Option<&str>) -> Result<Who, Fail> {
    let Some(header) = header else {
        return Err(Problem::unauthorized("send `Authorization: Bearer <token>`").into());
    };
    // One text for every other cause, so that nobody learns which half of a guess was right.
    let refused = || {
        Fail::from(Problem::unauthorized("this token does not work: it is unknown, expired or revoked; get a new one"))
    };
    let scheme = header.get(..7).filter(|s| s.eq_ignore_ascii_case("bearer "));
    let (id, hash) = scheme.and_then(|_| parse("wl", header[7..].trim())).ok_or_else(refused)?;
    of_token(tx, TokenId(id), Some(&hash)).await?.ok_or_else(refused)
}

/// The token's rights as they are now; `None` when it no longer works.
pub(crate) async fn of_token(tx: &mut Tx, id: TokenId, hash: Option<&[u8]>) -> Result<Option<Who>, Fail> {
    let Some((t, p, grants)) = tokens::of_person(tx, id).await? else { return Ok(None) };
    let alive = t.revoked_at.is_none() && t.expires_at.is_none_or(|e| e > Utc::now());
    if !alive || p.disabled || hash.is_some_and(|h| !same(h, &t.hash)) {
        return Ok(None);
    }
    let actor = Actor { person: p.name, grants, scopes: t.scopes, only_project: t.project };
    Ok(Some(Who { actor, display: p.display, token: id, expires_at: t.expires_at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_is_a_token() {
        let f = mint("wl");
        assert_eq!(parse("wl", &f.text), Some((f.id, f.hash.clone())));
        assert_eq!(parse("we", &f.text), None);
        for i in 0..f.text.len() {
            let mut bad = f.text.clone();
            bad.remove(i);
            assert_eq!(parse("wl", &bad), None, "{i}");
        }
        for bad in ["", "wl", "wl_", "wl_é", "nothing", &f.text.to_uppercase(), &format!("{}A", f.text)] {
            assert_eq!(parse("wl", bad), None, "{bad}");
        }
    }
}
