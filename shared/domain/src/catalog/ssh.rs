//! How a host without an agent of its own is reached: by SSH, with a pinned host key.

use super::Account;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The control plane logs in, puts the agent there and speaks to it over that connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// Name or address to dial; the host's own `address` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// User to log in as; with `project`, the name of an account of that project.
    pub account: String,
    /// Project whose execution account says what the host does not: user, key and `sudo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Name of the secret that holds the user's private key: the host's own secret (`windlass secret set host.<name>/<key>`),
    /// else the project's, where one is named, else one that all hosts share (`windlass secret set ssh/<key>`). It may be left
    /// out where the project's account has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The host's public key as in `known_hosts`, `ssh-ed25519 AAAA…`; several lines while keys are changed. Nothing else is
    /// ever accepted (`windlass hosts scan-key` shows what a host presents).
    pub host_key: String,
    /// Another host with `ssh` that the connection goes through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// Put `sudo -n` before what is run there; as the project's account says, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo: Option<bool>,
    /// Where the agent keeps itself; relative to where the account's commands start.
    #[serde(default = "default_state_dir")]
    pub state_dir: String,
    /// Deployment root (`releases/`, `current`, `shared/`).
    pub root: String,
    /// What runs commands there.
    #[serde(default, skip_serializing_if = "Shell::is_sh")]
    pub shell: Shell,
    /// Must be said of `shell: powershell`: nobody has run that on a real Windows host yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untested: bool,
}

/// Which kind of host answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shell {
    /// Linux: the agent is put there.
    #[default]
    Sh,
    /// Windows with OpenSSH: a PowerShell script does an agent's work there.
    PowerShell,
}

impl Shell {
    fn is_sh(&self) -> bool {
        *self == Shell::Sh
    }
}

/// `C:/srv/app` as `/srv/app`.
fn without_drive(path: &str) -> &str {
    match path.as_bytes() {
        [drive, b':', b'/', ..] if drive.is_ascii_alphabetic() => &path[2..],
        _ => path,
    }
}

fn default_port() -> u16 {
    22
}
fn default_state_dir() -> String {
    ".windlass-agent".into()
}

/// What `host_key` may begin with.
pub const HOST_KEY_TYPES: [&str; 5] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];

/// The account of a project that a host is reached by cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAccount {
    #[error("project `{project}` has no account `{account}`: add it under `accounts:` there, or mend `ssh.account`")]
    Absent { project: String, account: String },
    #[error(
        "neither `ssh.key` nor `ssh_key` of account `{account}` of project `{project}` names a key: name one of the two"
    )]
    NoKey { project: String, account: String },
    #[error("account `{account}` of project `{project}` has `sudo`, which is not for `shell: powershell`")]
    Sudo { project: String, account: String },
}

impl Ssh {
    /// With everything in place that it leaves to its project's account. `accounts` are those of the project it names.
    pub fn resolved(&self, accounts: Option<&BTreeMap<String, Account>>) -> Result<Ssh, NoAccount> {
        let Some(project) = &self.project else { return Ok(self.clone()) };
        let (project, account) = (project.clone(), self.account.clone());
        let Some(a) = accounts.and_then(|a| a.get(&account)) else {
            return Err(NoAccount::Absent { project, account });
        };
        let sudo = self.sudo.unwrap_or(a.sudo);
        if sudo && self.shell == Shell::PowerShell {
            return Err(NoAccount::Sudo { project, account });
        }
        let Some(key) = self.key.clone().or_else(|| a.ssh_key.clone()) else {
            return Err(NoAccount::NoKey { project, account });
        };
        Ok(Ssh { account: a.user.clone(), key: Some(key), sudo: Some(sudo), ..self.clone() })
    }

    /// Scopes in which the key of a host is looked for, one after the other.
    pub fn key_scopes(&self, host: &str) -> Vec<String> {
        let project = self.project.iter().map(|p| format!("project/{p}"));
        std::iter::once(format!("host/{host}")).chain(project).chain(["ssh".to_owned()]).collect()
    }

