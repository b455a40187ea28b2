//! The canary test of secrets: values that occur nowhere else go every way a secret can go, are printed in every form a
//! program may give them, and are then looked for in every byte that Windlass keeps or answers. The scripts got them exactly.

use crate::world::{Form, PATIENCE, World};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};
use windlass_testkit::{Db, wait_http};

/// Bytes of a form that count as a find: more than is left over beside a masked form, and never the same by chance.
const WINDOW: usize = 16;

fn random(n: usize) -> String {
    const SIGNS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    (0..n).map(|_| char::from(SIGNS[rand::random_range(0..SIGNS.len())])).collect()
}

/// The canaries by name.
fn canaries() -> BTreeMap<&'static str, String> {
    let r = || random(10);
    [
        ("plain", format!("cnry{}", random(20))),
        ("quoted", format!("{}\"{}'{}\\{}/&<{}> $x {}", r(), r(), r(), r(), r(), r())),
        ("lines", format!("-----BEGIN {}-----\n{}\n{}\n-----END {}-----", r(), random(60), random(44), r())),
        ("letters", format!("{}-ключ-{}-🔑-{}", r(), r(), random(16))),
        ("long", random(4000)),
        ("vaulted", format!("vlt{}", random(24))),
        ("given", format!("inp{}", random(24))),
    ]
    .into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// By other code than the masker's.
fn forms(value: &str) -> Vec<(&'static str, String)> {
    let url: String = value
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    let mut out = vec![
        ("raw", value.to_owned()),
        ("base64", STANDARD.encode(value)),
        ("base64url", URL_SAFE_NO_PAD.encode(value)),
        ("hex", hex(value.as_bytes())),
        ("HEX", hex(value.as_bytes()).to_uppercase()),
        ("URL", url),
        ("json", serde_json::to_string(value).expect("json").trim_matches('"').to_owned()),
    ];
    for before in 1..3 {
        let text = STANDARD.encode(format!("{}{value}", "x".repeat(before)));
        out.push(("base64 within base64", text[4..].to_owned()));
    }
    out
}

/// Windows of every form, to find any part of a canary anywhere.
struct Finder {
    windows: HashMap<[u8; WINDOW], String>,
    /// Whether a window begins with these three bytes: most places are passed by this alone.
    starts: Vec<bool>,
}

fn start(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

impl Finder {
    fn new(canaries: &BTreeMap<&str, String>) -> Finder {
        let mut windows = HashMap::new();
        for (name, value) in canaries {
            // Fixed words of a canary are no find.
            let fixed = ["-----BEGIN", "-----END"];
            for part in value.split('\n') {
                let part = fixed.iter().fold(part, |p, f| p.trim_start_matches(f)).trim_matches(['-', ' ']);
                for (form, text) in forms(part).into_iter().filter(|_| part.len() >= WINDOW) {
                    for w in text.as_bytes().windows(WINDOW) {
                        windows.insert(w.try_into().expect("length"), format!("{name} as {form}"));
                    }
                }
            }
            for (form, text) in forms(value).into_iter().filter(|(f, _)| f.starts_with("base64")) {
                // The words around the middle are fixed in `lines` alone.
                let skip = if *name == "lines" { 28 } else { 0 };
                let end = text.len() - skip;
                for w in text.as_bytes()[skip..end].windows(WINDOW) {
                    windows.insert(w.try_into().expect("length"), format!("{name} as {form}"));
                }
            }
        }
        let mut starts = vec![false; 1 << 24];
        windows.keys().for_each(|w: &[u8; WINDOW]| starts[start(w)] = true);
        Finder { windows, starts }
    }

    fn find(&self, bytes: &[u8]) -> Option<String> {
        bytes.windows(WINDOW).filter(|w| self.starts[start(w)]).find_map(|w| {
            let w: &[u8; WINDOW] = w.try_into().ok()?;
            let what = self.windows.get(w)?;
            Some(format!("{what}: {:?}", String::from_utf8_lossy(w)))
        })
    }
}

/// Answers every request with what it got, raw and as JSON, and keeps it.
fn echo() -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = heard.clone();
    let url = serve(move |request| {
        keep.lock().expect("lock").push(request.to_owned());
        (200, json!({ "echo": request, "again": STANDARD.encode(request) }).to_string())
    });
    (url, heard)
}

/// KV version 2 of Vault, as its API documentation has it.
fn vault(token: &'static str, value: String) -> String {
    serve(move |request| {
        let head = request.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        if !head.lines().any(|l| l == format!("x-vault-token: {token}")) {
            return (403, json!({ "errors": ["permission denied"] }).to_string());
        }
        if !head.starts_with("get /v1/secret/data/shop/db ") {
            return (404, json!({ "errors": [] }).to_string());
        }
        let metadata =
            json!({ "created_time": "2026-11-21T00:00:00Z", "deletion_time": "", "destroyed": false, "version": 3 });
        (200, json!({ "data": { "data": { "password": value, "user": "shop" }, "metadata": metadata } }).to_string())
    })
}

