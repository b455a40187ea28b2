//! Masking: secret values in a stream of bytes become `***`, in every form a program may well give them, also when a form
//! is split over pieces of the stream or broken by line ends.
//!
//! Line ends are left out when bytes and forms are compared, so Base64 and hex that a tool wraps, and values that a
//! terminal breaks, are found too. What may be the beginning of a form is held back until more bytes decide.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// What stands in the place of a secret.
pub const MASK: &[u8] = b"***";
/// Shorter values stand in too many texts by chance; they cannot be secrets.
pub const MIN_SECRET: usize = 4;
/// Longest secret.
pub const MAX_SECRET: usize = 32 * 1024;
/// Lines of a secret of many lines are masked by themselves from this length on.
const MIN_LINE: usize = 8;

/// Why a value cannot be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmaskable {
    #[error("a secret needs {MIN_SECRET} bytes or more besides line ends: a shorter one cannot be kept out of logs")]
    Short,
    #[error("a secret may have {MAX_SECRET} bytes at most")]
    Long,
    #[error("a secret must be a text in UTF-8 without U+0000, U+FDD0 and U+FDD1; store bytes as Base64")]
    NotText,
}

/// Whether a value can be kept out of logs.
pub fn check(value: &[u8]) -> Result<(), Unmaskable> {
    let text = std::str::from_utf8(value).map_err(|_| Unmaskable::NotText)?;
    if text.contains(['\0', '\u{FDD0}', '\u{FDD1}']) {
        return Err(Unmaskable::NotText);
    }
    if value.len() > MAX_SECRET {
        return Err(Unmaskable::Long);
    }
    if bare(text.trim().as_bytes()).len() < MIN_SECRET { Err(Unmaskable::Short) } else { Ok(()) }
}

/// The forms of some secrets. Cheap to clone.
#[derive(Clone, Default)]
pub struct Masker {
    forms: Arc<Forms>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Masker({} forms)", self.forms.all.len())
    }
}

#[derive(Default)]
struct Forms {
    /// Without line ends; longest first.
    all: Vec<Vec<u8>>,
    by_start: HashMap<[u8; MIN_SECRET], Vec<usize>>,
    /// Whether any form starts with these two bytes: most places are passed by this alone.
    starts: Vec<u64>,
}

impl Masker {
    pub fn new<'s>(secrets: impl IntoIterator<Item = &'s str>) -> Masker {
        let mut forms = BTreeSet::new();
        for s in secrets {
            forms_of(s, &mut forms);
        }
        let mut all: Vec<Vec<u8>> = forms.into_iter().filter(|f| f.len() >= MIN_SECRET).collect();
        all.sort_by_key(|f| std::cmp::Reverse(f.len()));
        let mut by_start: HashMap<_, Vec<usize>> = HashMap::new();
        let mut starts = vec![0; 1024];
        for (i, f) in all.iter().enumerate() {
            by_start.entry([f[0], f[1], f[2], f[3]]).or_default().push(i);
            let two = usize::from(f[0]) << 8 | usize::from(f[1]);
            starts[two / 64] |= 1 << (two % 64);
        }
        Masker { forms: Arc::new(Forms { all, by_start, starts }) }
    }

    pub fn is_empty(&self) -> bool {
        self.forms.all.is_empty()
    }

    /// Masks a stream from here on.
    pub fn stream(&self) -> MaskStream {
        MaskStream { forms: Arc::clone(&self.forms), held: Vec::new() }
    }

    pub fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut s = self.stream();
        let mut out = s.push(bytes);
        out.extend(s.finish());
        out
    }

    pub fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.bytes(text.as_bytes())).into_owned()
    }

    /// Masks every text and key of a value; a number that is a secret becomes a masked text.
    pub fn value(&self, value: &Value) -> Value {
        if self.is_empty() {
            return value.clone();
        }
        match value {
            Value::String(s) => Value::String(self.text(s)),
            Value::Array(l) => Value::Array(l.iter().map(|v| self.value(v)).collect()),
            Value::Object(m) => Value::Object(self.map(m)),
            Value::Number(n) => {
                let text = n.to_string();
                let masked = self.text(&text);
                if masked == text { value.clone() } else { Value::String(masked) }
            }
            Value::Bool(_) | Value::Null => value.clone(),
        }
    }

    /// [`Masker::value`] of a map.
    pub fn map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(k, v)| (self.text(k), self.value(v))).collect()
    }
}

