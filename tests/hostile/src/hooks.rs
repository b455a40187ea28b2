//! What senders of webhooks and holders of tokens hand to the api.

// Private to the bus, and complete in itself; compiled here as it stands.
#[allow(dead_code, reason = "the bus uses all of it")]
#[path = "../../../shared/bus/src/jwt.rs"]
mod jwt;

use crate::{choice, plant::planted, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use nkeys::KeyPair;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Component, Path};
use windlass_api::fuzzing;
use windlass_domain::{artifact::Artifact, catalog::GenericHook};

const EVENTS: [&str; 5] = ["release", "package", "registry_package", "workflow_run", "ping"];

/// First byte: which hook, which event of GitHub. The rest is the body.
///
/// It is a build or a reason. A build that is valid has a version that is one part of a path, and no text of it holds what
/// cannot be stored or would be read as something else.
pub(crate) fn hook(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let Ok(body) = serde_json::from_slice::<Value>(rest) else { return };
    let read = match how % 3 {
        0 => fuzzing::github(EVENTS[usize::from(how / 3) % EVENTS.len()], &body),
        1 => match fuzzing::cdevents(&body) {
            Ok((delivery, read)) => {
                assert!(!delivery.is_empty());
                read
            }
            Err(why) => Err(why),
        },
        _ => fuzzing::generic(&mapping(), body.clone(), body),
    };
    match read {
        Ok(a) => artifact(&a),
        Err(why) => assert!(!why.is_empty()),
    }
}

fn mapping() -> GenericHook {
    GenericHook {
        secret: "s".into(),
        when: Some("body.status == 'ok'".into()),
        version: "body.v".into(),
        url: "'https://ci/' + body.v + body.ext".into(),
        digest: "body.sums.sha256".into(),
        commit: Some("body.commit".into()),
        git_ref: Some("headers['x-ref']".into()),
        committer: None,
    }
}

fn artifact(a: &Artifact) {
    // The plant: nobody looks at it again.
    if a.validate().is_err() && !planted() {
        return;
    }
    let dir = a.release_dir("beta");
    let parts: Vec<_> = Path::new(&a.version).components().collect();
    assert!(matches!(parts.as_slice(), [Component::Normal(_)]), "{:?}", a.version);
    assert!(dir.len() <= 255 && matches!(Path::new(&dir).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]));
    let texts = [Some(&a.url), a.git_ref.as_ref(), a.commit.as_ref(), a.committer.as_ref(), a.build_url.as_ref()];
    for t in texts.into_iter().flatten() {
        assert!(!t.chars().any(char::is_control), "a control character in {t:?}");
    }
}

/// First byte: which scheme. Up to the first line end the signature's header, then the body.
///
/// What is not signed with the secret is refused; what is is taken; one changed bit of it is not.
pub(crate) fn signature(bytes: &[u8]) {
    const SECRET: &[u8] = b"a secret nobody guesses";
    const NOW: i64 = 1_700_000_000;
    let (how, rest) = choice(bytes);
    let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
    let (header, body) = (String::from_utf8_lossy(&rest[..end]), rest.get(end + 1..).unwrap_or_default());
    let sum = |parts: &[&[u8]]| {
        let mut m = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length");
        parts.iter().for_each(|p| m.update(p));
        m.finalize().into_bytes()
    };
    let time = NOW.to_string();
    let check = |signature: &str| match how & 1 {
        0 => fuzzing::signed_as_github(SECRET, Some(signature), body),
        _ => fuzzing::signed_as_standard(SECRET, [Some("id"), Some(&time), Some(signature)], body, NOW),
    };
    let good = match how & 1 {
        0 => format!("sha256={}", sum(&[body]).iter().map(|b| format!("{b:02x}")).collect::<String>()),
        _ => format!("v1,{}", STANDARD.encode(sum(&[b"id.", time.as_bytes(), b".", body]))),
    };
    assert!(check(&good), "{good}");
    // The plant: a signature that is not there cannot be wrong.
    let taken = check(&header) || planted() && header == "sha256=";
    assert!(!taken || header.to_lowercase().contains(&good.to_lowercase()), "{header:?} was taken");
    let at = usize::from(how >> 1) % good.len();
    let mut bad = good.clone().into_bytes();
    bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
    let bad = String::from_utf8(bad).expect("ASCII");
    assert!(!check(&bad), "{bad}");
    let stale = fuzzing::signed_as_standard(SECRET, [Some("id"), Some(&header), Some(&good)], body, NOW);
    assert!(!stale || header == time, "{header:?} is another time");
}

/// The bytes are a package URL. Its parts are in it, decoded once; encoded in full they are read as the same.
pub(crate) fn purl(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let Some([version, url, sum]) = fuzzing::purl(source) else { return };
    assert!(source.starts_with("pkg:"));
    let decoded = once(source.as_bytes());
    for part in [version, url].into_iter().flatten() {
        // The plant: decoded twice.
        let part = if planted() { part.replace("%41", "A") } else { part };
        assert!(!part.is_empty() && decoded.windows(part.len()).any(|w| w == part.as_bytes()), "{part:?}");
        let encoded: String = part.bytes().map(|b| format!("%{b:02x}")).collect();
        let again = fuzzing::purl(&format!("pkg:generic/x@{encoded}?download_url={encoded}"));
        assert_eq!(again, Some([Some(part.clone()), Some(part), None]));
    }
    if let Some(sum) = sum {
        assert!(sum.starts_with("sha256:") && sum.to_lowercase() == sum);
    }
}

/// With every good escape decoded.
fn once(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let [first, after @ ..] = rest {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.filter(|h| h.iter().all(u8::is_ascii_hexdigit)).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(b) => (out.push(b), rest = &after[2..]),
            None => (out.push(*first), rest = after),
        };
    }
    out
}

/// First byte: a bearer token, a cursor of a list, or the JWT of an agent. The rest is its text.
///
/// A token that is taken has exactly one form: its id and secret written again are the text. A cursor is what it was made of.
pub(crate) fn token(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let Some(source) = text(rest) else { return };
    match how % 3 {
        0 => {
            // The plant: letters of either case.
            let lower = source.to_ascii_lowercase();
            let read = if planted() { fuzzing::token("wl", &lower) } else { fuzzing::token("wl", source) };
            let Some((id, hash)) = read else { return };
            let (head, secret) = source.split_at(36);
            assert_eq!(head, format!("wl_{}_", id.simple()));
            let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret).expect("it was taken");
            assert_eq!(raw.len(), 32);
            assert_eq!(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&raw), secret);
            assert_eq!(Sha256::digest(&raw).to_vec(), hash);
            assert!(fuzzing::token("we", source).is_none());
        }
        1 => {
            let Some(place) = fuzzing::cursor(source) else { return };
            assert!(source.len() <= 1024);
            let again = fuzzing::cursor_of(&place);
            assert!(again.len() > 1024 || fuzzing::cursor(&again) == Some(place));
        }
        _ => {
            if let Some(claims) = jwt::claims(source) {
                let key = KeyPair::new_from_raw(nkeys::KeyPairType::Account, [3; 32]).expect("32 bytes are a seed");
                let again = jwt::sign(&key, "U", "n", 1, claims.clone()).expect("signs");
                assert_eq!(jwt::claims(&again).map(|c| c["nats"].clone()), Some(claims));
            }
        }
    }
}
