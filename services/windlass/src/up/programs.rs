//! Finding the other programs: `nats-server` and `windlass-agent`.

use super::error::Error;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A nats-server that is new enough: the named one, where ops/up puts it, or on PATH.
pub(crate) async fn find_nats(named: Option<&Path>, state: &Path) -> Result<PathBuf, Error> {
    windlass_bus::server::find_binary(named, state).await.map_err(|source| Error::Nats(Box::new(source)))
}

/// A program of ours: the named one, beside this one, or on PATH.
pub(crate) fn find_program(
    program: &'static str,
    option: &'static str,
    named: Option<&Path>,
) -> Result<PathBuf, Error> {
    let places: Vec<PathBuf> = match named {
        Some(path) => vec![path.to_owned()],
        None => {
            let beside = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.to_owned()));
            let path = std::env::var_os("PATH").unwrap_or_default();
            beside.into_iter().chain(std::env::split_paths(&path)).map(|d| d.join(program)).collect()
        }
    };
    places.into_iter().find(|p| is_program(p)).ok_or(Error::NoProgram { program, option })
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_option() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("windlass-agent");
        let e = find_program("windlass-agent", "--agent-bin", Some(&path)).expect_err("absent").to_string();
        assert!(e.contains("windlass-agent") && e.contains("--agent-bin"), "{e}");
        std::fs::write(&path, "").expect("write");
        assert!(find_program("windlass-agent", "--agent-bin", Some(&path)).is_err(), "not executable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(find_program("windlass-agent", "--agent-bin", Some(&path)).expect("there"), path);
    }
}
