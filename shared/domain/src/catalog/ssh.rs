//! How a host without an agent of its own is reached: by SSH, with a pinned host key.

use serde::{Deserialize, Serialize};

/// The control plane logs in, puts the agent there and speaks to it over that connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// Name or address to dial; the host's own `address` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default = "default_port")]
    pub port: u16,
    /// User to log in as.
    pub account: String,
    /// Name of the secret that holds the user's private key: the host's own secret (`windlass secret set host.<name>/<key>`),
    /// else one that all hosts share (`windlass secret set ssh/<key>`).
    pub key: String,
    /// The host's public key as in `known_hosts`, `ssh-ed25519 AAAA…`; several lines while keys are changed. Nothing else is
    /// ever accepted (`windlass hosts scan-key` shows what a host presents).
    pub host_key: String,
    /// Another host with `ssh` that the connection goes through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// Put `sudo -n` before what is run there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sudo: bool,
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

impl Ssh {
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
        if powershell && self.sudo {
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
        if !crate::artifact::is_name(&self.key) {
            wrong.push(("key", format!("must be the name of a secret that holds the private key, not {:?}", self.key)));
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
    use crate::catalog::{Item, read};

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
        assert_eq!((ssh.port, ssh.sudo, ssh.state_dir.as_str()), (22, false, ".windlass-agent"));
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
