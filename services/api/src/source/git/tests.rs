//! Real servers: sshd with a deploy key, and `git http-backend` behind TLS with a token.

use super::*;
use std::{fs, net::TcpStream, process::Command as Program};
use windlass_testkit::{Supervised, eventually, free_port, temp_dir};

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "correct-horse-battery";

/// Git's own server program behind TLS, for who brings the token as a password.
const HTTPS: &str = r#"
import base64, http.server, os, ssl, subprocess, sys
port, root, cert, key, token = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def serve(self):
        given = self.headers.get("Authorization", "")
        if given != "Basic " + base64.b64encode(("x-access-token:" + token).encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", "https://127.0.0.1:%s/" % path.split("/")[2])
            self.end_headers()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = dict(os.environ, GIT_PROJECT_ROOT=root, GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path, QUERY_STRING=query,
                   REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""),
                   CONTENT_LENGTH=str(len(body)), REMOTE_USER="ci", GIT_CONFIG_COUNT="1",
                   GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*",
                   HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
                   GIT_PROTOCOL=self.headers.get("Git-Protocol", ""))
        out = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        lines = dict(l.split(": ", 1) for l in head.decode().split("\r\n"))
        self.send_response(int(lines.pop("Status", "200 OK").split()[0]))
        for k, v in lines.items():
            self.send_header(k, v)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest)
    do_GET = do_POST = serve
    def log_message(self, *a):
        pass
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

fn run(program: &str, args: &[&str], dir: &Path) {
    let mut c = Program::new(program);
    c.args(args).current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for (k, v) in [("NAME", "ann"), ("EMAIL", "ann@shop.example")] {
        c.env(format!("GIT_AUTHOR_{k}"), v).env(format!("GIT_COMMITTER_{k}"), v);
    }
    let out = c.output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A bare repository `shop.git` with one document.
fn repository(dir: &Path) {
    let work = dir.join("work");
    fs::create_dir_all(work.join(".windlass")).expect("directories");
    fs::write(work.join(".windlass/flow.yaml"), "kind: flow\n").expect("writes");
    run("git", &["init", "--quiet", "--initial-branch=main"], &work);
    run("git", &["add", "."], &work);
    run("git", &["commit", "--quiet", "-m", "one"], &work);
    run("git", &["clone", "--quiet", "--bare", "work", "shop.git"], dir);
}

fn source(git: String) -> Source {
    serde_json::from_value(serde_json::json!({ "git": git })).expect("a source")
}

fn limits(dir: &Path) -> Limits {
    Limits {
        hosts: vec![],
        allow_file: false,
        known_hosts: dir.join("known_hosts"),
        ca_file: None,
        timeout: SOON,
        max_pack_bytes: 1 << 20,
        max_document_bytes: 1 << 16,
        max_files: 10,
    }
}

async fn listens(server: &Supervised, port: u16) {
    eventually(SOON, "it listens", async || TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(())).await;
    assert!(server.pid() > 0);
}

/// All that is read of a repository.
async fn read(dir: &Path, s: &Source, l: &Limits, secret: Option<&[u8]>) -> Result<Fetched, GitError> {
    let r = Repository::new(&dir.join("fetched"), "shop", s, l, secret)?;
    let (commit, name) = r.head().await?;
    let got = r.fetch(&name).await?;
    assert_eq!(got.commit, commit);
    Ok(got)
}

fn assert_is_read(got: Result<Fetched, GitError>) {
    let got = got.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(got.files, [TreeFile { path: ".windlass/flow.yaml".into(), bytes: b"kind: flow\n".to_vec() }]);
}

#[tokio::test]
async fn a_repository_is_read_over_ssh_with_its_key_from_a_known_host_alone() {
    let dir = temp_dir();
    let d = dir.path();
    repository(d);
    for key in ["host", "other_host", "deploy", "stranger"] {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key], d);
    }
    let public = |name: &str| fs::read_to_string(d.join(format!("{name}.pub"))).expect("public key");
    fs::write(d.join("authorized_keys"), public("deploy")).expect("writes");
    let port = free_port();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\nUsePAM no\n\
         StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
        d.display()
    );
    fs::write(d.join("sshd.conf"), config).expect("writes");
    let sshd = Path::new("/usr/sbin/sshd");
    assert!(sshd.is_file(), "install openssh-server (ops/test does)");
    let _ = fs::create_dir_all("/run/sshd");
    let conf = d.join("sshd.conf").display().to_string();
    let server = Supervised::start(sshd, &["-D", "-e", "-f", &conf], &d.join("sshd.log"));
    listens(&server, port).await;

    let me = String::from_utf8(Program::new("id").arg("-un").output().expect("id").stdout).expect("a name");
    let s = source(format!("ssh://{}@127.0.0.1:{port}{}/shop.git", me.trim(), d.display()));
    let l = limits(d);
    let key = |name: &str| fs::read(d.join(name)).expect("private key");
    let (deploy, stranger) = (key("deploy"), key("stranger"));
    let refused = |got: Result<Fetched, GitError>, says: &str| {
        let said = got.expect_err(says).to_string();
        assert!(said.contains(says), "{said}");
    };
    // Nobody wrote the host's key down; then another one; then this.
    refused(read(d, &s, &l, Some(&deploy)).await, "Host key verification failed");
    let known = |key: &str| fs::write(d.join("known_hosts"), format!("[127.0.0.1]:{port} {}", public(key)));
    known("other_host").expect("writes");
    refused(read(d, &s, &l, Some(&deploy)).await, "Host key verification failed");
    known("host").expect("writes");
    assert_is_read(read(d, &s, &l, Some(&deploy)).await);
    // The secret may come without its last line break, as people paste it.
    assert_is_read(read(d, &s, &l, Some(deploy.trim_ascii())).await);
    refused(read(d, &s, &l, Some(&stranger)).await, "Permission denied");
    refused(read(d, &s, &l, None).await, "Permission denied");
    assert_eq!(fs::read_dir(d.join("fetched")).expect("lists").count(), 0, "keys stay behind");
}