fn serve(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for mut c in listener.incoming().flatten() {
            let _ = c.set_read_timeout(Some(std::time::Duration::from_secs(2)));
            let (mut got, mut piece) = (Vec::new(), [0; 4096]);
            let whole = |got: &[u8]| {
                let text = String::from_utf8_lossy(got).into_owned();
                let (head, body) = text.split_once("\r\n\r\n")?;
                let length = head
                    .lines()
                    .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
                (body.len() >= length.unwrap_or(0)).then_some(text)
            };
            while whole(&got).is_none()
                && let Ok(n @ 1..) = c.read(&mut piece)
            {
                got.extend_from_slice(&piece[..n]);
            }
            let (status, body) = answer(&whole(&got).unwrap_or_default());
            let _ =
                write!(c, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        }
    });
    url
}

const CATALOG: &str = r#"kind: project
name: shop
group: retail
---
kind: host
name: h1
address: 127.0.0.1
labels: { role: web }
---
kind: environment
project: shop
name: beta
flow: web
hosts: [h1]
---
kind: flow
project: shop
flow: web
on_failure: stop
inputs:
  token: { type: secret }
steps:
  - id: call
    uses: http.request
    with:
      url: "@URL@"
      method: POST
      headers: { authorization: "Bearer ${{ secrets.plain }}", x-given: "${{ inputs.token }}" }
      body: "${{ secrets.plain }} / ${{ secrets.letters }}"
  - id: out
    needs: [call]
    waves: "100%"
    steps:
      - id: put
        uses: file.put
        with: { path: got.txt, mode: "0600", content: "${{ secrets.lines }}" }
      - id: show
        uses: script
        with:
          env:
            PLAIN: "${{ secrets.plain }}"
            QUOTED: "${{ secrets.quoted }}"
            LINES: "${{ secrets.lines }}"
            LETTERS: "${{ secrets.letters }}"
            LONG: "${{ secrets.long }}"
            VAULTED: "${{ secrets.vaulted }}"
            GIVEN: "${{ inputs.token }}"
          stdin: "${{ secrets.long }}"
          run: |
            to="$WINDLASS_ROOT/shared/sums"
            sum() { printf %s "$2" | sha256sum | cut -c1-64 | sed "s/^/$1 /" >> "$to"; }
            sum stdin "$(cat)"
            sum plain "$PLAIN"; sum quoted "$QUOTED"; sum lines "$LINES"; sum letters "$LETTERS"; sum long "$LONG"
            sum vaulted "$VAULTED"; sum given "$GIVEN"; sum file "$(cat "$WINDLASS_ROOT/shared/got.txt")"
            enc() { local LC_ALL=C i c; for ((i = 0; i < ${#1}; i++)); do c="${1:i:1}"
              case "$c" in [a-zA-Z0-9]) printf %s "$c";; *) printf '%%%02X' "'$c";; esac; done; }
            for v in "$PLAIN" "$QUOTED" "$LINES" "$LETTERS" "$LONG" "$VAULTED" "$GIVEN"; do
              echo "raw [$v]"; echo "raw [$v]" >&2
              printf %s "$v" | base64; printf %s "$v" | base64 -w0; echo
              printf 'x%s!' "$v" | base64 -w0; echo; printf 'xx%s!' "$v" | base64 -w0; echo
              printf %s "$v" | base64 -w0 | tr '+/' '-_' | tr -d =; echo
              printf %s "$v" | xxd -p; printf %s "$v" | xxd -p -u -c 0
              [ "${#v}" -gt 500 ] || echo "https://h/?q=$(enc "$v")"
              j="${v//\\/\\\\}"; j="${j//\"/\\\"}"; printf '{"v":"%s"}\n' "${j//$'\n'/\\n}"
              printf %s "${v:0:7}"; sleep 0.08; printf %s "${v:7}"; echo
              for ((i = 0; i < 40; i++)); do printf %s "${v:i:1}"; done; printf '%s\n' "${v:40}"
              (set -x; : "$v") 2>&1
            done
            echo "leak=$PLAIN and $QUOTED" >> "$WINDLASS_OUTPUT"
            printf 'long<<END\n%s\nEND\nfine=hello\n' "$LINES" >> "$WINDLASS_OUTPUT"
      - id: next
        uses: script
        with:
          env: { FINE: "${{ steps.show.outputs.fine }}", LEAK: "${{ steps.show.outputs.leak }}" }
          run: printf '%s' "$FINE|$LEAK" > "$WINDLASS_ROOT/shared/next"
      - id: fail
        uses: script
        with:
          env: { QUOTED: "${{ secrets.quoted }}" }
          run: |
            echo "cannot log in with $QUOTED" >&2
            exit 3
"#;

async fn canary(db: Db) {
    let canaries = canaries();
    let of = |name: &str| canaries[name].as_str();
    let mut w = World::start(db, Form::Embedded).await;
    // Vault is set up by its settings.
    let token_file = w.dir.path().join("vault.token");
    std::fs::write(&token_file, "vault-token-1\n").expect("token");
    let vault_url = vault("vault-token-1", of("vaulted").into());
    let toml = w.state().join("windlass.toml");
    let text = std::fs::read_to_string(&toml).expect("settings");
    let database = text.lines().find_map(|l| l.strip_prefix("url = ")).expect("url").trim_matches('"').to_owned();
    let more = format!("[vault]\naddress = \"{vault_url}\"\ntoken_file = \"{}\"\n", token_file.display());
    std::fs::write(&toml, text + &more).expect("settings");
    w.kill("up");
    w.start_process("up");
    wait_http(&format!("{}/readyz", w.base)).await;

    let (url, heard) = echo();
    w.apply(&CATALOG.replace("@URL@", &url)).await;
    // The innermost scope wins.
    w.secret("group.retail", "plain", "the-outermost-value").await;
    w.secret("project.shop", "plain", of("plain")).await;
    w.secret("project.shop", "quoted", "a-value-that-is-hidden").await;
    w.secret("host.h1", "quoted", of("quoted")).await;
    w.secret("environment.shop.beta", "lines", of("lines")).await;
    w.secret("group.retail", "letters", of("letters")).await;
    w.secret("project.shop", "long", of("long")).await;
    let pointer = json!({ "vault": "secret/shop/db#password" });
    let (status, body) =
        w.send("PUT", "/secrets/project.shop/vaulted", &w.admin, Some(pointer)).await.expect("answers");
    assert_eq!(status, 200, "{body}");
    for short in ["abc", "a\nb\n"] {
        let body = json!({ "value": short });
        let (status, body) = w.send("PUT", "/secrets/project.shop/short", &w.admin, Some(body)).await.expect("answers");
        assert!(status == 400 && body.to_string().contains("4 bytes"), "{status} {body}");
    }
    w.version("shop", "1.0.0", "true").await;
    w.agents(&["h1"]).await;

    let body = json!({ "environment": "beta", "version": "1.0.0", "inputs": { "token": of("given") } });
    let answer = w.post_through("/projects/shop/deployments", body).await;
    let id = answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned();
    let ended = w.until(&id, &["failed", "paused"]).await;

    // The scripts got every value exactly, and the far side of the request too.
    let shared = w.root("h1").join("shared");
    let sums = std::fs::read_to_string(shared.join("sums")).expect("the script ran");
    let sum = |v: &str| hex(&Sha256::digest(v));
    for (name, value) in &canaries {
        assert!(sums.contains(&format!("{name} {}\n", sum(value))), "{name} did not arrive: {sums}");
    }
    assert!(
        sums.contains(&format!("stdin {}\n", sum(of("long"))))
            && sums.contains(&format!("file {}\n", sum(of("lines"))))
    );
    let request = heard.lock().expect("lock").join("\n");
    assert!(request.contains(&format!("Bearer {}", of("plain"))) && request.contains(of("letters")), "{request}");
    assert!(request.contains(of("given")), "{request}");
    let next = std::fs::read_to_string(shared.join("next")).expect("the next step ran");
    assert_eq!(next, "hello|*** and ***");

    // And nobody else did.
    let logs = log(&w, &id).await;
    assert!(logs.contains("raw [***]") && logs.contains("cannot log in with ***"), "{logs}");
    let mut places: Vec<(String, Vec<u8>)> = vec![("the log".into(), logs.into_bytes())];
    let exempt = [shared.join("got.txt")];
    files(w.dir.path(), &exempt, &mut places);
    let whole = places.len();
    assert!(whole > 10, "{whole} files");
    let mut paths: Vec<String> = ["", "/plan", "/tasks", "/approvals", "/logs", "/events"]
        .iter()
        .map(|p| format!("/deployments/{id}{p}"))
        .collect();
    paths.extend(["/secrets", "/audit/export", "/hosts", "/queue", "/deployments", "/catalog/flow"].map(str::to_owned));
    for path in paths {
        let r =
            w.http.get(format!("{}/api/v1{path}", w.base)).bearer_auth(&w.admin).header("accept", "application/json");
        places.push((format!("GET {path}"), r.send().await.expect("answers").bytes().await.expect("body").to_vec()));
    }
    let metrics = w.http.get(format!("{}/metrics", w.base)).bearer_auth(&w.admin).send().await.expect("answers");
    places.push(("metrics".into(), metrics.bytes().await.expect("body").to_vec()));
    if database.starts_with("postgres") {
        let dump = Command::new("pg_dump").arg(&database).output().expect("pg_dump (package postgresql-client)");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        places.push(("the bytes in PostgreSQL".into(), binary_columns(&dump.stdout)));
        places.push(("PostgreSQL".into(), dump.stdout));
    }
    let finder = Finder::new(&canaries);
    let found: Vec<String> =
        places.iter().filter_map(|(name, bytes)| Some(format!("{name}: {}", finder.find(bytes)?))).collect();
    assert!(found.is_empty(), "{found:#?}\n{ended:#}");
    // The search itself finds what is there.
    assert!(finder.find(&std::fs::read(&exempt[0]).expect("file")).is_some());

    // A secret input goes with its deployment.
    if ended["state"] == "failed" {
        windlass_testkit::eventually(PATIENCE, "the input's value is removed", async || {
            let kept = rows(&database, "SELECT count(*) FROM secrets WHERE scope LIKE 'deployment/%'");
            (kept.trim() == "0").then_some(())
        })
        .await;
    }
    missing(&w).await;
}

/// A secret that no scope has is told when the deployment is requested, and Vault's refusal when it is used.
async fn missing(w: &World) {
    let (status, body) = w.send("DELETE", "/secrets/host.h1/quoted", &w.admin, None).await.expect("answers");
    assert_eq!(status, 204, "{body}");
    let (status, _) = w.send("DELETE", "/secrets/project.shop/quoted", &w.admin, None).await.expect("answers");
    assert_eq!(status, 204);
    let ask = json!({ "environment": "beta", "version": "1.0.0", "inputs": { "token": "another-token" } });
    let (status, body) = w.send("POST", "/projects/shop/deployments", &w.admin, Some(ask)).await.expect("answers");
    assert_eq!(status, 409, "{body}");
    assert!(body.to_string().contains("the secret `quoted`") && body.to_string().contains("h1"), "{body}");
}

/// The whole log, decoded.
async fn log(w: &World, id: &str) -> String {
    let url = format!("{}/api/v1/deployments/{id}/logs?limit=500", w.base);
    let r = w.http.get(url).bearer_auth(&w.admin).header("accept", "application/json").send().await.expect("answers");
    let page: Value = r.json().await.expect("JSON");
    let items = page["items"].as_array().expect("items");
    let piece = |i: &Value| STANDARD.decode(i["data"].as_str().unwrap_or_default()).unwrap_or_default();
    String::from_utf8_lossy(&items.iter().flat_map(piece).collect::<Vec<u8>>()).into_owned()
}

fn files(dir: &Path, exempt: &[PathBuf], out: &mut Vec<(String, Vec<u8>)>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = e.path();
        let kind = e.file_type().expect("type");
        if kind.is_dir() {
            files(&path, exempt, out);
        } else if kind.is_file() && !exempt.contains(&path) {
            out.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        }
    }
}

