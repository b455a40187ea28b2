//! What the agent reads: packages, its journal, the outputs of scripts, load balancer files; and what it keeps from logs.

#[path = "../../../services/agent/src/actions/archive.rs"]
#[allow(dead_code, unreachable_pub, reason = "the agent uses all of it")]
mod archives;
#[path = "../../../services/agent/src/journal.rs"]
#[allow(dead_code, unreachable_pub, reason = "the agent uses all of it")]
mod journals;
#[path = "../../../services/agent/src/actions/output.rs"]
#[allow(dead_code, unreachable_pub, reason = "the agent uses all of it")]
mod output;
#[path = "../../../services/agent/src/actions/lb/upstream.rs"]
#[allow(dead_code, reason = "the agent uses all of it")]
mod upstreams;

use crate::{choice, plant::planted, text};
use archives::{Limits, unpack};
use cap_std::{ambient_authority, fs::Dir};
use flate2::{Compression, write::GzEncoder};
use journals::{Entry, Journal, JournalError, Record, peek};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Component, Path},
    sync::atomic::AtomicBool,
};
use windlass_domain::mask::{MASK, Masker, check};

const LIMITS: Limits =
    Limits { bytes: 64 << 10, entries: 64, ratio: 200, ratio_floor: 32 << 10, depth: 8, path_bytes: 256 };

/// First byte: the rest is a `.tar.gz`, or a tar that is packed here, or entries in short (see [`entries`]).
///
/// Whatever comes of it, nothing outside the directory is made, changed or linked to, no link leads out of it, nothing in it
/// is set-uid or a device, and there is no more of it than the limits say.
pub(crate) fn archive(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let packed = match how % 3 {
        0 => rest.to_vec(),
        1 => gzip(rest),
        _ => gzip(&entries(rest)),
    };
    let tmp = tempfile::tempdir().expect("a directory");
    let (canary, to) = (tmp.path().join("canary"), tmp.path().join("in"));
    fs::write(&canary, "whole").expect("writes");
    fs::create_dir(&to).expect("a directory");
    let dir = Dir::open_ambient_dir(&to, ambient_authority()).expect("opens");
    let done = unpack(&packed[..], packed.len() as u64, &dir, LIMITS, &AtomicBool::new(false));
    // The plant: names are put together without being looked at.
    if planted() && how % 3 == 2 {
        follow(&entries(rest), &to);
    }
    let mut around: Vec<_> =
        fs::read_dir(tmp.path()).expect("a directory").map(|e| e.expect("entry").file_name()).collect();
    around.sort();
    assert_eq!(around, ["canary", "in"]);
    assert_eq!(fs::read_to_string(&canary).expect("reads"), "whole");
    assert_eq!(fs::metadata(&canary).expect("is there").nlink(), 1, "a hard link leads out");
    let (mut bytes, mut files) = (0, 0);
    inside(&to, 0, &mut bytes, &mut files);
    assert!(bytes <= LIMITS.bytes && files <= LIMITS.entries * 9, "{bytes} bytes in {files} files");
    if let Ok(d) = done {
        assert!(d.entries <= LIMITS.entries && d.bytes <= LIMITS.bytes);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).expect("into memory");
    gz.finish().expect("into memory")
}

