//! Putting the agent on a host: once for each digest, complete and checked before anything can run it.

use super::{
    Fault,
    connect::{Output, Session},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    sync::{Mutex, OnceCell},
};
use windlass_domain::catalog::Ssh;

/// The exit code by which the start command says that the agent is not there.
pub(super) const NOT_THERE: u32 = 97;

/// What the start command says besides when the host can unpack.
const GZIP: &str = "gzip";

/// A `windlass-agent` of this machine's disk.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    pub(crate) digest: String,
    /// The same packed with gzip, which is less than half of it; made when a host needs it.
    packed: OnceCell<Bytes>,
}

impl Agent {
    async fn packed(&self) -> std::io::Result<Bytes> {
        let pack = || async {
            let path = self.path.clone();
            let pack = move || {
                let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
                std::io::copy(&mut std::fs::File::open(path)?, &mut gz)?;
                gz.finish()
            };
            tokio::task::spawn_blocking(pack).await.map_err(std::io::Error::other)?.map(Bytes::from)
        };
        self.packed.get_or_try_init(pack).await.cloned()
    }
}

/// The agents that may be put on hosts, each hashed once.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    known: Mutex<Vec<(String, Arc<Agent>)>>,
}

impl Agents {
    /// The agent for a processor, as `uname -m` names it.
    pub(crate) async fn of(&self, binary: Option<&Path>, machine: &str) -> Result<Arc<Agent>, Fault> {
        let mut known = self.known.lock().await;
        if let Some((_, a)) = known.iter().find(|(m, _)| m == machine) {
            return Ok(Arc::clone(a));
        }
        let beside = || {
            let me = std::env::current_exe().ok()?;
            Some(me.parent()?.join("windlass-agent"))
        };
        let base = binary.map(Path::to_path_buf).or_else(beside).unwrap_or_else(|| "windlass-agent".into());
        let path = if machine == std::env::consts::ARCH {
            base
        } else {
            let mut name = base.into_os_string();
            name.push(format!("-{machine}"));
            name.into()
        };
        let missing = |source| Fault::NoAgentBinary { path: path.clone(), machine: machine.to_owned(), source };
        let digest = digest_of(&path).await.map_err(missing)?;
        let agent = Arc::new(Agent { path, digest, packed: OnceCell::new() });
        known.push((machine.to_owned(), Arc::clone(&agent)));
        Ok(agent)
    }

    /// The file was replaced: hash it again when it is needed.
    pub(crate) async fn forget(&self) {
        self.known.lock().await.clear();
    }
}

async fn digest_of(path: &Path) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut piece).await? {
            0 => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            n => hash.update(&piece[..n]),
        }
    }
}

/// All that goes into these commands was checked to hold nothing a shell would act on (`catalog::Ssh::problems`).
fn sudo(ssh: &Ssh) -> &'static str {
    if ssh.sudo == Some(true) { "sudo -n " } else { "" }
}

/// Starts the agent on the stream, or says with [`NOT_THERE`] and `uname -sm` that it is not there, after a line [`GZIP`] if
/// there is such a program.
pub(super) fn start_command(ssh: &Ssh, agent: &Agent) -> String {
    format!(
        "{}sh -c 'f=\"$0/bin/windlass-agent-$1\"; if [ -x \"$f\" ]; then exec \"$f\" stdio --state \"$0\" --root \"$2\"; fi; \
         command -v {GZIP} >/dev/null && echo {GZIP}; uname -sm; exit {NOT_THERE}' {} {} {}",
        sudo(ssh),
        ssh.state_dir,
        agent.digest,
        ssh.root
    )
}

/// Receives the agent on standard input. It gets its name only when its digest is right and it is on disk; of older ones the
/// last two stay, which may still be running.
fn receive_command(ssh: &Ssh, agent: &Agent, packed: bool) -> String {
    let read = if packed { "gzip -dc" } else { "cat" };
    format!(
        "{}sh -c 'set -e; umask 077; d=\"$0/bin\"; mkdir -p \"$d\"; t=\"$d/.upload.$$\"; trap \"rm -f $t\" EXIT; {read} >\"$t\"; \
         s=$(sha256sum \"$t\"); s=${{s%% *}}; if [ \"$s\" != \"$1\" ]; then echo \"digest $s\"; exit 65; fi; chmod 700 \"$t\"; \
         sync \"$t\" 2>/dev/null || sync; mv -f \"$t\" \"$d/windlass-agent-$1\"; \
         ls -t \"$d\" | grep ^windlass-agent- | tail -n +4 | while read -r o; do rm -f \"$d/$o\"; done' {} {}",
        sudo(ssh),
        ssh.state_dir,
        agent.digest
    )
}

/// What the host is, from the output of a start that found no agent.
pub(super) fn machine(host: &str, out: &Output) -> Result<String, Fault> {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().last().unwrap_or_default().trim().to_owned();
    match line.split_once(' ') {
        Some(("Linux", machine)) if !machine.is_empty() && !machine.contains('/') => Ok(machine.to_owned()),
        _ => Err(Fault::Machine { host: host.to_owned(), said: line.chars().take(80).collect() }),
    }
}

