//! Sealing of secrets at rest: XChaCha20-Poly1305 under `master.key`, bound to the secret's scope and name so that a row
//! copied to another name does not open.

use crate::keys::{self, KeyError};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use std::{fmt, path::Path, sync::Arc};

/// First byte of a sealed value: the format's version.
const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the master key cannot be used")]
    Key(#[source] KeyError),
    #[error("secret `{scope}/{name}` does not open: another master key, another name, or damaged")]
    Open { scope: String, name: String },
    #[error("secret `{scope}/{name}` cannot be sealed")]
    Seal { scope: String, name: String },
    #[error("the cipher failed its self-test; secrets would not be safe, so nothing starts")]
    SelfTest,
}

/// Seals and opens secrets. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    cipher: Arc<XChaCha20Poly1305>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// Loads `<keys>/master.key`, or makes it on first use, and proves that it seals.
    pub fn open_or_create(keys_dir: &Path) -> Result<Sealer, SealError> {
        let path = keys_dir.join("master.key");
        let bytes =
            keys::load_or_create(&path, || rand::random::<[u8; KEY_BYTES]>().to_vec()).map_err(SealError::Key)?;
        let key: [u8; KEY_BYTES] = bytes
            .try_into()
            .map_err(|_| SealError::Key(KeyError::Content { path, reason: "it must be exactly 32 bytes" }))?;
        let sealer = Sealer::from_key(&key);
        sealer.self_test()?;
        Ok(sealer)
    }

    /// A sealer with this key.
    pub fn from_key(key: &[u8; KEY_BYTES]) -> Sealer {
        Sealer { cipher: Arc::new(XChaCha20Poly1305::new(key.into())) }
    }

    pub fn seal(&self, scope: &str, name: &str, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let aad = associated(scope, name);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad: &aad })
            .map_err(|_| SealError::Seal { scope: scope.to_owned(), name: name.to_owned() })?;
        let mut out = Vec::with_capacity(1 + NONCE_BYTES + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    pub fn open(&self, scope: &str, name: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let bad = || SealError::Open { scope: scope.to_owned(), name: name.to_owned() };
        let (version, rest) = sealed.split_first().ok_or_else(bad)?;
        let (nonce, body) = rest.split_at_checked(NONCE_BYTES).ok_or_else(bad)?;
        if *version != VERSION {
            return Err(bad());
        }
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| bad())?;
        self.cipher
            .decrypt(&XNonce::from(nonce), Payload { msg: body, aad: &associated(scope, name) })
            .map_err(|_| bad())
    }

    /// A broken cipher stores secrets in clear without a word; so prove at start that the text is gone from what is
    /// stored, that it opens, and that it opens under its own name only.
    fn self_test(&self) -> Result<(), SealError> {
        let probe = b"windlass self-test: this text must not be in the sealed bytes";
        let sealed = self.seal("self", "test", probe)?;
        let hidden = !sealed.windows(8).any(|w| probe.windows(8).any(|p| p == w));
        let opens = self.open("self", "test", &sealed).is_ok_and(|p| p == probe);
        let bound = self.open("self", "other", &sealed).is_err();
        if hidden && opens && bound { Ok(()) } else { Err(SealError::SelfTest) }
    }
}

/// The lengths keep `("a", "bc")` and `("ab", "c")` apart.
fn associated(scope: &str, name: &str) -> Vec<u8> {
    format!("windlass/secret/{}:{scope}/{}:{name}", scope.len(), name.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn opens_only_unchanged_under_its_own_name_and_key() {
        let s = Sealer::from_key(&[7; 32]);
        let sealed = s.seal("project/shop", "token", b"hunter2").expect("seals");
        assert_eq!(s.open("project/shop", "token", &sealed).expect("opens"), b"hunter2");
        assert_ne!(sealed, s.seal("project/shop", "token", b"hunter2").expect("seals"), "a nonce is never used twice");
        assert!(s.open("project/shop", "tokem", &sealed).is_err());
        assert!(s.open("project/sho", "ptoken", &sealed).is_err());
        assert!(Sealer::from_key(&[8; 32]).open("project/shop", "token", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(s.open("project/shop", "token", &bad).is_err(), "byte {i}");
            assert!(s.open("project/shop", "token", &sealed[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn the_key_is_kept_and_an_exposed_or_short_one_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let sealed = Sealer::open_or_create(dir.path()).expect("makes").seal("s", "n", b"x").expect("seals");
        assert_eq!(Sealer::open_or_create(dir.path()).expect("loads").open("s", "n", &sealed).expect("opens"), b"x");
        let path = dir.path().join("master.key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(Sealer::open_or_create(dir.path()), Err(SealError::Key(KeyError::Exposed { .. }))));
        std::fs::remove_file(&path).expect("removes");
        keys::replace(&path, b"short").expect("writes");
        assert!(matches!(Sealer::open_or_create(dir.path()), Err(SealError::Key(KeyError::Content { .. }))));
    }
}
