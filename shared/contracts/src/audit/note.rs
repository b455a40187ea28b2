//! Checkpoints as C2SP signed notes (`c2sp.org/tlog-checkpoint`, `c2sp.org/signed-note`), so that any transparency tool
//! and any outside witness can read them.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, VerifyingKey};
use nkeys::KeyPair;
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};
use windlass_domain::merkle::Hash;

/// Signature type of plain Ed25519 in signed notes.
const ED25519: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error(
        "not a public key of the audit trail: it has the form <name>+<8 hex digits>+<base64>, as `GET /audit/key` gives it"
    )]
    Key,
    #[error("not a checkpoint: it has an origin, a size and a root, an empty line and signature lines")]
    Shape,
    #[error("the checkpoint is not signed by {0}")]
    Unsigned(String),
    #[error("the checkpoint's signature by {0} does not fit its text")]
    Signature(String),
    #[error("the checkpoint is of the log {found:?}, the key is of {expected:?}")]
    Origin { found: String, expected: String },
    #[error("the signing key cannot sign")]
    CannotSign,
}

/// The public key of a trail; its text form is the `vkey` of signed notes. The name is the trail's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// The public half of a signing key, under the trail's origin.
    pub fn of(origin: &str, key: &KeyPair) -> Result<PublicKey, NoteError> {
        let (_, raw) = nkeys::from_public_key(&key.public_key()).map_err(|_| NoteError::Key)?;
        let key = VerifyingKey::from_bytes(&raw).map_err(|_| NoteError::Key)?;
        if is_name(origin) { Ok(PublicKey { name: origin.into(), key }) } else { Err(NoteError::Key) }
    }

    /// The trail's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> [u8; 4] {
        let mut h = Sha256::new();
        h.update(self.name.as_bytes());
        h.update([b'\n', ED25519]);
        h.update(self.key.as_bytes());
        let h: [u8; 32] = h.finalize().into();
        [h[0], h[1], h[2], h[3]]
    }
}

fn is_name(s: &str) -> bool {
    !s.is_empty() && !s.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut raw = vec![ED25519];
        raw.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, u32::from_be_bytes(self.id()), BASE64.encode(raw))
    }
}

impl FromStr for PublicKey {
    type Err = NoteError;
    fn from_str(s: &str) -> Result<Self, NoteError> {
        let mut parts = s.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(raw)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let raw = BASE64.decode(raw).map_err(|_| NoteError::Key)?;
        let [ED25519, raw @ ..] = raw.as_slice() else { return Err(NoteError::Key) };
        let raw: [u8; 32] = raw.try_into().map_err(|_| NoteError::Key)?;
        let key = VerifyingKey::from_bytes(&raw).map_err(|_| NoteError::Key)?;
        let key = PublicKey { name: name.into(), key };
        let good = is_name(name) && id == format!("{:08x}", u32::from_be_bytes(key.id()));
        if good { Ok(key) } else { Err(NoteError::Key) }
    }
}

/// What a checkpoint says: the tree of `size` leaves has this root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

impl Checkpoint {
    fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.as_bytes()))
    }

    /// The signed note.
    pub fn sign(&self, key: &KeyPair) -> Result<String, NoteError> {
        let public = PublicKey::of(&self.origin, key)?;
        let text = self.text();
        let mut signature = public.id().to_vec();
        signature.extend(key.sign(text.as_bytes()).map_err(|_| NoteError::CannotSign)?);
        Ok(format!("{text}\n\u{2014} {} {}\n", self.origin, BASE64.encode(signature)))
    }

    /// Reads a note and checks that `key` signed it. Signatures of others (witnesses) are passed over.
    pub fn open(note: &str, key: &PublicKey) -> Result<Checkpoint, NoteError> {
        let (checkpoint, text, signatures) = split(note)?;
        if checkpoint.origin != key.name {
            return Err(NoteError::Origin { found: checkpoint.origin, expected: key.name.clone() });
        }
        let mut ours = None;
        for line in signatures.lines() {
            let (name, raw) = line
                .strip_prefix("\u{2014} ")
                .and_then(|l| l.split_once(' '))
                .filter(|(n, _)| is_name(n))
                .ok_or(NoteError::Shape)?;
            let raw = BASE64.decode(raw).map_err(|_| NoteError::Shape)?;
            let (id, signature) = raw.split_at_checked(4).ok_or(NoteError::Shape)?;
            if name == key.name && id == key.id() {
                ours = Some(signature.to_vec());
            }
        }
        let bytes = ours.ok_or_else(|| NoteError::Unsigned(key.to_string()))?;
        let wrong = || NoteError::Signature(key.name.clone());
        let signature = Signature::from_slice(&bytes).map_err(|_| wrong())?;
        key.key.verify_strict(text.as_bytes(), &signature).map_err(|_| wrong())?;
        Ok(checkpoint)
    }

    /// Reads a note without checking any signature.
    pub fn read_unverified(note: &str) -> Result<Checkpoint, NoteError> {
        split(note).map(|(c, _, _)| c)
    }
}

