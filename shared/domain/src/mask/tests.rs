//! Whatever form a secret takes and however the stream is cut, the output does not hold it, and holds all the rest.

use super::*;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

const HARD: [&str; 6] = [
    "hunter2!",
    "it's \"quoted\" \\ and / + spaced",
    "-----BEGIN KEY-----\nabcdefgh/+ijk\nlmnopqrstuvw\n-----END KEY-----\n",
    "päßwörd-ключ-🔑",
    "a&b<c>d'e\"f",
    "12345678",
];

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

/// What programs make of a value, by other code than the masker's.
fn shown(s: &str) -> Vec<(&'static str, String)> {
    let url: String = reference_url(s);
    vec![
        ("raw", s.to_owned()),
        ("base64", STANDARD.encode(s)),
        ("base64 without padding", STANDARD_NO_PAD.encode(s)),
        ("base64url", URL_SAFE_NO_PAD.encode(s)),
        ("hex", hex(s.as_bytes())),
        ("HEX", hex(s.as_bytes()).to_uppercase()),
        ("url", url),
        ("json", serde_json::to_string(s).expect("json").trim_matches('"').to_owned()),
        ("debug", format!("{s:?}")[1..format!("{s:?}").len() - 1].to_owned()),
    ]
}

fn reference_url(s: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    s.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn masked_in_pieces(m: &Masker, text: &[u8], size: usize) -> Vec<u8> {
    let mut s = m.stream();
    let mut out: Vec<u8> = text.chunks(size).flat_map(|c| s.push(c)).collect();
    out.extend(s.finish());
    out
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn every_form_is_masked_however_the_stream_is_cut() {
    for secret in HARD {
        let m = Masker::new([secret]);
        for (name, form) in shown(secret) {
            let text = format!("before [{form}] after\n");
            for size in [1, 2, 3, 7, 1000] {
                let out = masked_in_pieces(&m, text.as_bytes(), size);
                let shown = String::from_utf8_lossy(&out).into_owned();
                assert!(!holds(&out, form.as_bytes()), "{name} of {secret:?} by {size}: {shown}");
                assert!(shown.starts_with("before [") && shown.ends_with("] after\n"), "{name}, {size}: {shown}");
                assert!(shown.contains("***"), "{name}, {size}: {shown}");
            }
        }
    }
}

#[test]
fn base64_is_masked_inside_longer_base64_and_when_wrapped() {
    let secret = HARD[2];
    let m = Masker::new([secret]);
    let core: Vec<String> =
        (0..3).map(|k| STANDARD.encode([vec![0; k], secret.as_bytes().to_vec()].concat())).collect();
    for before in 0..6 {
        let text = format!("{}{secret}and more", "x".repeat(before));
        for width in [20, 64, 76, 10_000] {
            let encoded = STANDARD.encode(&text);
            let wrapped: Vec<&str> =
                encoded.as_bytes().chunks(width).map(|c| std::str::from_utf8(c).expect("ascii")).collect();
            let out = m.text(&wrapped.join("\r\n")).replace("\r\n", "");
            for part in core.iter().flat_map(|c| c.as_bytes().windows(16)).skip(4) {
                let middle = secret.len() * 4 / 3;
                if encoded.as_bytes()[..middle].windows(16).any(|w| w == part) {
                    assert!(!holds(out.as_bytes(), part), "{before} {width}: {out}");
                }
            }
        }
    }
}

#[test]
fn lines_of_a_long_secret_are_masked_by_themselves() {
    let m = Masker::new([HARD[2]]);
    assert_eq!(m.text("  | abcdefgh/+ijk\n  | lmnopqrstuvw\n"), "  | ***\n  | ***\n");
}

#[test]
fn overlapping_secrets_are_masked_as_one() {
    let m = Masker::new(["abcdef", "defghi", "abcdefxyz"]);
    assert_eq!(m.text("1 abcdefghi 2 abcdefxyz 3 abcdefxy"), "1 *** 2 *** 3 ***xy");
    for size in 1..12 {
        assert_eq!(masked_in_pieces(&m, b"1 abcdefghi 2", size), b"1 *** 2", "{size}");
    }
}

#[test]
fn what_may_begin_a_secret_waits_and_nothing_is_lost() {
    let m = Masker::new(["hunter2!"]);
    let mut s = m.stream();
    assert_eq!(s.push(b"the hunt"), b"the ");
    assert_eq!(s.push(b"ing\nhun"), b"hunting\n");
    assert_eq!(s.push(b"\nter2!\n"), b"***\n");
    assert_eq!(s.push(b"hunter2"), b"");
    assert_eq!(s.finish(), b"hunter2");
    assert_eq!(Masker::default().stream().push(b"anything"), b"anything");
}

#[test]
fn values_are_masked_within_json() {
    let m = Masker::new(["12345678", "topsecret"]);
    let v = serde_json::json!({ "a": 12_345_678, "topsecret": ["x topsecret", 5, true], "b": null });
    assert_eq!(m.value(&v), serde_json::json!({ "a": "***", "***": ["x ***", 5, true], "b": null }));
}

#[test]
fn what_cannot_be_masked_is_no_secret() {
    assert_eq!(check(b"abc"), Err(Unmaskable::Short));
    assert_eq!(check(b"a\n\nb\n\n"), Err(Unmaskable::Short));
    assert_eq!(check(&[0xff; 8]), Err(Unmaskable::NotText));
    assert_eq!(check("x\u{FDD0}yzzz".as_bytes()), Err(Unmaskable::NotText));
    assert_eq!(check(&vec![b'x'; MAX_SECRET + 1]), Err(Unmaskable::Long));
    assert_eq!(check(b"abcd"), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_cut_and_no_neighbour_lets_a_secret_through(
        secrets in prop::collection::vec("[ab\"\\n é]{4,9}", 1..4),
        words in prop::collection::vec(prop_oneof![Just(None), "[ab\"\\n é]{0,5}".prop_map(Some)], 1..8),
        pick in any::<prop::sample::Index>(),
        size in 1usize..9,
    ) {
        let secrets: Vec<String> = secrets.into_iter().filter(|s| check(s.as_bytes()).is_ok()).collect();
        prop_assume!(!secrets.is_empty());
        let m = Masker::new(secrets.iter().map(String::as_str));
        let text: String = words.iter().map(|w| w.clone().unwrap_or_else(|| pick.get(&secrets).clone())).collect();
        let out = masked_in_pieces(&m, text.as_bytes(), size);
        prop_assert_eq!(&out, &m.bytes(text.as_bytes()));
        for s in &secrets {
            prop_assert!(!holds(&out, s.as_bytes()), "{:?} in {:?}", s, String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn text_without_secrets_is_left_as_it_is(text in "[c-z \\n]{0,200}", size in 1usize..20) {
        let m = Masker::new(["abab\nab", "ba\"ba"]);
        let forms = m.forms.all.iter().any(|f| holds(&bare(text.as_bytes()), f));
        prop_assume!(!forms);
        prop_assert_eq!(masked_in_pieces(&m, text.as_bytes(), size), text.as_bytes());
    }
}
