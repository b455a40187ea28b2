//! Where the server is and who we are: command line, environment, then `client.toml`.

use super::error::Error;
use crate::cli::Connection;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the file `windlass up` writes.
pub(crate) const FILE: &str = "client.toml";

/// `client.toml`. Paths are relative to the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientFile {
    pub(crate) server: String,
    pub(crate) token_file: Option<PathBuf>,
}

/// A reachable server.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Without a slash at the end.
    pub(crate) server: String,
    pub(crate) token: Option<String>,
}

impl Target {
    pub(crate) fn find(c: &Connection) -> Result<Target, Error> {
        let exe = std::env::current_exe().ok();
        let cwd = std::env::current_dir().ok();
        Target::find_among(c, &candidates(exe.as_deref(), cwd.as_deref()))
    }

    fn find_among(c: &Connection, files: &[PathBuf]) -> Result<Target, Error> {
        let file = match files.iter().find(|f| f.is_file()) {
            Some(path) => Some((path.clone(), read(path)?)),
            None => None,
        };
        let server = match (&c.server, &file) {
            (Some(s), _) => s.clone(),
            (None, Some((_, f))) => f.server.clone(),
            (None, None) => return Err(Error::NoServer),
        };
        let token = if let Some(t) = &c.token {
            Some(t.clone())
        } else if let Some(path) = &c.token_file {
            Some(read_token(path)?)
        } else {
            match &file {
                // A token belongs to the server it was written for: never send it to another one.
                Some((path, f)) if same_server(&f.server, &server) => {
                    let dir = path.parent().unwrap_or(Path::new("."));
                    f.token_file.as_ref().map(|t| read_token(&dir.join(t))).transpose()?
                }
                _ => None,
            }
        };
        let server = server.trim_end_matches('/').to_owned();
        match reqwest::Url::parse(&server) {
            Ok(u) if matches!(u.scheme(), "http" | "https") && u.has_host() => Ok(Target { server, token }),
            _ => Err(Error::Address(server)),
        }
    }
}

fn same_server(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// `<state>/bin/windlass` finds `<state>/client.toml`; `target/<profile>/windlass` finds the checkout's; then the working directory's.
fn candidates(exe: Option<&Path>, cwd: Option<&Path>) -> Vec<PathBuf> {
    let bin = exe.and_then(Path::parent);
    [
        bin.and_then(Path::parent).map(|d| d.join(FILE)),
        bin.and_then(Path::parent).and_then(Path::parent).map(|d| d.join(".windlass").join(FILE)),
        cwd.map(|d| d.join(".windlass").join(FILE)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn read(path: &Path) -> Result<ClientFile, Error> {
    config::Config::builder()
        .add_source(config::File::from(path).format(config::FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|source| Error::ClientFile { path: path.to_owned(), source })
}

fn read_token(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        what: "the token file cannot be read",
        source,
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Connection {
        Connection { server: None, token: None, token_file: None, json: false }
    }

    #[test]
    fn the_first_that_says_something_wins() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join(FILE);
        std::fs::write(&file, "server = \"http://127.0.0.1:7400/\"\ntoken_file = \"admin.token\"\n").expect("write");
        std::fs::write(dir.path().join("admin.token"), "wl_secret\n").expect("write");
        let files = [dir.path().join("absent.toml"), file];

        let t = Target::find_among(&none(), &files).expect("from the file");
        assert_eq!((t.server.as_str(), t.token.as_deref()), ("http://127.0.0.1:7400", Some("wl_secret")));

        let other = Connection { server: Some("http://elsewhere:1".into()), ..none() };
        let t = Target::find_among(&other, &files).expect("other server");
        assert_eq!(t.token, None, "the local token must not travel to another server");

        let given = Connection { token: Some("x".into()), ..none() };
        assert_eq!(Target::find_among(&given, &files).expect("given").token.as_deref(), Some("x"));
        assert!(matches!(Target::find_among(&none(), &[]), Err(Error::NoServer)));
        let bad = Connection { server: Some("localhost:7400".into()), ..none() };
        assert!(matches!(Target::find_among(&bad, &files), Err(Error::Address(_))));
    }

    #[test]
    fn unknown_keys_are_errors() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join(FILE);
        std::fs::write(&file, "server = \"http://x\"\ntokenfile = \"t\"\n").expect("write");
        assert!(matches!(Target::find_among(&none(), &[file]), Err(Error::ClientFile { .. })));
    }

    #[test]
    fn the_installed_binary_finds_its_own_state_directory_first() {
        let c = candidates(Some(Path::new("/srv/w/.windlass/bin/windlass")), Some(Path::new("/home/a")));
        assert_eq!(c[0], Path::new("/srv/w/.windlass/client.toml"));
        assert_eq!(c[2], Path::new("/home/a/.windlass/client.toml"));
    }
}
