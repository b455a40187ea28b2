//! Secrets on their way to one task of one agent: sealed to the key the agent made for this one ACCEPT, so that the broker,
//! the logs of frames and whoever records the traffic hold nothing.

use base64::{Engine, engine::general_purpose::STANDARD};
use nkeys::XKey;
use std::collections::BTreeMap;
use windlass_domain::secret::{Secret, Secrets};

pub use crate::frames::SealedSecrets;

/// Why secrets cannot be sealed or opened. No variant holds a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    #[error("the key that secrets are to be sealed to is not a public X25519 nkey")]
    Key,
    #[error("the secrets do not open with the key of this ACCEPT")]
    Open,
    #[error("the secrets cannot be sealed")]
    Seal,
}

impl SealedSecrets {
    /// Seals to the public key `to` with a key that is used this once.
    pub fn seal(secrets: &Secrets, to: &str) -> Result<SealedSecrets, SealedError> {
        let to = XKey::from_public_key(to).map_err(|_| SealedError::Key)?;
        let values: BTreeMap<&str, &str> = secrets.iter().map(|(n, s)| (n.as_str(), s.expose())).collect();
        let mut text = serde_json::to_vec(&values).map_err(|_| SealedError::Seal)?;
        let own = XKey::new();
        let sealed = own.seal(&text, &to).map_err(|_| SealedError::Seal);
        text.fill(0);
        Ok(SealedSecrets { from: own.public_key(), data: STANDARD.encode(sealed?) })
    }

    /// Opens with the secret half of the key they were sealed to.
    pub fn open(&self, key: &XKey) -> Result<Secrets, SealedError> {
        let from = XKey::from_public_key(&self.from).map_err(|_| SealedError::Key)?;
        let data = STANDARD.decode(&self.data).map_err(|_| SealedError::Open)?;
        let mut text = key.open(&data, &from).map_err(|_| SealedError::Open)?;
        let values = serde_json::from_slice::<BTreeMap<String, String>>(&text).map_err(|_| SealedError::Open);
        text.fill(0);
        Ok(values?.into_iter().map(|(n, v)| (n, Secret::new(v))).collect())
    }
}

/// Whether a text can be a key to seal to.
pub fn is_seal_key(text: &str) -> bool {
    text.len() <= 64 && XKey::from_public_key(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_it_was_sealed_to_opens_it_and_the_value_is_not_in_it() {
        let key = XKey::new();
        let secrets: Secrets = [("t".to_owned(), Secret::new("canary-value-1".into()))].into();
        let sealed = SealedSecrets::seal(&secrets, &key.public_key()).expect("seals");
        assert_eq!(sealed.open(&key), Ok(secrets.clone()));
        assert_eq!(sealed.open(&XKey::new()), Err(SealedError::Open));
        let raw = STANDARD.decode(&sealed.data).expect("base64");
        assert!(!raw.windows(6).any(|w| w == b"canary"));
        assert_eq!(SealedSecrets::seal(&secrets, "XNOKEY"), Err(SealedError::Key));
        assert!(is_seal_key(&key.public_key()) && !is_seal_key("U123") && !is_seal_key(&"X".repeat(100)));
    }
}