    /// What is wrong: the key, and what to write instead.
    pub fn problems(&self, host: &str) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        let plain = |s: &str, more: &str| {
            !s.is_empty() && s.len() <= 255 && s.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if let Some(a) = &self.address
            && !plain(a, ".-_:")
        {
            wrong.push(("address", format!("must be a host name or an address, not {a:?}")));
        }
        if self.port == 0 {
            wrong.push(("port", "must be between 1 and 65535".into()));
        }
        let powershell = self.shell == Shell::PowerShell;
        if powershell && !self.untested {
            let text = "`powershell` has not been run on a real Windows host yet; to try it on a host that you can lose, write \
                        `untested: true` beside it";
            wrong.push(("shell", text.into()));
        }
        if powershell && self.sudo == Some(true) {
            wrong.push((
                "sudo",
                "is not for `shell: powershell`; log in with an account that may do what is needed".into(),
            ));
        }
        if self.untested && !powershell {
            wrong.push(("untested", "is for `shell: powershell` alone; remove it".into()));
        }
        let account = if powershell { "._-@\\" } else { "._-" };
        if !plain(&self.account, account) || self.account.starts_with('-') {
            wrong.push(("account", format!("must be a user name, not {:?}", self.account)));
        }
        if let Some(project) = self.project.as_ref().filter(|p| !crate::artifact::is_name(p)) {
            wrong.push(("project", format!("must be the name of a project, not {project:?}")));
        }
        match &self.key {
            Some(key) if !crate::artifact::is_name(key) => {
                wrong.push(("key", format!("must be the name of a secret that holds the private key, not {key:?}")));
            }
            None if self.project.is_none() => {
                let text = "is missing: name a secret that holds the private key, or a `project` whose account has one";
                wrong.push(("key", text.into()));
            }
            _ => {}
        }
        let path_of = |p: &'_ String| if powershell { without_drive(p).to_owned() } else { p.clone() };
        let (state_dir, root) = (path_of(&self.state_dir), path_of(&self.root));
        for (key, path) in [("state_dir", &state_dir), ("root", &root)] {
            if !plain(path, "/._-") || path.split('/').any(|p| p == "..") || path.starts_with('-') {
                let text = "must be a path of letters, digits, `.`, `_` and `-`, without `..`";
                wrong.push((key, format!("{text}, not {path:?}")));
            }
        }
        if !root.starts_with('/') {
            let text =
                if powershell { "must be an absolute path such as `C:/srv/app`" } else { "must be an absolute path" };
            wrong.push(("root", text.into()));
        }
        if self.jump.as_deref() == Some(host) {
            wrong.push(("jump", "a host cannot be reached through itself".into()));
        }
        let mut lines = self.host_key.lines().map(str::trim).filter(|l| !l.is_empty()).peekable();
        if lines.peek().is_none() {
            let text = format!("is empty; `windlass hosts scan-key {host}` shows what the host presents");
            wrong.push(("host_key", text));
        }
        for line in lines {
            let mut words = line.split_whitespace();
            let known = words.next().is_some_and(|t| HOST_KEY_TYPES.contains(&t));
            let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
            if !known || !words.next().is_some_and(|k| k.len() >= 32 && k.chars().all(base64)) {
                let text = format!(
                    "must be a public key such as `ssh-ed25519 AAAA…` (one of {}); `windlass hosts scan-key {host}` \
                     shows what the host presents",
                    HOST_KEY_TYPES.join(", ")
                );
                wrong.push(("host_key", text));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Account, NoAccount};
    use crate::catalog::{Item, read};
    use std::collections::BTreeMap;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn host(ssh: &str) -> String {
        format!("kind: host\nname: h1\naddress: 10.0.0.7\nssh:\n{ssh}")
    }

    #[test]
    fn a_host_says_how_it_is_reached() {
        let text = host(&format!("  account: deploy\n  key: fleet\n  host_key: {KEY}\n  root: /srv/app\n"));
        let items = read(&text).expect("reads");
        let Item::Host(h) = &items[0].item else { panic!("a host") };
        let ssh = h.ssh.as_ref().expect("ssh");
        assert_eq!((ssh.port, ssh.sudo, ssh.state_dir.as_str()), (22, None, ".windlass-agent"));
    }

    #[test]
    fn what_a_host_does_not_say_its_projects_account_does() {
        let read_ssh = |more: &str| {
            let text =
                host(&format!("  account: deploy\n  project: shop\n  host_key: {KEY}\n  root: /srv/app\n{more}"));
            let Item::Host(h) = read(&text).expect("reads").remove(0).item else { panic!("a host") };
            *h.ssh.expect("ssh")
        };
        let account = |ssh_key: Option<&str>, sudo| {
            let a = Account { user: "www".into(), ssh_key: ssh_key.map(str::to_owned), sudo };
            BTreeMap::from([("deploy".to_owned(), a)])
        };
        for (more, accounts, expected) in [
            ("", account(Some("fleet"), true), ("www", "fleet", true)),
            ("", account(Some("fleet"), false), ("www", "fleet", false)),
            ("  key: own\n", account(Some("fleet"), true), ("www", "own", true)),
            ("  key: own\n  sudo: false\n", account(None, true), ("www", "own", false)),
            ("  sudo: true\n", account(Some("fleet"), false), ("www", "fleet", true)),
        ] {
            let s = read_ssh(more).resolved(Some(&accounts)).expect("an account");
            let got = (s.account.as_str(), s.key.as_deref().unwrap_or_default(), s.sudo == Some(true));
            assert_eq!(got, expected, "{more:?}");
        }
        let bare = read_ssh("");
        assert!(matches!(bare.resolved(Some(&account(None, true))), Err(NoAccount::NoKey { .. })));
        assert!(matches!(bare.resolved(Some(&BTreeMap::new())), Err(NoAccount::Absent { .. })));
        assert!(matches!(bare.resolved(None), Err(NoAccount::Absent { .. })));
        let windows = read_ssh("  shell: powershell\n  untested: true\n");
        assert!(matches!(windows.resolved(Some(&account(Some("k"), true))), Err(NoAccount::Sudo { .. })));
        assert_eq!(bare.key_scopes("h1"), ["host/h1", "project/shop", "ssh"]);
    }

    #[test]
    fn a_windows_host_has_drives_and_says_that_it_is_untested() {
        let text = host(&format!(
            "  account: WEB\\deploy\n  key: fleet\n  host_key: {KEY}\n  root: C:/srv/app\n  shell: powershell\n  untested: true\n"
        ));
        let items = read(&text).expect("reads");
        let Item::Host(h) = &items[0].item else { panic!("a host") };
        let ssh = h.ssh.as_ref().expect("ssh");
        assert_eq!(
            (ssh.shell, ssh.root.as_str(), ssh.account.as_str()),
            (super::Shell::PowerShell, "C:/srv/app", "WEB\\deploy")
        );
        let kept = serde_json::to_value(ssh).expect("JSON");
        assert_eq!(kept["shell"], "powershell");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let good = format!("  account: deploy\n  key: fleet\n  host_key: {KEY}\n  root: /srv/app\n");
        for (from, to, line, says) in [
            ("deploy", "\"de ploy\"", 5, "must be a user name"),
            ("fleet", "\"Fleet key\"", 6, "the name of a secret"),
            ("  key: fleet\n", "", 5, "or a `project` whose account has one"),
            ("  key: fleet\n", "  project: \"A shop\"\n", 6, "the name of a project"),
            (KEY, "\"\"", 7, "scan-key h1"),
            (KEY, "ssh-dss AAAAB3NzaC1kc3MAAACBAJdD7y3aLq454yWBdwLWbieU1", 7, "ssh-ed25519"),
            (KEY, "SHA256:abc", 7, "must be a public key"),
            ("/srv/app", "srv", 8, "absolute"),
            ("/srv/app", "\"/srv/$(id)\"", 8, "letters, digits"),
            ("/srv/app\n", "/srv/app\n  jump: h1\n", 9, "through itself"),
            ("/srv/app\n", "/srv/app\n  state_dir: ../x\n", 9, "without `..`"),
            ("/srv/app\n", "/srv/app\n  password: x\n", 9, "unknown key `password`"),
            ("/srv/app\n", "/srv/app\n  shell: powershell\n", 9, "write `untested: true`"),
            ("/srv/app\n", "/srv/app\n  shell: cmd\n", 9, "powershell"),
            ("/srv/app\n", "/srv/app\n  untested: true\n", 9, "remove it"),
            (
                "/srv/app\n",
                "/srv/app\n  shell: powershell\n  untested: true\n  sudo: true\n",
                11,
                "may do what is needed",
            ),
            ("/srv/app\n", "C:/srv/app\n", 8, "letters, digits"),
            ("/srv/app\n", "C:srv\n  shell: powershell\n  untested: true\n", 8, "letters, digits"),
            ("/srv/app\n", "srv\n  shell: powershell\n  untested: true\n", 8, "such as `C:/srv/app`"),
            ("/srv/app\n", "\"C:/srv/a b\"\n  shell: powershell\n  untested: true\n", 8, "letters, digits"),
            ("  host_key", "  hostkey", 7, "did you mean `host_key`"),
        ] {
            let errors = read(&host(&good.replace(from, to))).expect_err(to);
            let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(
                errors.iter().any(|e| e.message.contains(says) && e.place.is_some_and(|p| p.line == line)),
                "{to}: {all:?}"
            );
        }
    }
}
