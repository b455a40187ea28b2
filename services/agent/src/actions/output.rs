//! The file a script may write its outputs to (`$WINDLASS_OUTPUT`): lines `key=value`, `key<<END` up to a line `END` for
//! values of many lines, or one JSON object.

use crate::files;
use serde_json::{Map, Value};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use windlass_domain::{mask::Masker, reference};

/// Name of the environment variable.
pub(crate) const VARIABLE: &str = "WINDLASS_OUTPUT";
const MAX_FILE: u64 = 64 * 1024;
const MAX_KEYS: usize = 64;
const MAX_VALUE: usize = 4 * 1024;
const MAX_KEY: usize = 63;

/// An empty file that only the step's user can write.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
    /// Made for this file alone, where the user can reach it.
    dir: Option<PathBuf>,
    owner: u32,
}

impl OutputFile {
    /// In the task's directory; for another user, who cannot read that, in one of its own.
    pub(super) fn create(task: &Path, index: u32, user: Option<(u32, u32)>) -> io::Result<OutputFile> {
        let own = rustix::process::geteuid().as_raw();
        let file = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let Some((uid, gid)) = user else {
            let path = task.join(format!("output-{index}"));
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            file(&path)?;
            return Ok(OutputFile { path, dir: None, owner: own });
        };
        let dir = std::env::temp_dir().join(format!("windlass-output-{}", files::random_hex(12)));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let path = dir.join("output");
        file(&path)?;
        let owned = std::os::unix::fs::chown(&path, Some(uid), Some(gid))
            .and_then(|()| std::os::unix::fs::chown(&dir, Some(uid), Some(gid)));
        let out = OutputFile { path, dir: Some(dir), owner: uid };
        owned.map(|()| out)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was written, masked.
    pub(super) fn read(&self, masker: &Masker) -> Result<Map<String, Value>, String> {
        let text = self.bytes().map_err(|e| format!("cannot read what the script wrote to ${VARIABLE}: {e}"))?;
        let found = parse(&text).map_err(|e| format!("what the script wrote to ${VARIABLE} cannot be used: {e}"))?;
        let masked = masker.map(&found);
        if found.keys().any(|k| !masked.contains_key(k)) {
            return Err(format!("what the script wrote to ${VARIABLE} cannot be used: a key holds a secret"));
        }
        let Value::Object(clean) = reference::clean(Value::Object(masked)) else { return Ok(Map::new()) };
        Ok(clean)
    }

    /// The script could put anything in the file's place: a link to something its user may not read is not followed.
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut f = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            f => f?,
        };
        let meta = f.metadata()?;
        if !meta.is_file() || meta.uid() != self.owner {
            return Err(io::Error::other("it is not a file of the step's own user any more"));
        }
        if meta.len() > MAX_FILE {
            return Err(io::Error::other(format!("it has {} bytes, {MAX_FILE} are allowed", meta.len())));
        }
        let mut out = Vec::new();
        f.by_ref().take(MAX_FILE).read_to_end(&mut out)?;
        Ok(out)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // Left behind it would be an empty or forgotten file in a directory that goes with the task.
        let _ = match &self.dir {
            Some(d) => fs::remove_dir_all(d),
            None => fs::remove_file(&self.path),
        };
    }
}

/// What the bytes of such a file say; the error names the line.
pub(super) fn parse(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let out = if text.trim_start().starts_with('{') { json(text)? } else { lines(text)? };
    if out.len() > MAX_KEYS {
        return Err(format!("it has {} keys, {MAX_KEYS} are allowed", out.len()));
    }
    for (key, value) in &out {
        let good = key.len() <= MAX_KEY
            && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !good {
            return Err(format!("the key {key:?} must match [A-Za-z_][A-Za-z0-9_-]{{0,62}}"));
        }
        let size = value.as_str().map_or_else(|| value.to_string().len(), str::len);
        if size > MAX_VALUE {
            return Err(format!("the value of {key} has {size} bytes, {MAX_VALUE} are allowed"));
        }
    }
    Ok(out)
}