/// Masks one stream.
pub struct MaskStream {
    forms: Arc<Forms>,
    held: Vec<u8>,
}

impl std::fmt::Debug for MaskStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MaskStream({} bytes held)", self.held.len())
    }
}

impl MaskStream {
    /// What of the stream so far is decided and was not given out yet.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.forms.all.is_empty() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        self.decide(false)
    }

    /// The rest.
    pub fn finish(&mut self) -> Vec<u8> {
        self.decide(true)
    }

    fn decide(&mut self, last: bool) -> Vec<u8> {
        let (text, places): (Vec<u8>, Vec<usize>) =
            self.held.iter().enumerate().filter(|(_, b)| !is_line_end(**b)).map(|(i, b)| (*b, i)).unzip();
        let mut out = Vec::with_capacity(self.held.len());
        let mut given = 0;
        let mut at = 0;
        let mut keep_from = self.held.len();
        while at < text.len() {
            let found = match self.forms.at(&text[at..], last) {
                At::None => {
                    at += 1;
                    continue;
                }
                At::Undecided => None,
                // A form that begins within this one and ends after it is masked with it.
                At::Form(len) => self.spread(&text, at, at + len, last),
            };
            let Some(end) = found else {
                keep_from = places[at];
                break;
            };
            out.extend_from_slice(&self.held[given..places[at]]);
            out.extend_from_slice(MASK);
            given = places[end - 1] + 1;
            at = end;
        }
        if given < keep_from {
            out.extend_from_slice(&self.held[given..keep_from]);
        }
        self.held.drain(..keep_from.max(given));
        out
    }

    /// Where the run of forms ends that begins at `from`; `None` when more bytes decide that.
    fn spread(&self, text: &[u8], from: usize, mut end: usize, last: bool) -> Option<usize> {
        let mut at = from + 1;
        while at < end {
            match self.forms.at(&text[at..], last) {
                At::None => {}
                At::Undecided => return None,
                At::Form(len) => end = end.max(at + len),
            }
            at += 1;
        }
        Some(end)
    }
}

enum At {
    None,
    /// The text ends before it is a form, or before it is no longer one.
    Undecided,
    Form(usize),
}

impl Forms {
    /// The longest form that the text begins with.
    fn at(&self, text: &[u8], last: bool) -> At {
        if let [a, b, ..] = text {
            let two = usize::from(*a) << 8 | usize::from(*b);
            if self.starts[two / 64] & (1 << (two % 64)) == 0 {
                return At::None;
            }
        }
        let Some(start) = text.first_chunk::<MIN_SECRET>() else {
            let open = !last && self.all.iter().any(|f| f.starts_with(text));
            return if open { At::Undecided } else { At::None };
        };
        for i in self.by_start.get(start).into_iter().flatten() {
            let form = &self.all[*i];
            if text.starts_with(form) {
                return At::Form(form.len());
            }
            // Longest first: what is still open is longer than any form that fits.
            if !last && form.starts_with(text) {
                return At::Undecided;
            }
        }
        At::None
    }
}

fn is_line_end(b: u8) -> bool {
    matches!(b, b'\n' | b'\r')
}

fn bare(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|b| !is_line_end(*b)).collect()
}

fn forms_of(secret: &str, out: &mut BTreeSet<Vec<u8>>) {
    plain_forms(secret, out);
    let trimmed = secret.trim();
    if trimmed != secret {
        plain_forms(trimmed, out);
    }
    for line in secret.lines().map(str::trim).filter(|l| l.len() >= MIN_LINE && l.len() < secret.len()) {
        plain_forms(line, out);
    }
}

