//! Key files: made on first use, readable by their owner alone, never half-written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} may be read by others (mode {mode:o}); run `chmod 600 {path}` and replace the key if it may have leaked"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} does not hold a key: {reason}; restore it from a backup")]
    Content { path: PathBuf, reason: &'static str },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_path_buf();
    move |source| KeyError::Io { action, path, source }
}

/// Makes `dir` and its parents, mode 0700.
pub fn make_private_dir(dir: &Path) -> Result<(), KeyError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory", dir))
}

/// Reads a key file; refuses one that others may read.
pub fn load(path: &Path) -> Result<Vec<u8>, KeyError> {
    let mut file = File::open(path).map_err(io("open", path))?;
    let mode = file.metadata().map_err(io("inspect", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_path_buf(), mode });
    }
    let mut bytes = vec![];
    file.read_to_end(&mut bytes).map_err(io("read", path))?;
    Ok(bytes)
}

/// Reads the key at `path`, or stores what `make` returns there. When two processes come at once, one key wins and both
/// get it.
pub fn load_or_create(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, KeyError> {
    match load(path) {
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    let temp = write_temp(path, &make())?;
    // Unlike rename, a link never replaces the key of the process that came first.
    let linked = fs::hard_link(&temp, path);
    let _ = fs::remove_file(&temp);
    match linked {
        Ok(()) => sync_parent(path)?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io("write", path)(e)),
    }
    load(path)
}

/// Writes a file with mode 0600 in one step: readers see the old or the new content, also after a power cut.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    let temp = write_temp(path, bytes)?;
    fs::rename(&temp, path).map_err(io("write", path))?;
    sync_parent(path)
}

fn write_temp(path: &Path, bytes: &[u8]) -> Result<PathBuf, KeyError> {
    let temp = path.with_extension(format!("new-{:016x}", rand::random::<u64>()));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(io("write", &temp))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write", &temp))?;
    Ok(temp)
}

fn sync_parent(path: &Path) -> Result<(), KeyError> {
    let Some(dir) = path.parent() else { return Ok(()) };
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_private_and_kept() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("keys/a.nk");
        assert_eq!(load_or_create(&path, || b"one".to_vec()).expect("makes"), b"one");
        assert_eq!(load_or_create(&path, || b"two".to_vec()).expect("loads"), b"one");
        assert_eq!(fs::metadata(&path).expect("meta").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().expect("dir")).expect("meta").permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(dir.path().join("keys")).expect("dir").count(), 1, "no temporary file is left");
        replace(&path, b"three").expect("replaces");
        assert_eq!(load(&path).expect("loads"), b"three");
    }

    #[test]
    fn an_exposed_key_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("k");
        load_or_create(&path, || b"k".to_vec()).expect("makes");
        for mode in [0o644, 0o640, 0o604, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            let e = load_or_create(&path, Vec::new).expect_err("refused").to_string();
            assert!(e.contains("chmod 600"), "{e}");
        }
    }

    #[test]
    fn racing_processes_agree_on_one_key() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("k");
        let got: Vec<Vec<u8>> = std::thread::scope(|s| {
            let all: Vec<_> = (0..8u8)
                .map(|i| {
                    let path = path.clone();
                    s.spawn(move || load_or_create(&path, || vec![i; 32]).expect("key"))
                })
                .collect();
            all.into_iter().map(|t| t.join().expect("joins")).collect()
        });
        assert!(got.iter().all(|k| k == &got[0]));
    }
}
