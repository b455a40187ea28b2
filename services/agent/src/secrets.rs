//! Secrets of a task between its GRANT and its runner: sealed to a key that lives as long as one ACCEPT, opened in memory,
//! and handed over in an anonymous file that has no name on any disk.

use nkeys::XKey;
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
};
use windlass_contracts::sealed::{SealedError, SealedSecrets};
use windlass_domain::{
    ids::TaskId,
    reference,
    secret::{Secret, Secrets},
    task::TaskSpec,
};

/// Where the runner finds them: its standard output, which it has no other use for.
const HANDED: &str = "/proc/self/fd/1";

/// Names of the secrets that the steps refer to.
pub(crate) fn names(spec: &TaskSpec) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for v in spec.steps.iter().flat_map(|s| s.with.values()) {
        all.extend(reference::secrets(v));
    }
    all.sort();
    all.dedup();
    all
}

/// Keys of the ACCEPTs that wait for their GRANT, and what came with one until its runner takes it.
#[derive(Default)]
pub(crate) struct Keyring {
    keys: HashMap<TaskId, (String, XKey)>,
    opened: HashMap<TaskId, Secrets>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys)", self.keys.len())
    }
}

impl Keyring {
    /// The public key for this ACCEPT: the same as long as its nonce is.
    pub(crate) fn key(&mut self, task: TaskId, nonce: &str) -> String {
        match self.keys.get(&task) {
            Some((n, key)) if n == nonce => key.public_key(),
            _ => {
                let key = XKey::new();
                let public = key.public_key();
                self.keys.insert(task, (nonce.to_owned(), key));
                public
            }
        }
    }

    /// Opens what a GRANT brought, for [`Keyring::take`]. Every name must be there.
    pub(crate) fn open(
        &mut self,
        task: TaskId,
        nonce: &str,
        sealed: &SealedSecrets,
        names: &[String],
    ) -> Result<(), SealedError> {
        let (_, key) = self.keys.get(&task).filter(|(n, _)| n == nonce).ok_or(SealedError::Key)?;
        let secrets = sealed.open(key)?;
        if names.iter().any(|n| !secrets.contains_key(n)) {
            return Err(SealedError::Open);
        }
        self.opened.insert(task, secrets);
        Ok(())
    }

    /// For the runner; the key is of no more use.
    pub(crate) fn take(&mut self, task: TaskId) -> Secrets {
        self.forget(task).unwrap_or_default()
    }

    pub(crate) fn forget(&mut self, task: TaskId) -> Option<Secrets> {
        self.keys.remove(&task);
        self.opened.remove(&task)
    }
}

/// An anonymous file that holds them, to be the runner's standard output.
pub(crate) fn hand_over(secrets: &Secrets) -> io::Result<File> {
    let mut f = File::from(memfd_create("windlass-secrets", MemfdFlags::CLOEXEC)?);
    let values: BTreeMap<&str, &str> = secrets.iter().map(|(n, s)| (n.as_str(), s.expose())).collect();
    let mut text = serde_json::to_vec(&values)?;
    let written = f.write_all(&text);
    text.fill(0);
    written?;
    f.seek(SeekFrom::Start(0))?;
    Ok(f)
}

/// Takes what the agent handed over, and empties it.
pub(crate) fn receive() -> io::Result<Secrets> {
    let mut f = OpenOptions::new().read(true).write(true).open(HANDED)?;
    let mut text = Vec::new();
    f.read_to_end(&mut text)?;
    f.set_len(0)?;
    let values = serde_json::from_slice::<BTreeMap<String, String>>(&text);
    text.fill(0);
    Ok(values?.into_iter().map(|(n, v)| (n, Secret::new(v))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(n: u128) -> TaskId {
        uuid::Uuid::from_u128(n).into()
    }

    #[test]
    fn a_grant_opens_with_the_key_of_its_own_accept_only() {
        let mut v = Keyring::default();
        let first = v.key(task(1), "nonce-1");
        assert_eq!(v.key(task(1), "nonce-1"), first);
        let secrets: Secrets = [("t".to_owned(), Secret::new("hunter22".into()))].into();
        let sealed = SealedSecrets::seal(&secrets, &first).expect("seals");
        let names = ["t".to_owned()];
        assert_eq!(v.open(task(1), "nonce-2", &sealed, &names), Err(SealedError::Key));
        assert_eq!(v.open(task(1), "nonce-1", &sealed, &["t".into(), "u".into()]), Err(SealedError::Open));
        assert_eq!(v.open(task(1), "nonce-1", &sealed, &names), Ok(()));
        assert_eq!(v.take(task(1)), secrets);
        assert!(v.take(task(1)).is_empty());
        assert_ne!(v.key(task(1), "nonce-1"), first, "a key is used once");
    }

    #[test]
    fn the_handed_over_file_has_no_name() {
        let secrets: Secrets = [("t".to_owned(), Secret::new("hun\nter\"22".into()))].into();
        let f = hand_over(&secrets).expect("makes");
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&f))).expect("link");
        assert!(link.to_string_lossy().starts_with("/memfd:"), "{link:?}");
    }
}