fn json(text: &str) -> Result<Map<String, Value>, String> {
    // The parser's own words could quote a value.
    serde_json::from_str(text).map_err(|e| format!("line {}, column {}: it is not a JSON object", e.line(), e.column()))
}

fn lines(text: &str) -> Result<Map<String, Value>, String> {
    let mut out = Map::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.trim().is_empty() {
            continue;
        }
        let (key, value) = match (line.find('='), line.find("<<")) {
            (eq, Some(at)) if eq.is_none_or(|e| at < e) => {
                let (key, end) = (&line[..at], line[at + 2..].trim());
                if end.is_empty() {
                    return Err(format!("line {number}: name the line that ends the value, as in `key<<END`"));
                }
                let mut value: Vec<&str> = Vec::new();
                loop {
                    match lines.next() {
                        Some((l, _)) if l == end => break,
                        Some((l, _)) => value.push(l),
                        None => return Err(format!("line {number}: the value has no closing line `{end}`")),
                    }
                }
                (key, value.join("\n"))
            }
            (Some(at), _) => (&line[..at], line[at + 1..].to_owned()),
            (None, _) => return Err(format!("line {number} is neither `key=value` nor `key<<END`")),
        };
        out.insert(key.trim().to_owned(), Value::String(value));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_blocks_and_json_are_read() {
        let text = "a=1\n\nb==x=y\nlong<<EOF\none\n two=\nEOF\na=2\nempty=\n";
        let want = json!({ "a": "2", "b": "=x=y", "long": "one\n two=", "empty": "" });
        assert_eq!(Value::Object(parse(text.as_bytes()).expect("reads")), want);
        let object = parse(b"{\"n\": 5, \"l\": [1, {\"x\": null}]}").expect("reads");
        assert_eq!(Value::Object(object), json!({ "n": 5, "l": [1, { "x": null }] }));
        assert!(parse(b"").expect("reads").is_empty());
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let many: String = (0..65).map(|i| format!("k{i}=v\n")).collect();
        let long = format!("k={}\n", "x".repeat(MAX_VALUE + 1));
        for (text, part) in [
            ("novalue\n", "line 1 is neither"),
            ("k<<EOF\nx\n", "no closing line `EOF`"),
            ("k<<\n", "name the line"),
            ("1k=v\n", "must match"),
            ("k k=v\n", "must match"),
            (many.as_str(), "65 keys"),
            (long.as_str(), "4097 bytes"),
            ("{\"a\": hunter2}", "line 1, column 7: it is not a JSON object"),
        ] {
            let e = parse(text.as_bytes()).expect_err(part);
            assert!(e.contains(part) && !e.contains("hunter2"), "{e}");
        }
        assert!(parse(&[0xff]).expect_err("bytes").contains("UTF-8"));
    }

    #[test]
    fn outputs_are_masked_and_a_link_is_not_followed() {
        let d = tempfile::tempdir().expect("dir");
        let f = OutputFile::create(d.path(), 0, None).expect("creates");
        fs::write(f.path(), "a=x hunter22 y\nm=\u{FDD0}secret:t\u{FDD1}\n").expect("writes");
        let m = Masker::new(["hunter22"]);
        assert_eq!(
            Value::Object(f.read(&m).expect("reads")),
            json!({ "a": "x *** y", "m": "\u{FFFD}secret:t\u{FFFD}" })
        );
        fs::write(f.path(), "hunter22=1\n").expect("writes");
        assert!(f.read(&m).expect_err("a key").contains("a key holds a secret"));
        fs::write(f.path(), vec![b'x'; 70_000]).expect("writes");
        assert!(f.read(&m).expect_err("long").contains("70000 bytes"));
        fs::remove_file(f.path()).expect("removes");
        assert!(f.read(&m).expect("no file, no outputs").is_empty());
        let other = d.path().join("other");
        fs::write(&other, "a=1\n").expect("writes");
        std::os::unix::fs::symlink(&other, f.path()).expect("links");
        assert!(f.read(&m).is_err());
    }
}