/// Whether the host unpacks, from the output of a start that found no agent.
pub(super) fn unpacks(out: &Output) -> bool {
    String::from_utf8_lossy(&out.stdout).lines().any(|l| l.trim() == GZIP)
}

/// Puts the agent there.
pub(super) async fn push(
    session: &Session,
    ssh: &Ssh,
    agent: &Agent,
    packed: bool,
    limit: Duration,
) -> Result<(), Fault> {
    let missing =
        |source| Fault::NoAgentBinary { path: agent.path.clone(), machine: std::env::consts::ARCH.to_owned(), source };
    let command = receive_command(ssh, agent, packed);
    let out = if packed {
        session.output(&command, std::io::Cursor::new(agent.packed().await.map_err(missing)?), limit).await?
    } else {
        session.output(&command, tokio::fs::File::open(&agent.path).await.map_err(missing)?, limit).await?
    };
    match out.code {
        Some(0) => Ok(()),
        Some(65) => Err(Fault::Digest { said: text(&out.stdout) }),
        _ => Err(Fault::Push { state_dir: ssh.state_dir.clone(), said: text(&out.stderr) }),
    }
}

/// The end of what a command said, for people.
pub(super) fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join("; ");
    if last.is_empty() { "it said nothing".into() } else { crate::agents::cut(last, 500) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ssh(dir: &Path) -> Ssh {
        Ssh {
            address: None,
            port: 22,
            account: "a".into(),
            key: Some("k".into()),
            project: None,
            host_key: String::new(),
            jump: None,
            sudo: None,
            state_dir: dir.display().to_string(),
            root: "/srv/app".into(),
            shell: windlass_domain::catalog::Shell::Sh,
            untested: false,
        }
    }

    fn run(command: &str, input: &Path) -> (Option<i32>, String) {
        let out = Command::new("sh").args(["-c", command]).stdin(std::fs::File::open(input).expect("opens")).output();
        let out = out.expect("runs");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    #[tokio::test]
    async fn an_agent_gets_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().expect("dir");
        let source = dir.path().join("agent");
        std::fs::write(&source, "#!/bin/sh\necho \"$@\"\n").expect("writes");
        let agents = Agents::default();
        let agent = agents.of(Some(&source), std::env::consts::ARCH).await.expect("hashes");
        let ssh = ssh(&dir.path().join("state"));
        let (code, said) = run(&start_command(&ssh, &agent), &source);
        assert_eq!(code, Some(97));
        let said = Output { stdout: said.into_bytes(), ..Output::default() };
        assert_eq!(machine("h", &said).expect("linux"), std::env::consts::ARCH);
        assert!(unpacks(&said), "gzip is on this machine");
        assert!(!unpacks(&Output { stdout: b"Linux x86_64\n".to_vec(), ..Output::default() }));
        // Half of it arrives: it must not become an agent.
        let half = dir.path().join("half");
        std::fs::write(&half, "#!/bin/sh\n").expect("writes");
        assert_eq!(run(&receive_command(&ssh, &agent, false), &half).0, Some(65));
        let packed = agent.packed().await.expect("packs");
        std::fs::write(&half, &packed[..packed.len() / 2]).expect("writes");
        assert_ne!(run(&receive_command(&ssh, &agent, true), &half).0, Some(0));
        assert_eq!(std::fs::read_dir(dir.path().join("state/bin")).expect("lists").count(), 0, "nothing is left");
        let whole = dir.path().join("whole");
        std::fs::write(&whole, &packed).expect("writes");
        assert_eq!(run(&receive_command(&ssh, &agent, true), &whole).0, Some(0));
        assert_eq!(run(&receive_command(&ssh, &agent, false), &source).0, Some(0));
        let (code, said) = run(&start_command(&ssh, &agent), &source);
        assert_eq!(code, Some(0));
        assert_eq!(said, format!("stdio --state {} --root /srv/app", ssh.state_dir));
        // Old ones go, the newest three stay.
        for i in 0..5 {
            std::fs::write(dir.path().join(format!("state/bin/windlass-agent-{i}")), "old").expect("writes");
        }
        assert_eq!(run(&receive_command(&ssh, &agent, false), &source).0, Some(0));
        assert_eq!(std::fs::read_dir(dir.path().join("state/bin")).expect("lists").count(), 3);
        assert_eq!(run(&start_command(&ssh, &agent), &source).0, Some(0));
        assert!(matches!(agents.of(Some(&source), "riscv64").await, Err(Fault::NoAgentBinary { .. })));
    }

    #[test]
    fn what_is_not_linux_is_told() {
        for said in ["Darwin arm64", "", "Linux", "'sh' is not recognized as an internal or external command"] {
            let out = Output { stdout: said.as_bytes().to_vec(), ..Output::default() };
            assert!(matches!(machine("h", &out), Err(Fault::Machine { .. })), "{said}");
        }
    }
}