/// Entries in short, so that the search need not find checksums: kind, mode (two octal digits' worth), length of name and
/// name, length of link and link, size of data in units of 16 bytes.
fn entries(mut rest: &[u8]) -> Vec<u8> {
    const KINDS: &[u8] = b"05123467xgLKS\0V";
    let mut out = Vec::new();
    let mut some = |n: usize| {
        let (a, b) = rest.split_at(n.min(rest.len()));
        rest = b;
        a
    };
    while let [kind, mode, length] = some(3) {
        let name = some(usize::from(*length));
        let link_length = some(1).first().copied().unwrap_or_default();
        let link = some(usize::from(link_length));
        let size = usize::from(some(1).first().copied().unwrap_or_default()) * 16;
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        if name.len() > 100 {
            block(&mut out, b"././@LongLink", b'L', 0, b"", name);
        }
        if link.len() > 100 {
            block(&mut out, b"././@LongLink", b'K', 0, b"", link);
        }
        // The names and links of extended headers are data.
        let data = if b"xgLK".contains(&kind) { link.to_vec() } else { vec![b'd'; size] };
        block(&mut out, name, kind, u32::from(*mode) << 4 | 0o6400, link, &data);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn block(out: &mut Vec<u8>, name: &[u8], kind: u8, mode: u32, link: &[u8], data: &[u8]) {
    let mut h = tar::Header::new_gnu();
    let put = |to: &mut [u8], from: &[u8]| {
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
    };
    put(&mut h.as_old_mut().name, name);
    put(&mut h.as_old_mut().linkname, link);
    h.set_entry_type(tar::EntryType::new(kind));
    h.set_mode(mode);
    h.set_size(data.len() as u64);
    h.set_cksum();
    out.extend_from_slice(h.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// An unpacker that trusts: only files, and only one step up, so that the plant harms nothing.
fn follow(tar: &[u8], to: &Path) {
    let mut tar = tar::Archive::new(tar);
    for e in tar.entries().into_iter().flatten().flatten() {
        let name = e.path().map(|p| p.into_owned()).unwrap_or_default();
        let parts: Vec<Component<'_>> = name.components().collect();
        if let [Component::ParentDir, Component::Normal(n)] = parts.as_slice() {
            let _ = fs::write(to.join("..").join(n), "out");
        }
    }
}

fn inside(dir: &Path, depth: usize, bytes: &mut u64, files: &mut u64) {
    for e in fs::read_dir(dir).expect("a directory").map(|e| e.expect("entry").path()) {
        let meta = fs::symlink_metadata(&e).expect("entry");
        *files += 1;
        if meta.is_symlink() {
            let target = fs::read_link(&e).expect("a link");
            let parts: Vec<Component<'_>> = target.components().filter(|c| *c != Component::CurDir).collect();
            let up = parts.iter().take_while(|c| **c == Component::ParentDir).count();
            let down_first = parts[up..].contains(&Component::ParentDir);
            assert!(
                target.is_relative() && up <= depth && !down_first,
                "{} leads to {}",
                e.display(),
                target.display()
            );
            continue;
        }
        assert!(meta.is_dir() || meta.is_file(), "{} is no file", e.display());
        assert_eq!(meta.permissions().mode() & 0o7000, 0, "{}", e.display());
        if meta.is_dir() {
            inside(&e, depth + 1, bytes, files);
        } else {
            *bytes += meta.len();
        }
    }
}

/// First byte: the rest is a journal's file; or payloads, a line each, that are framed here, with the last bytes torn off.
///
/// It opens or is refused, never half; opened again it holds the same; what was framed whole is all there; and what is
/// appended after a torn tail is found.
pub(crate) fn journal(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let framed: Vec<&[u8]> = if how & 1 == 1 { rest.split(|b| *b == b'\n').collect() } else { vec![] };
    let torn = usize::from(how >> 2);
    let mut file = rest.to_vec();
    if how & 1 == 1 {
        file = framed.iter().flat_map(|p| record(p)).collect();
        file.truncate(file.len() - torn.min(file.len()));
    }
    let now = "2026-11-21T00:00:00Z".parse().expect("a time");
    let tmp = tempfile::tempdir().expect("a directory");
    let path = tmp.path().join("journal");
    fs::write(&path, &file).expect("writes");
    let seen = match peek(&path) {
        Ok(seen) => seen,
        Err(JournalError::Corrupt { offset, .. }) => {
            assert!(offset as usize <= file.len());
            assert!(Journal::open(&path, "x", now).is_err());
            return assert_eq!(fs::read(&path).expect("reads"), file, "a refused journal is left as it is");
        }
        Err(e) => panic!("{e}"),
    };
    if how & 1 == 1 && torn == 0 {
        let good: Vec<Entry> = framed.iter().map(|p| serde_json::from_slice(p).expect("it was taken")).collect();
        // The plant: the last record of a journal is taken for torn.
        assert_eq!(seen.len() - usize::from(planted() && seen.len() > 1), good.len());
        assert_eq!(seen, good);
    }
    // Opening syncs; the search has little time for that.
    if how & 2 == 0 {
        return;
    }
    let Ok((mut j, opened)) = Journal::open(&path, "x", now) else {
        return assert!(!seen.is_empty(), "only a journal without its first record is refused here");
    };
    assert!(seen.is_empty() || opened == seen);
    if j.seq() < u64::MAX {
        let more = j.append(vec![Record::Known { tasks: vec![] }], now).expect("appends");
        let again = Journal::open(&path, "y", now).expect("its own").1;
        assert_eq!(again, [opened, more].concat());
    }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_le_bytes();
    let sums = [crc32c::crc32c(&length), crc32c::crc32c(payload)].map(u32::to_le_bytes).concat();
    [&length[..], &sums, payload].concat()
}

/// The bytes are what a script wrote to its output file. Of what is taken keys are names, and each value is in the text.
pub(crate) fn outputs(bytes: &[u8]) {
    let Ok(found) = output::parse(bytes) else { return };
    let source = text(bytes).expect("only text is taken");
    assert!(found.len() <= 64);
    for (k, v) in &found {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(!k.is_empty() && k.len() < 64 && k.chars().all(name), "{k:?}");
        assert!(v.to_string().len() <= 32 << 10);
        if let (Value::String(v), false) = (v, source.trim_start().starts_with('{')) {
            // The plant: values are trimmed.
            let v = if planted() { v.trim() } else { v };
            assert!(v.lines().all(|l| source.contains(l)), "{v:?}");
            assert!(v.contains('\n') || source.lines().any(|l| ends(l, k, v)), "{k} = {v:?}");
        }
    }
}

/// `key=value`, or a line of a longer value.
fn ends(line: &str, key: &str, value: &str) -> bool {
    line == value || line.split_once('=').is_some_and(|(k, v)| k.trim() == key && v == value) || value.is_empty()
}

/// Up to the first line end a member, then an upstream file. Taking the member off and on again gives the file's meaning
/// back, and no line without `server` is touched.
pub(crate) fn upstream(bytes: &[u8]) {
    let Some((member, file)) = text(bytes).and_then(|t| t.split_once('\n')) else { return };
    let read = |t: &str| {
        let u = upstreams::Upstream::parse(t, member, Some(80)).ok()?;
        Some((u.address.clone(), u.down, u.others_up, u.members, u.with(true), u.with(false)))
    };
    let Some((address, _, others, members, off, on)) = read(file) else { return };
    assert!(others <= members);
    // The plant: a line with a weight is not turned.
    let off = if planted() && file.contains("weight=") { on.clone() } else { off };
    for (turned, wanted) in [(off, true), (on, false)] {
        let again = read(&turned).unwrap_or_else(|| panic!("its own file is not read:\n{turned}"));
        assert_eq!((&again.0, again.1, again.2, again.3), (&address, wanted, others, members), "{turned}");
        let others_of = |t: &str| t.lines().filter(|l| !l.contains("server")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(others_of(&turned), others_of(file));
    }
}

/// First byte: size of the pieces and of the secret. Then the secret, then a stream.
///
/// The stream comes out the same however it is cut; the secret is not in it, nor its hex or Base64; and a stream without it
/// is not changed.
pub(crate) fn mask(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let length = (usize::from(how >> 3) + 4).min(rest.len());
    let (secret, stream) = rest.split_at(length);
    let (Some(secret), size) = (text(secret), usize::from(how & 7) + 1) else { return };
    if check(secret.as_bytes()).is_err() {
        return;
    }
    let masker = Masker::new([secret]);
    let whole = masker.bytes(stream);
    let mut s = masker.stream();
    let mut cut: Vec<u8> = Vec::new();
    for p in stream.chunks(size) {
        // The plant: each piece by itself.
        cut.extend(if planted() { masker.bytes(p) } else { s.push(p) });
    }
    cut.extend(s.finish());
    assert_eq!(String::from_utf8_lossy(&cut), String::from_utf8_lossy(&whole), "pieces of {size}");
    let bare = |b: &[u8]| b.iter().copied().filter(|b| !b"\r\n".contains(b)).collect::<Vec<u8>>();
    let (before, after) = (bare(stream), bare(&whole));
    let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, secret);
    for form in [bare(secret.as_bytes()), hex.into_bytes(), base64.into_bytes()] {
        let has = |b: &[u8]| b.windows(form.len()).any(|w| w == form);
        // A secret with stars can come to be where three of them were put; that one was not in the stream.
        assert!(!has(&after) || form.contains(&b'*'), "a form is left");
        assert!(!has(&before) || whole.windows(MASK.len()).any(|w| w == MASK));
    }
    assert!(whole == stream || whole.windows(MASK.len()).any(|w| w == MASK));
}
