//! `agent.yaml` of the state directory, and the command line over it.

use crate::spool::LogCaps;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is not valid")]
    Parse(PathBuf, #[source] Box<serde_saphyr::Error>),
    #[error("no deployment root: give --root, or `root:` in {0}")]
    NoRoot(PathBuf),
    #[error("the deployment root {0} must be an absolute path")]
    RelativeRoot(PathBuf),
    #[error("--env {0:?} must be KEY=VALUE")]
    Env(String),
}

/// All keys are optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Deployment root: `releases/`, `current`, `shared/`.
    pub root: Option<PathBuf>,
    /// Added to the environment of every step.
    pub env: BTreeMap<String, String>,
    /// How much output of a task is kept and sent.
    pub log: LogCaps,
    /// Seconds between TERM and KILL.
    pub grace_s: f64,
    /// Offers are refused when less than this is free in the state directory.
    pub reserve_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { root: None, env: BTreeMap::new(), log: LogCaps::default(), grace_s: 5.0, reserve_bytes: 64 << 20 }
    }
}

impl Settings {
    pub fn load(state: &Path) -> Result<Settings, SettingsError> {
        let p = state.join("agent.yaml");
        match std::fs::read_to_string(&p) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(e) => Err(SettingsError::Read(p, e)),
            Ok(t) if t.trim().is_empty() => Ok(Settings::default()),
            Ok(t) => serde_saphyr::from_str(&t).map_err(|e| SettingsError::Parse(p, Box::new(e))),
        }
    }

    /// Lays the command line over the file.
    pub fn with_args(mut self, state: &Path, root: Option<PathBuf>, env: &[String]) -> Result<Settings, SettingsError> {
        self.root = root.or(self.root);
        match &self.root {
            None => return Err(SettingsError::NoRoot(state.join("agent.yaml"))),
            Some(r) if !r.is_absolute() => return Err(SettingsError::RelativeRoot(r.clone())),
            Some(_) => {}
        }
        for e in env {
            let (k, v) =
                e.split_once('=').filter(|(k, _)| !k.is_empty()).ok_or_else(|| SettingsError::Env(e.clone()))?;
            self.env.insert(k.to_owned(), v.to_owned());
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_and_unknown_keys_are_errors() {
        let d = tempfile::tempdir().expect("dir");
        let text = "root: /srv/app\nenv: { PORT: \"1\", A: b }\nlog: { head_bytes: 65536 }\ngrace_s: 0.5\n";
        std::fs::write(d.path().join("agent.yaml"), text).expect("writes");
        let s = Settings::load(d.path()).expect("reads");
        let s = s.with_args(d.path(), None, &["PORT=2=3".into()]).expect("fits");
        assert_eq!(s.root.as_deref(), Some(Path::new("/srv/app")));
        assert_eq!(s.env, BTreeMap::from([("PORT".into(), "2=3".into()), ("A".into(), "b".into())]));
        assert_eq!((s.log.head_bytes, s.log.tail_bytes), (65536, 12 << 20));
        assert!(s.with_args(d.path(), None, &["nope".into()]).is_err());
        std::fs::write(d.path().join("agent.yaml"), "roots: /x\n").expect("writes");
        assert!(matches!(Settings::load(d.path()), Err(SettingsError::Parse(..))));
    }
}
