//! The program as people and scripts meet it: exit codes, messages, and `up` from start to stop, with real processes.

mod commands;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use windlass_testkit::{eventually, free_port, nats_server_binary, temp_dir};

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_windlass"));
    for name in ["WINDLASS_SERVER", "WINDLASS_TOKEN", "WINDLASS_TOKEN_FILE", "WINDLASS_STATE"] {
        c.env_remove(name);
    }
    c
}

fn run(args: &[&str]) -> (i32, String) {
    code_and_text(program().args(args).output().expect("runs"))
}

fn code_and_text(out: Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

#[test]
fn exit_codes_are_as_documented() {
    let (_, help) = run(&["--help"]);
    assert!(help.contains("Exit codes:"), "{help}");
    assert_eq!(run(&["deploy"]).0, 2, "usage");
    assert_eq!(run(&["status", "not-an-id"]).0, 2, "usage");

    let (code, text) = run(&["--server", "127.0.0.1:1", "status"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("http://"), "{text}");

    let server = format!("http://127.0.0.1:{}", free_port());
    let (code, text) = run(&["--server", &server, "status"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains(&server) && text.contains("does not answer"), "{text}");

    let dir = temp_dir();
    let export = dir.path().join("export.ndjson");
    std::fs::write(&export, "{}\n").expect("write");
    let key = dir.path().join("key");
    std::fs::write(&key, "not a key").expect("write");
    let (code, text) = run(&["audit", "verify", &export.display().to_string(), "--key", &key.display().to_string()]);
    assert_eq!(code, 2, "{text}");
}

#[test]
fn flows_are_checked_without_a_server() {
    let dir = temp_dir();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    };
    let good = "flow: web\nsteps:\n  - { id: a, uses: wait, with: { for: 1s } }\n";
    let alone = file("good.yaml", good);
    let applied = file("applied.yaml", &format!("kind: flow\nproject: shop\n{good}"));
    let (code, text) = run(&["flow", "check", &alone, &applied]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("good (web)") && text.contains("good (shop/web)"), "{text}");

    let wrong = file("wrong.yaml", "flow: web\nsteps:\n  - { id: a, uses: waits, needs: [b] }\n");
    let (code, text) = run(&["flow", "check", &alone, &wrong]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("wrong.yaml: line 3, column 20: steps[0].uses: there is no action `waits`"), "{text}");
    assert!(text.contains("there is no step `b`") && text.contains("2 problems were found"), "{text}");
    let out = program().args(["--json", "flow", "check", &wrong]).output().expect("runs");
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(told[0]["problems"][0]["place"], serde_json::json!({ "line": 3, "column": 20 }));
    assert_eq!(run(&["flow", "check", "nowhere.yaml"]).0, 2);

    // What a flow gives to another one, when that is among the files.
    let smoke = "inputs:\n  url: { type: string }\n  tries: { type: number, default: 3 }\n";
    let smoke = format!(
        "kind: flow\nproject: shop\nflow: smoke\n{smoke}steps:\n  - {{ id: a, uses: wait, with: {{ for: 1s }} }}\n"
    );
    let smoke = file("smoke.yaml", &smoke);
    let uses = "# two of one file\n---\nkind: flow\nproject: bank\nflow: web\nsteps:\n  - { id: s, uses: flow/smoke }\n---\n\
                kind: flow\nproject: shop\nflow: web\nsteps:\n  - id: s\n    uses: flow/smoke\n    with: { trise: 4, tries: many }\n";
    let uses = file("uses.yaml", uses);
    assert_eq!(run(&["flow", "check", &uses]).0, 0, "alone it cannot be told");
    let (code, text) = run(&["flow", "check", &uses, &smoke]);
    assert_eq!(code, 1, "{text}");
    for line in [
        "uses.yaml: line 15, column 11: steps[0].with: the input `url` of flow `smoke` has no default and is not given",
        "uses.yaml: line 15, column 13: steps[0].with.trise: flow `smoke` has no such input (did you mean `tries`?)",
        "uses.yaml: line 15, column 30: steps[0].with.tries: the input `tries` of flow `smoke` must be a number",
        "3 problems were found",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }

    let out = program().args(["flow", "schema"]).output().expect("runs");
    let schema: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn completions_are_printed_without_a_server() {
    let (code, text) = run(&["completions", "bash"]);
    assert_eq!(code, 0);
    assert!(text.contains("complete -F"), "{}", &text[..200.min(text.len())]);
}

struct Up {
    dir: tempfile::TempDir,
    port: u16,
    nats: u16,
}

impl Up {
    fn new() -> Up {
        Up { dir: temp_dir(), port: free_port(), nats: free_port() }
    }
    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    fn start(&self) -> (i32, String) {
        self.start_on(self.port, self.nats)
    }
    fn start_on(&self, port: u16, nats: u16) -> (i32, String) {
        // Output goes to files: the detached process would hold a pipe open.
        let (out, err) = (self.dir.path().join("out"), self.dir.path().join("err"));
        let status = program()
            .args(["up", "--detach", "--port", &port.to_string(), "--nats-port", &nats.to_string(), "--state"])
            .arg(self.state())
            .arg("--nats-server")
            .arg(nats_server_binary())
            .stdout(std::fs::File::create(&out).expect("file"))
            .stderr(std::fs::File::create(&err).expect("file"))
            .status()
            .expect("runs");
        let read = |p: &Path| std::fs::read_to_string(p).unwrap_or_default();
        (status.code().unwrap_or(-1), read(&out) + &read(&err))
    }
    fn record(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.state().join("up.json")).expect("the record");
        serde_json::from_str(&text).expect("JSON")
    }
    fn pid(&self) -> u64 {
        self.record()["process"]["pid"].as_u64().expect("pid")
    }
    fn down(&self) -> (i32, String) {
        code_and_text(program().args(["down", "--state"]).arg(self.state()).output().expect("runs"))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let (code, text) = self.down();
        if code != 0 && !std::thread::panicking() {
            panic!("down: {text}");
        }
    }
}

fn alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn taken_ports_are_named_with_their_options() {
    let up = Up::new();
    for (index, option) in [(0, "--port"), (1, "--nats-port")] {
        let held = TcpListener::bind("127.0.0.1:0").expect("port");
        let taken = held.local_addr().expect("address").port();
        let (code, text) = if index == 0 { up.start_on(taken, up.nats) } else { up.start_on(up.port, taken) };
        assert_eq!(code, 2, "{text}");
        assert!(text.contains(&taken.to_string()) && text.contains(option), "{text}");
    }
    let (code, text) = up.start_on(up.port, up.port);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains(&format!("--port and --nats-port are both {}", up.port)), "{text}");
}

#[tokio::test]
async fn up_is_started_found_used_killed_and_stopped() {
    let up = Up::new();
    let (code, text) = up.start();
    assert_eq!(code, 0, "{text}");
    for word in ["console", "admin token", "try next"] {
        assert!(text.contains(word), "{text}");
    }
    let first = up.pid();

    let (code, text) = up.start();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("already running"), "{text}");
    assert_eq!(up.pid(), first);

    // The installed client needs no settings, and the state directory no other name.
    let client = up.state().join("bin/windlass");
    let ask = |args: &[&str]| code_and_text(Command::new(&client).args(args).current_dir("/").output().expect("runs"));
    let (code, text) = ask(&["status"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = ask(&["status", "00000000-0000-0000-0000-000000000000"]);
    assert_eq!(code, 4, "{text}");
    let (code, text) = ask(&["--json", "queue"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON alone on standard output");
    let (code, text) = ask(&["doctor", "--state", &up.state().display().to_string()]);
    assert_eq!(code, 0, "{text}");

    // Killed, it takes its broker along; what it left is cleared away by the next start.
    let nats = format!("127.0.0.1:{}", up.nats);
    assert!(std::net::TcpStream::connect(&nats).is_ok());
    Command::new("kill").args(["-9", &first.to_string()]).status().expect("kill");
    eventually(PATIENCE, "the broker is gone", async || std::net::TcpStream::connect(&nats).is_err().then_some(()))
        .await;
    let (code, text) = ask(&["doctor", "--state", &up.state().display().to_string()]);
    assert_eq!(code, 1, "{text}");
    let (code, text) = up.start();
    assert_eq!(code, 0, "{text}");
    let second = up.pid();
    assert_ne!(first, second);

    let (code, text) = up.down();
    assert_eq!(code, 0, "{text}");
    assert!(!alive(second));
    assert!(!up.state().join("up.json").exists());
    let (code, text) = up.down();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("nothing is running"), "{text}");
}
