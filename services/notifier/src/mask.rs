//! Webhook URLs and passwords are credentials: nothing that is stored, logged or shown may hold one. Pure.

use std::collections::BTreeMap;

/// The text without any secret, any part of a secret URL that could be its key, and any other URL.
pub(crate) fn mask(text: &str, secrets: &BTreeMap<String, String>) -> String {
    let mut out = text.to_owned();
    for secret in secrets.values().map(|s| s.trim()).filter(|s| !s.is_empty()) {
        out = out.replace(secret, "[secret]");
        // The host may be shown; what follows it is the credential.
        if let Some((_, rest)) = secret.split_once("://") {
            let after_host = rest.split_once(['/', '?']).map(|(_, r)| r).unwrap_or_default();
            for part in after_host.split(['/', '?', '&', '=', '#']).filter(|p| p.len() >= 8) {
                out = out.replace(part, "[secret]");
            }
        } else {
            for key in secret.split_whitespace().filter_map(|s| s.strip_prefix("whsec_")).filter(|k| !k.is_empty()) {
                out = out.replace(key, "[secret]");
            }
        }
    }
    for scheme in ["https://", "http://"] {
        while let Some(start) = out.find(scheme) {
            let end =
                out[start..].find(|c: char| c.is_whitespace() || "`\"')>".contains(c)).map_or(out.len(), |n| start + n);
            out.replace_range(start..end, "[address]");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_and_no_address_is_left() {
        let secrets = BTreeMap::from([
            (
                "u".to_owned(),
                "https://hooks.example.com/services/T0000000/B1111111/abcdefghijkl?key=zzzzzzzzzz\n".to_owned(),
            ),
            ("p".to_owned(), "hunter2!".to_owned()),
            ("h".to_owned(), "http://a.b/qqqqqqqq".to_owned()),
            ("s".to_owned(), "whsec_QUJDREVG".to_owned()),
        ]);
        for text in [
            "POST https://hooks.example.com/services/T0000000/B1111111/abcdefghijkl?key=zzzzzzzzzz failed",
            "token abcdefghijkl is not exist; key zzzzzzzzzz",
            "535 bad password hunter2! for x",
            "signature by QUJDREVG refused",
            "see (http://a.b/c?t=1), `https://x/y`",
            "short host key qqqqqqqq",
        ] {
            let m = mask(text, &secrets);
            for bad in ["abcdefghijkl", "zzzzzzzzzz", "T0000000", "hunter2", "QUJDREVG", "qqqqqqqq", "://"] {
                assert!(!m.contains(bad), "{m}");
            }
        }
        assert_eq!(mask("cannot connect to `hooks.example.com`", &secrets), "cannot connect to `hooks.example.com`");
        assert_eq!(mask("see (http://a.b/c?t=1), x", &secrets), "see ([address]), x");
    }
}