/// The last whole note in a file that notes are appended to, each followed by an empty line. A torn end is passed over.
pub fn last_in(file: &str) -> Option<String> {
    let whole = &file[..file.rfind("\n\n")?];
    let mut parts = whole.split("\n\n").collect::<Vec<_>>().into_iter().rev().peekable();
    while let Some(part) = parts.next() {
        if part.starts_with('\u{2014}')
            && let Some(text) = parts.peek()
        {
            let note = format!("{}\n\n{part}\n", text.trim_start_matches('\n'));
            if split(&note).is_ok() {
                return Some(note);
            }
        }
    }
    None
}

/// The checkpoint, the signed text and the signature lines of a note.
fn split(note: &str) -> Result<(Checkpoint, &str, &str), NoteError> {
    let at = note.find("\n\n").ok_or(NoteError::Shape)?;
    let (text, signatures) = (&note[..at + 1], &note[at + 2..]);
    let mut lines = text.lines();
    let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next()) else {
        return Err(NoteError::Shape);
    };
    let size = size.parse().map_err(|_| NoteError::Shape)?;
    let root = BASE64.decode(root).map_err(|_| NoteError::Shape)?;
    let root = Hash::try_from(root.as_slice()).map_err(|_| NoteError::Shape)?;
    let checkpoint = Checkpoint { origin: origin.into(), size, root };
    // Also refuses leading zeros and carriage returns: one checkpoint has one text.
    if checkpoint.text() != text || !is_name(origin) || !signatures.ends_with('\n') {
        return Err(NoteError::Shape);
    }
    Ok((checkpoint, text, signatures))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "windlass/test".into(), size: 12, root: windlass_domain::merkle::leaf_hash(b"x") }
    }

    #[test]
    fn the_example_key_of_signed_notes_reads() {
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key: PublicKey = text.parse().expect("reads");
        assert_eq!(key.to_string(), text);
    }

    #[test]
    fn a_note_verifies_and_no_changed_byte_does() {
        let key = KeyPair::new_user();
        let public = PublicKey::of("windlass/test", &key).expect("key");
        assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public.clone()));
        let note = checkpoint().sign(&key).expect("signs");
        assert_eq!(Checkpoint::open(&note, &public), Ok(checkpoint()));
        for at in 0..note.len() {
            for flip in [1u8, 0x20] {
                let mut bytes = note.clone().into_bytes();
                bytes[at] ^= flip;
                if let Ok(text) = String::from_utf8(bytes) {
                    assert!(Checkpoint::open(&text, &public).is_err(), "byte {at}: {text}");
                }
            }
        }
        let other = PublicKey::of("windlass/test", &KeyPair::new_user()).expect("key");
        assert!(matches!(Checkpoint::open(&note, &other), Err(NoteError::Unsigned(_))));
        let elsewhere = PublicKey::of("windlass/other", &key).expect("key");
        assert!(matches!(Checkpoint::open(&note, &elsewhere), Err(NoteError::Origin { .. })));
    }

    #[test]
    fn a_witness_may_sign_too() {
        let key = KeyPair::new_user();
        let public = PublicKey::of("windlass/test", &key).expect("key");
        let note = checkpoint().sign(&key).expect("signs") + "\u{2014} witness.example AAAAAAAAAAA=\n";
        assert_eq!(Checkpoint::open(&note, &public), Ok(checkpoint()));
    }

    #[test]
    fn the_last_note_of_a_file_is_found_behind_a_torn_one() {
        let key = KeyPair::new_user();
        let notes: Vec<String> =
            (1..4).map(|size| Checkpoint { size, ..checkpoint() }.sign(&key).expect("signs")).collect();
        let file: String = notes.iter().map(|n| format!("{n}\n")).collect();
        assert_eq!(last_in(&file).as_ref(), notes.last());
        let before = file.len() - notes[2].len() - 1;
        for cut in before..file.len() {
            let Some(torn) = file.get(..cut) else { continue };
            assert_eq!(last_in(torn).as_ref(), Some(&notes[1]), "{torn:?}");
            let mended = format!("{torn}\n\n{}\n", notes[2]);
            assert_eq!(last_in(&mended).as_ref(), Some(&notes[2]), "{mended:?}");
        }
        assert_eq!(last_in(""), None);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = PublicKey::of("windlass/test", &KeyPair::new_user()).expect("key").to_string();
        for bad in ["", "a", "a+b", "a+b+c", &good[1..], &good[..good.len() - 4], &good.replace('+', "-")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }
}