/// `\\x…` of a dump as the bytes they are.
fn binary_columns(dump: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(dump);
    let mut out = Vec::new();
    for part in text.split("\\\\x").skip(1) {
        let digits: Vec<u8> = part.bytes().take_while(u8::is_ascii_hexdigit).collect();
        let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap_or("0"), 16).unwrap_or(0);
        out.extend(digits.chunks_exact(2).map(pair));
        out.extend([0; WINDOW]);
    }
    out
}

fn rows(database: &str, query: &str) -> String {
    let out = match database.strip_prefix("sqlite://") {
        Some(file) => {
            let script = "import sqlite3, sys; print(sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True).execute(sys.argv[2]).fetchone()[0])";
            Command::new("python3").args(["-c", script, file, query]).output()
        }
        None => Command::new("psql").args(["-Atc", query, database]).output(),
    };
    let out = out.expect("runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[tokio::test]
async fn no_secret_is_found_anywhere_on_sqlite() {
    canary(Db::sqlite()).await;
}

#[tokio::test]
async fn no_secret_is_found_anywhere_on_postgres() {
    canary(Db::postgres().await).await;
}

/// What the search would find if the masking were off: the same bytes, unmasked.
#[test]
fn the_search_finds_every_form() {
    let canaries = canaries();
    let finder = Finder::new(&canaries);
    for value in canaries.values() {
        for (form, text) in forms(value) {
            assert!(finder.find(format!("before {text} after").as_bytes()).is_some(), "{form} of {value:?}");
        }
    }
    assert_eq!(finder.find(Value::from("nothing -----BEGIN here").to_string().as_bytes()), None);
}
