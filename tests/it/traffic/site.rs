//! Small web servers behind a real load balancer, each on a host with an agent of its own, and the flow that releases them.

use crate::{
    package::pack,
    world::{Form, PATIENCE, World},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_testkit::{Db, Supervised, eventually, free_port};

/// Answers after a moment, so that there is always a request that a careless stop would break. `/hold` answers without end.
/// It ends when its root is gone or the test is.
const SERVER: &str = r#"
import http.server, os, sys, threading, time
address, port, test = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
root = os.environ["WINDLASS_ROOT"]
version = open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "VERSION")).read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/hold":
            self.send_response(200); self.send_header("transfer-encoding", "chunked"); self.end_headers()
            while True:
                self.wfile.write(b"1\r\n.\r\n"); self.wfile.flush(); time.sleep(0.1)
        if self.path == "/": time.sleep(0.03)
        if self.path == "/slow": time.sleep(1.2)
        body = ("version " + version).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    def handle_error(self, *a): pass
server = Server((address, port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while os.path.isdir(root) and os.path.isdir("/proc/%d" % test): time.sleep(0.5)
"#;

/// Ends the old server at once, as a crash would, and starts the new one.
const RESTART: &str = r#"#!/bin/sh
set -e
[ ! -f "$WINDLASS_ROOT/refuse" ] || { echo "told to refuse"; exit 3; }
pid="$WINDLASS_ROOT/web.pid"
if [ -f "$pid" ]; then
  old="$(cat "$pid")"
  kill -KILL "$old" 2>/dev/null || true
  while [ -d "/proc/$old/fd" ] && [ -n "$(ls "/proc/$old/fd" 2>/dev/null)" ]; do sleep 0.02; done
fi
echo restart >> "$WINDLASS_ROOT/restarts"
python3 "$WINDLASS_ROOT/current/serve.py" "$@" >> "$WINDLASS_ROOT/web.log" 2>&1 < /dev/null &
echo $! > "$pid"
"#;

/// Which load balancer is in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    Haproxy,
    Nginx,
}

pub(super) struct Site {
    // Before the world: it ends before its directory goes.
    _lb: Supervised,
    pub(super) w: World,
    front: Front,
    pub(super) hosts: Vec<String>,
    /// Where clients come in.
    pub(super) port: u16,
    /// Where the members listen, each on its own address.
    member_port: u16,
    /// HAProxy's runtime API.
    api: u16,
    pub(super) waves: &'static str,
}

/// The host that nginx and its agent are on.
const LB_HOST: &str = "lb";

impl Site {
    /// `options`: more keys of the load balancer in the environment.
    pub(super) async fn start(form: Form, front: Front, members: usize, waves: &'static str, options: &str) -> Site {
        let db = if form == Form::Scaled { Db::postgres().await } else { Db::sqlite() };
        let w = World::start(db, form).await;
        let hosts: Vec<String> = (1..=members).map(|n| format!("web{n}")).collect();
        let (port, member_port, api) = (free_port(), free_port(), free_port());
        let lb = match front {
            Front::Haproxy => haproxy(&w, &hosts, port, member_port, api),
            Front::Nginx => nginx(&w, &hosts, port, member_port),
        };
        let mut site = Site { _lb: lb, w, front, hosts, port, member_port, api, waves };
        site.w.apply(&site.catalog(options)).await;
        let mut names: Vec<&str> = site.hosts.iter().map(String::as_str).collect();
        if front == Front::Nginx {
            names.push(LB_HOST);
        }
        site.w.agents(&names).await;
        site
    }

    fn address(&self, n: usize) -> String {
        address(n)
    }

    /// The catalog with these keys of the load balancer.
    pub(super) fn catalog(&self, options: &str) -> String {
        let mut y = String::from("kind: project\nname: shop\ngroup: retail\n");
        for (n, h) in self.hosts.iter().enumerate() {
            y += &format!("---\nkind: host\nname: {h}\naddress: {}\n", self.address(n));
        }
        let lb = match self.front {
            Front::Haproxy => {
                format!("    kind: haproxy\n    endpoints: [\"tcp://127.0.0.1:{}\"]\n    backend: shop\n", self.api)
            }
            Front::Nginx => {
                y += &format!("---\nkind: host\nname: {LB_HOST}\naddress: 127.0.0.1\n");
                let dir = self.w.dir.path().join("nginx");
                let dir = dir.display();
                let nginx = |more: &str| format!("[/usr/sbin/nginx, -p, {dir}, -c, nginx.conf, {more}]");
                format!(
                    "    kind: nginx\n    host: {LB_HOST}\n    file: {dir}/upstream.conf\n    pid: {dir}/nginx.pid\n    test: \
                     {}\n    reload: {}\n    member: \"${{{{ host.address }}}}\"\n    port: {}\n",
                    nginx("-t"),
                    nginx("-s, reload"),
                    self.member_port
                )
            }
        };
        y += &format!(
            "---\nkind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [{}]\nload_balancers:\n  front:\n{lb}{options}",
            self.hosts.join(", ")
        );
        let restart = format!(
            "      - {{ uses: service.restart, with: {{ command: [bin/restart, \"${{{{ host.address }}}}\", \"{}\", \"{}\"] }} }}\n      \
             - {{ uses: http.check, with: {{ url: \"http://${{{{ host.address }}}}:{}/check\", within: 30s }} }}\n",
            self.member_port,
            std::process::id(),
            self.member_port
        );
        y += &format!(
            "---\nkind: flow\nproject: shop\nflow: web\non_failure: pause\nsteps:\n  - id: rollout\n    waves: \"{}\"\n    \
             parallel: 0\n    steps:\n      - uses: lb.drain\n      - uses: artifact.fetch\n      - uses: release.switch\n\
             {restart}      - uses: lb.attach\nrollback:\n  normal:\n      - uses: lb.drain\n      - {{ uses: release.switch, \
             with: {{ to: last_known_good }} }}\n{restart}      - uses: lb.attach\n",
            self.waves
        );
        y
    }

    pub(super) async fn version(&self, version: &str) {
        let files = [("VERSION", version), ("serve.py", SERVER), ("bin/restart", RESTART)];
        let src = self.w.dir.path().join(format!("src-shop-{version}"));
        std::fs::create_dir_all(src.join("bin")).expect("directory");
        std::fs::write(src.join("bin/restart"), RESTART).expect("file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(src.join("bin/restart"), mode).expect("mode");
        let (url, digest, size) = pack(self.w.dir.path(), &format!("shop-{version}"), &files);
        let body = json!({ "version": version, "url": url, "digest": digest, "size": size });
        self.w.post("/projects/shop/artifacts", body).await;
    }

    pub(super) async fn deploy(&self, version: &str) -> String {
        self.w.deploy("shop", "beta", version).await
    }

    /// Deploys and waits for the end.
    pub(super) async fn released(&self, version: &str) {
        let id = self.deploy(version).await;
        self.ends(&id, "succeeded").await;
    }

    pub(super) async fn ends(&self, id: &str, state: &str) -> Value {
        let d = self.w.until(id, &[state, "paused", "failed"]).await;
        assert_eq!(d["state"], state, "{d:#}\n{:#}", self.w.get(&format!("/deployments/{id}/tasks")).await);
        d
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub(super) fn restarts(&self) -> usize {
        let of = |h: &String| std::fs::read_to_string(self.w.root(h).join("restarts")).unwrap_or_default();
        self.hosts.iter().map(|h| of(h).lines().count()).sum()
    }

    /// Where a member keeps what the test tells it.
    pub(super) fn refuse(&self, host: &str, on: bool) {
        let path = self.w.root(host).join("refuse");
        if on {
            std::fs::write(path, "").expect("file");
        } else {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Members and their state, as the load balancer says: `UP`, `DOWN`, `DRAIN`, `MAINT` (HAProxy), `up` or `down` (nginx).
    pub(super) async fn states(&self) -> BTreeMap<String, String> {
        match self.front {
            Front::Haproxy => states(self.api).await,
            Front::Nginx => {
                let text = std::fs::read_to_string(self.w.dir.path().join("nginx/upstream.conf")).expect("file");
                let lines = text.lines().filter(|l| l.trim().starts_with("server "));
                let state = |l: &str| if l.contains(" down") { "down" } else { "up" }.to_owned();
                lines.filter_map(|l| Some((l.split_whitespace().nth(1)?.to_owned(), state(l)))).collect()
            }
        }
    }

    /// Nothing is left off: asked at once, not waited for, because a settled work has brought everything back.
    pub(super) async fn assert_attached(&self, when: &str) {
        for (member, state) in self.states().await {
            assert!(
                state == "up" || !(state.starts_with("DRAIN") || state.starts_with("MAINT") || state == "down"),
                "{when}: {member} was left {state}"
            );
        }
    }

    /// Nobody brings it back, and nobody goes on, while no executor runs: it is off at look after look.
    pub(super) async fn assert_drain_waits(&self, member: &str) {
        for _ in 0..10 {
            let state = self.states().await.get(member).cloned().unwrap_or_default();
            assert!(state.starts_with("DRAIN"), "{member} is {state}");
        }
    }

    pub(super) async fn state_is(&self, member: &str, state: &str) {
        eventually(PATIENCE, &format!("{member} is {state}"), async || {
            self.states().await.get(member).is_some_and(|s| s.starts_with(state)).then_some(())
        })
        .await;
    }

    /// A request through the load balancer to this member that does not end by itself.
    pub(super) async fn hold(&self, member: &str) -> Held {
        let mut c = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.expect("connects");
        let head = format!("GET /hold HTTP/1.1\r\nhost: shop\r\nx-to: {member}\r\n\r\n");
        c.write_all(head.as_bytes()).await.expect("sends");
        let mut held = Held(c);
        assert!(held.goes_on().await, "it is answered");
        held
    }

    /// Watches how many members are up until dropped; the answer is the least.
    pub(super) fn watch(&self) -> Watch {
        let (api, file) = (self.api, self.w.dir.path().join("nginx/upstream.conf"));
        let front = self.front;
        let least = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
        let seen = std::sync::Arc::clone(&least);
        let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let n = std::sync::Arc::clone(&looks);
        let run = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(25));
            loop {
                tick.tick().await;
                let up = match front {
                    Front::Haproxy => states(api).await.values().filter(|s| s.starts_with("UP")).count(),
                    Front::Nginx => up_in(&file),
                };
                seen.fetch_min(up, std::sync::atomic::Ordering::Relaxed);
                n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        Watch { least, looks, run }
    }
}

fn up_in(file: &PathBuf) -> usize {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|l| l.trim().starts_with("server ") && !l.contains(" down")).count()
}

fn address(n: usize) -> String {
    format!("127.0.7.{}", n + 1)
}

pub(super) struct Watch {
    least: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    looks: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    run: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// The fewest that were up at any look.
    pub(super) fn least(self) -> usize {
        self.run.abort();
        assert!(self.looks.load(std::sync::atomic::Ordering::Relaxed) > 20, "it was watched");
        self.least.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// A connection with an answer that goes on and on.
pub(super) struct Held(tokio::net::TcpStream);

impl Held {
    pub(super) async fn goes_on(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(10), self.0.read(&mut buffer)).await;
        matches!(read, Ok(Ok(n)) if n > 0 && !buffer.starts_with(b"HTTP/1.1 5"))
    }

    /// Reads until the far side has ended it.
    pub(super) async fn was_cut(&mut self) {
        eventually(PATIENCE, "the connection is cut", async || (!self.goes_on().await).then_some(())).await;
    }
}

async fn states(api: u16) -> BTreeMap<String, String> {
    let mut c = tokio::net::TcpStream::connect(("127.0.0.1", api)).await.expect("HAProxy's runtime API");
    c.write_all(b"show stat shop 4 -1\n").await.expect("asks");
    let mut text = String::new();
    c.read_to_string(&mut text).await.expect("answers");
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().expect("head").trim_start_matches("# ").split(',').collect();
    let status = columns.iter().position(|c| *c == "status").expect("status");
    let fields = lines.map(|l| l.split(',').collect::<Vec<_>>()).filter(|f| f.len() > status);
    fields.map(|f| (f[1].to_owned(), f[status].to_owned())).collect()
}

/// Without retries and with nothing that hides a member that does not answer.
fn haproxy(w: &World, hosts: &[String], port: u16, member_port: u16, api: u16) -> Supervised {
    let mut conf = format!(
        "global\n  stats socket ipv4@127.0.0.1:{api} level admin\n  nbthread 1\ndefaults\n  mode http\n  retries 0\n  timeout \
         connect 5s\n  timeout client 60s\n  timeout server 60s\nfrontend in\n  bind 127.0.0.1:{port}\n  default_backend \
         shop\nbackend shop\n  balance roundrobin\n  option httpchk GET /check\n  default-server check inter 300ms rise 2 fall \
         3\n  timeout check 5s\n"
    );
    for (n, h) in hosts.iter().enumerate() {
        conf += &format!("  use-server {h} if {{ req.hdr(x-to) {h} }}\n");
        conf += &format!("  server {h} {}:{member_port}\n", address(n));
    }
    let file = w.dir.path().join("haproxy.cfg");
    std::fs::write(&file, conf).expect("file");
    let args = ["-db".to_owned(), "-f".into(), file.display().to_string()];
    Supervised::start(&PathBuf::from("/usr/sbin/haproxy"), &args, &w.dir.path().join("haproxy.log"))
}

/// `deferred`: a connection without a request is not given to a worker that may be about to end.
fn nginx(w: &World, hosts: &[String], port: u16, member_port: u16) -> Supervised {
    let dir = w.dir.path().join("nginx");
    std::fs::create_dir_all(dir.join("tmp")).expect("directory");
    let d = dir.display();
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|t| format!("  {t}_temp_path {d}/tmp/{t};\n"))
        .collect();
    let user = if std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
        "user root;\n"
    } else {
        ""
    };
    let conf = format!(
        "{user}pid {d}/nginx.pid;\nerror_log {d}/error.log;\nworker_processes 2;\nevents {{ worker_connections 1024; }}\nhttp \
         {{\n  access_log off;\n{temps}  upstream shop {{\n    include {d}/upstream.conf;\n    keepalive 8;\n  }}\n  server \
         {{\n    listen 127.0.0.1:{port} deferred;\n    location / {{\n      proxy_pass http://shop;\n      \
         proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_next_upstream off;\n      proxy_buffering \
         off;\n    }}\n  }}\n}}\n"
    );
    std::fs::write(dir.join("nginx.conf"), conf).expect("file");
    let line = |n: usize| format!("server {}:{member_port} max_fails=0;\n", address(n));
    std::fs::write(dir.join("upstream.conf"), (0..hosts.len()).map(line).collect::<String>()).expect("file");
    let args = ["-p", &d.to_string(), "-c", "nginx.conf", "-g", "daemon off;"].map(str::to_owned);
    Supervised::start(&PathBuf::from("/usr/sbin/nginx"), &args, &w.dir.path().join("nginx.log"))
}