fn plain_forms(s: &str, out: &mut BTreeSet<Vec<u8>>) {
    let mut add = |form: &[u8]| {
        out.insert(bare(form));
    };
    let bytes = s.as_bytes();
    add(bytes);
    base64_forms(bytes, &mut add);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    add(hex.as_bytes());
    add(hex.to_uppercase().as_bytes());
    url_forms(s, &mut add);
    escaped_forms(s, &mut add);
}

/// The whole, and what is the same wherever the value stands in something longer: one text for each place a value can
/// begin within three bytes, without the characters that hold bits of the neighbours.
fn base64_forms(bytes: &[u8], add: &mut impl FnMut(&[u8])) {
    for engine in [&STANDARD, &URL_SAFE] {
        let whole = engine.encode(bytes);
        add(whole.as_bytes());
        add(whole.trim_end_matches('=').as_bytes());
        for (before, first) in [(0, 0), (1, 2), (2, 3)] {
            let mut shifted = vec![0; before];
            shifted.extend_from_slice(bytes);
            let end = shifted.len() * 8 / 6;
            let text = engine.encode(&shifted);
            if let Some(part) = text.as_bytes().get(first..end) {
                add(part);
            }
        }
    }
}

/// As URL encoders write it: they differ in what they leave alone and in the letters of their hex digits.
fn url_forms(s: &str, add: &mut impl FnMut(&[u8])) {
    let sets = ["-._~", "-._~/", "-._~!'()*", "-._~!'()*/", "-._*", "-._", "-_", "_", "/", ""];
    for alone in sets.into_iter().map(Some).chain([None]) {
        for plus in [false, true] {
            let mut text = String::new();
            for b in s.bytes() {
                let c = char::from(b);
                if alone.is_some_and(|a| c.is_ascii_alphanumeric() || a.contains(c)) {
                    text.push(c);
                } else if plus && c == ' ' {
                    text.push('+');
                } else {
                    text.push_str(&format!("%{b:02X}"));
                }
            }
            add(text.as_bytes());
            add(lower_escapes(&text).as_bytes());
        }
    }
}

/// `%2F` to `%2f`.
fn lower_escapes(text: &str) -> String {
    let mut left = 0;
    text.chars()
        .map(|c| match c {
            '%' => {
                left = 2;
                c
            }
            c if left > 0 => {
                left -= 1;
                c.to_ascii_lowercase()
            }
            c => c,
        })
        .collect()
}

/// As in JSON, in source text, in HTML and in what a shell shows of a command.
fn escaped_forms(s: &str, add: &mut impl FnMut(&[u8])) {
    let json = Value::String(s.to_owned()).to_string();
    let json = json.trim_start_matches('"').strip_suffix('"').unwrap_or_default();
    for json in [json.to_owned(), json.replace('/', "\\/")] {
        add(json.as_bytes());
        for upper in [false, true] {
            add(ascii_escapes(&json, upper).as_bytes());
        }
    }
    add(s.escape_debug().to_string().as_bytes());
    add(s.escape_default().to_string().as_bytes());
    add(s.replace('\'', "'\\''").as_bytes());
    add(s.replace('\'', "'\"'\"'").as_bytes());
    let ansi =
        s.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
    add(ansi.as_bytes());
    for quote in ["&#39;", "&#x27;", "&apos;", "'"] {
        let html = s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', quote);
        add(html.as_bytes());
        add(html.replace('"', "&quot;").as_bytes());
        add(html.replace('"', "&#34;").as_bytes());
    }
}

/// Everything beyond ASCII as `\uXXXX`.
fn ascii_escapes(json: &str, upper: bool) -> String {
    let mut out = String::new();
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
        }
    }
    out
}

#[cfg(test)]
mod tests;