#[tokio::test]
async fn a_repository_is_read_over_https_with_its_token_from_a_trusted_server_alone() {
    let dir = temp_dir();
    let d = dir.path();
    repository(d);
    let made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "tls.key", "-out", "tls.pem", "-days", "1"];
    let names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
    run("openssl", &[&made[..], &names[..]].concat(), d);
    fs::write(d.join("server.py"), HTTPS).expect("writes");
    let port = free_port();
    let at = |name: &str| d.join(name).display().to_string();
    let args = [at("server.py"), port.to_string(), d.display().to_string(), at("tls.pem"), at("tls.key"), TOKEN.into()];
    let server =
        Supervised::start(Path::new("/usr/bin/env"), &[&["python3".to_owned()][..], &args].concat(), &d.join("log"));
    listens(&server, port).await;

    let s = source(format!("https://127.0.0.1:{port}/shop.git"));
    let mut l = limits(d);
    let refused = |got: Result<Fetched, GitError>, says: &str| {
        let said = got.expect_err(says).to_string();
        assert!(said.contains(says) && !said.contains(TOKEN) && !said.contains(&STANDARD.encode(TOKEN)), "{said}");
    };
    refused(read(d, &s, &l, Some(TOKEN.as_bytes())).await, "certificate");
    l.ca_file = Some(d.join("tls.pem"));
    assert_is_read(read(d, &s, &l, Some(TOKEN.as_bytes())).await);
    assert_is_read(read(d, &s, &l, Some(format!("{TOKEN}\n").as_bytes())).await);
    // Without the right one git would ask a person.
    refused(read(d, &s, &l, Some(b"wrong")).await, "could not read Username");
    refused(read(d, &s, &l, None).await, "could not read Username");
    // A token goes nowhere but where it was meant to go.
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    elsewhere.set_nonblocking(true).expect("sets");
    let to = elsewhere.local_addr().expect("address").port();
    let moved = source(format!("https://127.0.0.1:{port}/moved/{to}"));
    refused(read(d, &moved, &l, Some(TOKEN.as_bytes())).await, "ls-remote failed");
    assert!(elsewhere.accept().is_err(), "the redirect was followed");
    l.hosts = vec!["git.example".into()];
    refused(read(d, &s, &l, Some(TOKEN.as_bytes())).await, "is not one of `source.hosts`");
}

#[test]
fn hosts_are_read_as_git_reads_them() {
    for (url, host) in [
        ("https://git.example/a.git", "git.example"),
        ("https://git.example:8443/a", "git.example"),
        ("ssh://git@git.example:22/a", "git.example"),
        ("git@git.example:a/b", "git.example"),
        ("https://[::1]:8443/a", "::1"),
        ("ssh://-oProxyCommand=x/a", "-oProxyCommand=x"),
    ] {
        assert_eq!(host_of(url), host, "{url}");
    }
}
