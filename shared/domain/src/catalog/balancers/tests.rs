//! Load balancers that are read, and a table of those that are not, with place and remedy.

use crate::catalog::{Item, read};

fn environment(lb: &str) -> String {
    format!("kind: environment\nproject: shop\nname: beta\nhosts: [web-1]\nflow: web\nload_balancers:\n{lb}")
}

#[test]
fn every_kind_is_read_with_all_its_keys() {
    let text = environment(
        r#"  edge:
    kind: haproxy
    endpoints: ["tcp://10.1.0.1:9999", "tcp://[::1]:9999", "unix:///run/haproxy/admin.sock"]
    backend: web
    member: "${{ host.name }}-${{ host.labels.zone }}"
    min_healthy: 50%
    drain_timeout: 2m
    on_drain_timeout: go_on
    attach_timeout: 30s
  inner:
    kind: nginx
    host: lb-1
    file: /etc/nginx/members/shop.conf
    test: [nginx, -t, -q]
    reload: [/usr/sbin/nginx, -s, reload]
    port: 8080
    pid: /run/nginx.pid
    member: ${{ host.address }}
    min_healthy: 3
  cloud:
    kind: http
    drain: { url: "https://lb.example/members/{member}/drain", method: POST, headers: { X: y }, body: '{"m": "{member}"}' }
    attach: { url: "https://lb.example/members/{member}/attach", method: PUT }
    state: { url: "https://lb.example/members/{member}?t=${{ secrets.t }}", headers: { authorization: "Bearer ${{ secrets.edge }}" } }
    drained: "status == 200 && json.connections == 0"
    up: json.state == 'up'
    healthy: json.healthy
    min_healthy: 1
  own: { kind: command, host: lb-2, run: [/opt/lb/member, --fast] }
"#,
    );
    let d = read(&text).unwrap_or_else(|e| panic!("{e:#?}"));
    let Item::Environment(e) = &d[0].item else { panic!("an environment") };
    let names: Vec<&str> = e.load_balancers.keys().map(String::as_str).collect();
    assert_eq!(names, ["cloud", "edge", "inner", "own"]);
    let stored = serde_json::to_string(&d[0].item).expect("writes");
    assert_eq!(serde_json::from_str::<Item>(&stored).expect("reads"), d[0].item);
}

#[test]
fn wrong_ones_are_told_where_and_what_to_do() {
    let haproxy = |more: &str| format!("  a: {{kind: haproxy, endpoints: [\"tcp://h:1\"], backend: b, {more}}}\n");
    let nginx = |more: &str| format!("  a: {{kind: nginx, host: lb-1, {more}}}\n");
    let http = |more: &str| {
        format!(
            "  a: {{kind: http, drain: {{url: \"http://x/{{member}}\"}}, attach: {{url: \"http://x\", body: \"{{member}}\"}}, {more}}}\n"
        )
    };
    let table = [
        ("  a: 5\n".to_string(), "must be a map with `kind`"),
        ("  a: {backend: b}\n".into(), "the key `kind` is missing; write one of haproxy, nginx, http, command"),
        ("  a: {kind: haprox}\n".into(), "did you mean `haproxy`?"),
        (
            "  a: {kind: haproxy, backend: b, endpoint: []}\n".into(),
            "unknown key `endpoint` (did you mean `endpoints`?)",
        ),
        ("  a: {kind: haproxy, backend: b}\n".into(), "`endpoints`"),
        ("  A b: {kind: command, host: h, run: [/x]}\n".into(), "must be a name"),
        ("  a: {kind: haproxy, backend: b, endpoints: []}\n".into(), "must name at least one"),
        ("  a: {kind: haproxy, backend: b, endpoints: [\"h:1\"]}\n".into(), "must be `tcp://host:port`"),
        ("  a: {kind: haproxy, backend: b, endpoints: [\"tcp://h:0\"]}\n".into(), "must be `tcp://host:port`"),
        ("  a: {kind: haproxy, backend: b, endpoints: [\"unix://x\"]}\n".into(), "must be `tcp://host:port`"),
        ("  a: {kind: haproxy, backend: \"b; quit\", endpoints: [\"tcp://h:1\"]}\n".into(), "the name of a backend"),
        (haproxy("member: \"${{ inputs.x }}\""), "reads `inputs`; only `host` exists here"),
        (haproxy("member: \"${{ secrets.x }}\""), "holds no secrets"),
        (haproxy("member: web"), "is the same for all hosts"),
        (haproxy("member: \"${{ host.name\""), "has no closing"),
        (haproxy("min_healthy: half"), "such as `3`, or a part such as `50%`"),
        (haproxy("min_healthy: 120%"), "such as `3`, or a part such as `50%`"),
        (haproxy("drain_timeout: 5"), "is not a duration"),
        (haproxy("drain_timeout: 0s"), "longer than 0s and at most 1d"),
        (haproxy("attach_timeout: 2d"), "longer than 0s and at most 1d"),
        (haproxy("on_drain_timeout: wait"), "fail"),
        (nginx("file: conf/x"), "must be the absolute path of a file"),
        (nginx("file: /etc/../x"), "must be the absolute path of a file"),
        (nginx("file: /x, port: 0"), "1 to 65535"),
        (nginx("file: /x, test: []"), "must hold a program and its arguments"),
        (nginx("file: /x, pid: run"), "must be the absolute path of a file"),
        ("  a: {kind: nginx, host: \"a b\", file: /x}\n".into(), "the name of a host with an agent"),
        (http("state: {url: \"ftp://x\"}"), "must begin with http://"),
        (http("state: {url: \"http://x\", method: LOOK}"), "one of GET, POST, PUT, PATCH, DELETE"),
        (http("state: {url: \"http://x\", verb: GET}"), "verb"),
        (http("up: json.up"), "add `state: { url: ... }`"),
        (http("state: {url: \"http://x\"}, up: \"body == 'x'\""), "only `json` and `status` exist here"),
        (http("state: {url: \"http://x\"}, drained: \"json.\""), "json."),
        (http("min_healthy: 2"), "needs `healthy`"),
        (http("state: {url: \"http://x/ y\"}"), "hold no spaces"),
        (
            http("state: {url: \"http://x\", body: \"${{ inputs.x }}\"}"),
            "holds `inputs.x`; only `${{ secrets.<name> }}`",
        ),
        (http("state: {url: \"http://x\", body: \"${{ secrets.x\"}"), "without a closing"),
        (
            "  a: {kind: http, drain: {url: \"http://x\"}, attach: {url: \"http://x/{member}\"}}\n".into(),
            "does not say which member",
        ),
        ("  a: {kind: command, host: h, run: []}\n".into(), "a program and its arguments"),
        ("  a: {kind: command, host: h, run: [member]}\n".into(), "the absolute path of a program"),
        ("  a: {kind: command, host: h, run: [/m], min_healthy: 2}\n".into(), "let the command refuse"),
    ];
    for (lb, word) in table {
        let e = read(&environment(&lb)).expect_err(&lb);
        let told = e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(e.iter().any(|e| e.message.contains(word)), "{lb}\n{told}");
        assert!(
            e.iter().all(|e| e.place.is_some_and(|p| p.line == 7) && e.path.starts_with("load_balancers")),
            "{told}"
        );
    }
}
