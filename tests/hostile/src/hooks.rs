//! Signatures, package URLs and JWTs: what senders of webhooks and agents hand over, as far as it needs no service.

#[path = "../../../shared/bus/src/jwt.rs"]
#[allow(dead_code, reason = "the bus uses all of it")]
mod jwts;
#[path = "../../../services/api/src/intake/purl.rs"]
mod purls;
#[path = "../../../services/api/src/intake/signature.rs"]
mod signatures;

use crate::{choice, plant::planted, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use nkeys::{KeyPair, KeyPairType};
use sha2::Sha256;

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
        0 => signatures::github(SECRET, Some(signature), body),
        _ => signatures::standard(SECRET, Some("id"), Some(&time), Some(signature), body, NOW),
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
    let stale = signatures::standard(SECRET, Some("id"), Some(&header), Some(&good), body, NOW);
    assert!(!stale || header == time, "{header:?} is another time");
}

/// The bytes are a package URL. Its parts are in it, decoded once; encoded in full they are read as the same.
pub(crate) fn purl(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let Some(read) = purls::parse(source) else { return };
    assert!(source.starts_with("pkg:"));
    let decoded = once(source.as_bytes());
    for part in [read.version, read.download_url].into_iter().flatten() {
        // The plant: decoded twice.
        let part = if planted() { part.replace("%41", "A") } else { part };
        assert!(!part.is_empty() && decoded.windows(part.len()).any(|w| w == part.as_bytes()), "{part:?}");
        let encoded: String = part.bytes().map(|b| format!("%{b:02x}")).collect();
        let again = purls::parse(&format!("pkg:generic/x@{encoded}?download_url={encoded}")).expect("a package URL");
        assert_eq!((again.version.as_ref(), again.download_url.as_ref()), (Some(&part), Some(&part)));
    }
    if let Some(sum) = read.sha256 {
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

/// The bytes are the JWT of an agent. Its claims, signed again, are read as the same.
pub(crate) fn jwt(bytes: &[u8]) {
    let Some(claims) = text(bytes).and_then(jwts::claims) else { return };
    // The plant: numbers as floats.
    let again = if planted() && claims["iat"].is_number() {
        serde_json::json!({ "iat": claims["iat"].as_f64() })
    } else {
        claims.clone()
    };
    let key = KeyPair::new_from_raw(KeyPairType::Account, [3; 32]).expect("32 bytes are a seed");
    let signed = jwts::sign(&key, "U", "n", 1, again).expect("signs");
    assert_eq!(jwts::claims(&signed).map(|c| c["nats"].clone()), Some(claims));
}
