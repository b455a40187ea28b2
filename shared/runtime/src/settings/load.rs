//! How settings are read: defaults in code, then `windlass.toml`, then the environment; every key known, every value possible.

use super::Settings;
use config::{Config, Environment, File, FileFormat};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Variables of the form `WINDLASS__SECTION__KEY` override the file.
const ENV_PREFIX: &str = "WINDLASS";
/// Names the settings file when `--config` does not.
pub const CONFIG_VARIABLE: &str = "WINDLASS_CONFIG";
pub(super) const FILE_NAME: &str = "windlass.toml";

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {path}; check that it exists and is TOML")]
    File {
        path: PathBuf,
        #[source]
        source: config::ConfigError,
    },
    #[error("unknown setting `{key}` (from {origin}); remove it or correct its name{hint}")]
    UnknownKey { key: String, origin: String, hint: String },
    #[error("a setting has the wrong form")]
    Form(#[source] config::ConfigError),
    #[error("setting `{key}` is not usable: {reason}")]
    Value { key: &'static str, reason: String },
}

impl Settings {
    /// Reads the file `path` (or `$WINDLASS_CONFIG`, or `<state_dir>/windlass.toml` when that exists) and the environment.
    pub fn load(path: Option<&Path>) -> Result<Settings, SettingsError> {
        #[allow(clippy::disallowed_methods, reason = "the one place where settings are read from the environment")]
        let vars = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect::<HashMap<_, _>>();
        Self::load_from(path, vars)
    }

    /// [`Settings::load`] with the environment passed in.
    pub fn load_from(path: Option<&Path>, vars: HashMap<String, String>) -> Result<Settings, SettingsError> {
        let named = path.map(Path::to_path_buf).or_else(|| vars.get(CONFIG_VARIABLE).map(PathBuf::from));
        let environment = Environment::with_prefix(ENV_PREFIX)
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("nats.urls")
            .with_list_parse_key("nats.agent_urls")
            .with_list_parse_key("executor.pools")
            .with_list_parse_key("executor.allow_private_addresses")
            .with_list_parse_key("notifier.allow_private_addresses")
            .source(Some(vars));
        let from_environment = Config::builder().add_source(environment).build().map_err(SettingsError::Form)?;
        check_keys(&from_environment, "the environment")?;

        let file = match named {
            Some(p) => Some(p),
            None => {
                let dir = from_environment.get_string("state_dir").map(PathBuf::from);
                let p = dir.unwrap_or(Settings::default().state_dir).join(FILE_NAME);
                p.is_file().then_some(p)
            }
        };
        let mut all = Config::builder();
        if let Some(path) = file {
            let source = File::from(path.as_path()).format(FileFormat::Toml);
            let from_file = Config::builder()
                .add_source(source)
                .build()
                .map_err(|source| SettingsError::File { path: path.clone(), source })?;
            check_keys(&from_file, &path.display().to_string())?;
            all = all.add_source(from_file);
        }
        let settings: Settings =
            all.add_source(from_environment).build().and_then(Config::try_deserialize).map_err(SettingsError::Form)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let bad = |key, reason: &str| Err(SettingsError::Value { key, reason: reason.to_owned() });
        if self.poll_s.get().is_zero() {
            return bad("poll_s", "must be more than 0");
        }
        if self.executor.lease_s.get().is_zero() {
            return bad("executor.lease_s", "must be more than 0");
        }
        if self.api.max_queued_commands == 0 {
            return bad("api.max_queued_commands", "must be more than 0: with 0 nothing could ever be asked for");
        }
        if self.api.max_streams < 4 {
            return bad("api.max_streams", "must be 4 at least: one token may have a quarter of them");
        }
        let e = &self.executor;
        if !(e.suspect_s.get() <= e.disconnected_s.get() && e.disconnected_s.get() <= e.unknown_s.get()) {
            return bad("executor.suspect_s", "must hold suspect_s <= disconnected_s <= unknown_s");
        }
        if self.ssh.max_connections == 0 {
            return bad("ssh.max_connections", "must be more than 0");
        }
        for (name, n) in
            [("ssh.starts_at_once", self.ssh.starts_at_once), ("ssh.pushes_at_once", self.ssh.pushes_at_once)]
        {
            if n == 0 {
                return bad(name, "must be more than 0");
            }
        }
        if self.nats.urls.is_empty() {
            return bad("nats.urls", "must name at least one server");
        }
        let r = &self.retention;
        let least = [
            ("retention.logs_days", r.logs_days, 7),
            ("retention.notifications_days", r.notifications_days, 7),
            ("retention.intake_days", r.intake_days, 7),
            ("retention.idempotency_days", r.idempotency_days, 1),
            ("retention.probe_tasks_days", r.probe_tasks_days, 7),
            ("retention.agents_days", r.agents_days, 7),
        ];
        for (key, days, least) in least {
            if days != 0 && days < least {
                return bad(key, &format!("must be {least} or more, or 0 to keep it for ever"));
            }
        }
        if self.nats.tls.cert_file.is_some() != self.nats.tls.key_file.is_some() {
            return bad("nats.tls.cert_file", "a certificate needs its key: set `nats.tls.key_file` too, or neither");
        }
        if let Some(u) = &self.api.public_url
            && !(u.starts_with("http://") || u.starts_with("https://"))
        {
            return bad("api.public_url", "must start with http:// or https://");
        }
        Ok(())
    }
}

/// Every key of `given` must be a key of the defaults: a misspelt setting that is silently ignored is an outage later.
fn check_keys(given: &Config, origin: &str) -> Result<(), SettingsError> {
    let known = serde_json::to_value(Settings::default()).unwrap_or_default();
    let given: serde_json::Value = given.clone().try_deserialize().map_err(SettingsError::Form)?;
    match unknown_key(&given, &known, "") {
        None => Ok(()),
        Some((key, near)) => {
            let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(SettingsError::UnknownKey { key, origin: origin.to_owned(), hint })
        }
    }
}

fn unknown_key(given: &serde_json::Value, known: &serde_json::Value, at: &str) -> Option<(String, Option<String>)> {
    let (serde_json::Value::Object(given), serde_json::Value::Object(known)) = (given, known) else { return None };
    given.iter().find_map(|(name, value)| {
        let key = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match known.get(name) {
            Some(k) => unknown_key(value, k, &key),
            None => {
                let near = known.keys().min_by_key(|k| distance(k, name)).filter(|k| distance(k, name) <= 3);
                Some((key, near.cloned()))
            }
        }
    })
}

/// Edits (insert, delete, replace) between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
