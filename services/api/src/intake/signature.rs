//! Signatures of webhooks, over the raw bytes and in constant time, before anything is parsed.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How far a Standard Webhooks timestamp may be off, in seconds.
const TOLERANCE: i64 = 300;

fn mac(key: &[u8], parts: &[&[u8]]) -> Option<Hmac<Sha256>> {
    let mut m = Hmac::<Sha256>::new_from_slice(key).ok()?;
    parts.iter().for_each(|p| m.update(p));
    Some(m)
}

/// GitHub: `X-Hub-Signature-256: sha256=<hex>`.
pub(crate) fn github(secret: &[u8], header: Option<&str>, body: &[u8]) -> bool {
    let Some(hex) = header.and_then(|h| h.strip_prefix("sha256=")) else { return false };
    let Some(given) = unhex(hex) else { return false };
    mac(secret, &[body]).is_some_and(|m| m.verify_slice(&given).is_ok())
}

/// Standard Webhooks: `webhook-id`, `webhook-timestamp` (Unix seconds) and `webhook-signature` (`v1,<base64>`, one or more).
/// A secret `whsec_<base64>` is decoded, any other is used as it is.
pub(crate) fn standard(
    secret: &[u8],
    id: Option<&str>,
    timestamp: Option<&str>,
    signature: Option<&str>,
    body: &[u8],
    now: i64,
) -> bool {
    let (Some(id), Some(timestamp), Some(signature)) = (id, timestamp, signature) else { return false };
    let fresh = timestamp.parse::<i64>().is_ok_and(|t| now.checked_sub(t).is_some_and(|d| d.abs() <= TOLERANCE));
    if !fresh || id.is_empty() || id.len() > 200 {
        return false;
    }
    let decoded = secret.strip_prefix(b"whsec_").and_then(|s| STANDARD.decode(s).ok());
    let key = decoded.as_deref().unwrap_or(secret);
    let Some(m) = mac(key, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]) else { return false };
    // A sender that changes keys sends one signature a key; a handful is enough.
    signature.split(' ').take(8).any(|s| {
        let given = s.strip_prefix("v1,").and_then(|s| STANDARD.decode(s).ok());
        given.is_some_and(|g| m.clone().verify_slice(&g).is_ok())
    })
}

fn unhex(s: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    (s.len() == 64).then_some(())?;
    s.as_bytes().chunks(2).map(|p| Some(digit(p[0])? * 16 + digit(p[1])?)).collect()
}

#[cfg(test)]
pub(crate) fn sign_standard(secret: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let m = mac(secret, &[id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body]).expect("key");
    format!("v1,{}", STANDARD.encode(m.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_refused() {
        let (secret, body, now) = (b"secret".as_slice(), b"{\"a\":1}".to_vec(), 1_700_000_000);
        let sig = sign_standard(secret, "id1", now, &body);
        let check = |id: &str, t: &str, s: &str, b: &[u8]| standard(secret, Some(id), Some(t), Some(s), b, now);
        assert!(check("id1", "1700000000", &sig, &body));
        assert!(check("id1", "1700000000", &format!("v1,AAAA {sig}"), &body));
        for i in 0..body.len() * 8 {
            let mut bad = body.clone();
            bad[i / 8] ^= 1 << (i % 8);
            assert!(!check("id1", "1700000000", &sig, &bad));
        }
        for i in 0..sig.len() {
            let mut bad = sig.clone().into_bytes();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            assert!(!check("id1", "1700000000", &String::from_utf8(bad).expect("ascii"), &body), "{i}");
        }
        assert!(!check("id2", "1700000000", &sig, &body));
        assert!(!check("id1", "1700000001", &sig, &body));
        for late in [now + 301, now - 301] {
            assert!(!standard(secret, Some("id1"), Some("1700000000"), Some(&sig), &body, late));
        }
        assert!(!standard(secret, None, Some("1700000000"), Some(&sig), &body, now));
    }

    #[test]
    fn the_encoded_secret_is_the_same_key() {
        let encoded = format!("whsec_{}", STANDARD.encode(b"secret"));
        let sig = sign_standard(b"secret", "i", 5, b"x");
        assert!(standard(encoded.as_bytes(), Some("i"), Some("5"), Some(&sig), b"x", 5));
    }

    #[test]
    fn githubs_form() {
        // The example of GitHub's own documentation.
        let h = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        assert!(github(b"It's a Secret to Everybody", Some(h), b"Hello, World!"));
        assert!(!github(b"It's a Secret to Everybody", Some(h), b"Hello, World?"));
        assert!(!github(b"It's a Secret to Everybody", Some(&h[..70]), b"Hello, World!"));
        assert!(!github(b"", None, b""));
    }
}
