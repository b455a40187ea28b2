//! Documents that read, and a table of those that do not, with place and remedy.

use super::*;
use proptest::prelude::*;

const GOOD: &str = r#"# a whole catalog
kind: project
name: shop
group: retail
hooks:
  cdevents: { secret: ci }
  generic: { secret: ci, when: "body.kind == 'built'", version: body.version, url: body.url, digest: "'sha256:' + body.sum" }
---
kind: host
name: web-1
address: 10.0.0.1
labels: { zone: a, rank: 1, ver: 1.10 }
values: { port: 8080 }
---
kind: environment
project: shop
name: beta
hosts: [web-1]
selector: "zone=a,rank!=2"
flow: web
values: { domain: shop.example }
---
kind: flow
project: shop
flow: web
steps:
  - { id: hello, uses: notify, with: { message: "${{ env.domain }}" } }
---
kind: policy
name: guard
match: { projects: [shop] }
on_artifact: [beta]
approvals:
  - { name: ops, quorum: 2 }
  - { name: boss, quorum: 1, people: [zoe] }
---
kind: channel
name: chat
provider: { type: slack, url: slack-url }
rules: [ { projects: [shop], severity: action } ]
---
kind: channel
name: mail
provider: { type: email, server: "mail:587", from: a@b.example, to: [c@d.example], tls: implicit }
rules: [ {} ]
"#;

#[test]
fn a_whole_catalog_is_read() {
    let d = read(GOOD).unwrap_or_else(|e| panic!("{e:#?}"));
    let keys: Vec<String> = d.iter().map(|d| format!("{} {}", d.item.kind().as_str(), d.item.key())).collect();
    let expected = [
        "project shop",
        "host web-1",
        "environment shop/beta",
        "flow shop/web",
        "policy guard",
        "channel chat",
        "channel mail",
    ];
    assert_eq!(keys, expected);
    assert_eq!(d[1].place, Place { line: 9, column: 1 });
    let Item::Host(h) = &d[1].item else { panic!("a host") };
    assert_eq!((h.labels["rank"].as_str(), h.labels["ver"].as_str()), ("1", "1.10"));
    let Item::Flow { source, project, .. } = &d[3].item else { panic!("a flow") };
    assert_eq!(project, "shop");
    assert!(source.starts_with("kind: flow") && source.ends_with('}') && *source == d[3].source, "{source}");
    // What each document says alone is the same again.
    for one in &d {
        let again = read(&one.source).unwrap_or_else(|e| panic!("{}\n{e:#?}", one.source));
        assert_eq!(again[0].item, one.item);
        let text = serde_json::to_string(&one.item).expect("writes");
        assert_eq!(serde_json::from_str::<Item>(&text).expect("reads"), one.item);
    }
}

/// (text, document, line, column, a word of the message): the first problem must be this one.
#[test]
fn wrong_documents_are_told_where_and_what_to_do() {
    let env = "kind: environment\nproject: shop\nname: beta\nflow: web\n";
    let policy = "kind: policy\nname: p\n";
    let channel = "kind: channel\nname: c\nrules: [{}]\n";
    let table: Vec<(String, u32, u32, u32, &str)> = vec![
        ("".into(), 0, 0, 0, "no document"),
        ("name: shop\n".into(), 1, 1, 1, "`kind` is missing"),
        ("kind: projekt\nname: a\n".into(), 1, 1, 7, "did you mean `project`?"),
        ("kind: project\nname: shop\n".into(), 1, 1, 1, "`group` is missing"),
        ("kind: project\nname: shop\ngruop: a\n".into(), 1, 3, 1, "did you mean `group`?"),
        ("kind: project\nname: Shop\ngroup: a\n".into(), 1, 2, 7, "must be a name"),
        ("kind: project\nname: [a]\ngroup: a\n".into(), 1, 2, 7, "must be a string"),
        ("kind: project\nname: shop\ngroup: a\nhooks: {cdevents: {secrt: x}}\n".into(), 1, 4, 20, "did you mean `secret`?"),
        ("kind: project\nname: shop\ngroup: a\nhooks: {generic: {secret: x, version: 'body.', url: body.u, digest: body.d}}\n".into(), 1, 4, 39, "body."),
        ("kind: project\nname: shop\ngroup: a\nhooks: {generic: {secret: x, version: env.v, url: body.u, digest: body.d}}\n".into(), 1, 4, 39, "only `body` and `headers`"),
        (format!("{env}hosts: [a, a]\n"), 1, 5, 12, "keep one"),
        (format!("{env}hosts: [A]\n"), 1, 5, 9, "must be a name"),
        (env.into(), 1, 1, 1, "`hosts: [...]`"),
        (format!("{env}selector: \"zone=\"\n"), 1, 5, 11, "character 6"),
        (format!("{env}hosts: a\n"), 1, 5, 8, "must be a sequence"),
        (format!("{env}hosts: [a]\nvalues: {{name: x}}\n"), 1, 6, 16, "another name"),
        (format!("{env}hosts: [a]\nvalues: {{\"a-b\": x}}\n"), 1, 6, 17, "letters, digits"),
        ("kind: host\nname: a\naddress: \"\"\n".into(), 1, 3, 10, "not be empty"),
        ("kind: host\nname: a\naddress: \"http://x\"\n".into(), 1, 3, 10, "host name or an address"),
        ("kind: host\nname: a\naddress: x\nlabels: {zone: \"a b\"}\n".into(), 1, 4, 16, "selectors"),
        ("kind: host\nname: a\naddress: x\nlabels: [a]\n".into(), 1, 4, 9, "must be a map"),
        (format!("{policy}approvals: [{{name: a, quorum: 0}}]\n"), 1, 3, 31, "at least 1"),
        (format!("{policy}approvals: [{{name: a, quorum: two}}]\n"), 1, 3, 31, "must be u32"),
        (format!("{policy}approvals: [{{name: a, quorum: 2, people: [zoe]}}]\n"), 1, 3, 31, "names 1"),
        (format!("{policy}approvals: [{{name: a, quorum: 1}}, {{name: a, quorum: 1}}]\n"), 1, 3, 42, "used twice"),
        (format!("{policy}match: {{project: [a]}}\n"), 1, 3, 9, "did you mean `projects`?"),
        (format!("{channel}provider: {{url: x}}\n"), 1, 4, 11, "`type` is missing"),
        (format!("{channel}provider: {{type: slak, url: x}}\n"), 1, 4, 18, "did you mean `slack`?"),
        (format!("{channel}provider: {{type: slack, url: x, sign: y}}\n"), 1, 4, 33, "slack has: type, url"),
        (format!("{channel}provider: {{type: slack}}\n"), 1, 4, 11, "`url` is missing"),
        (format!("{channel}provider: {{type: slack, url: \"https://hooks.example/x\"}}\n"), 1, 4, 30, "never the value itself"),
        (format!("{channel}provider: {{type: email, server: mail, from: a, to: [b]}}\n"), 1, 4, 33, "host:port"),
        ("kind: channel\nname: c\nrules: []\nprovider: {type: slack, url: x}\n".into(), 1, 3, 8, "at least one rule"),
        ("kind: channel\nname: c\nrules: [{severity: loud}]\nprovider: {type: slack, url: x}\n".into(), 1, 3, 20, "info, notice, action, alert"),
        ("kind: flow\nflow: web\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 1, 1, 1, "`project` is missing"),
        ("kind: flow\nproject: shop\nflow: web\nsteps: [{id: a, uses: wat, with: {for: 1s}}]\n".into(), 1, 4, 23, "did you mean `wait`?"),
        ("kind: project\nname: a\ngroup: b\n---\nkind: project\nname: a\ngroup: c\n".into(), 2, 5, 1, "document 1 (line 1, column 1)"),
        ("kind: project\nname: a\ngroup: b\n---\n\n# x\nkind: project\nname: b\n".into(), 2, 7, 1, "`group` is missing"),
        ("kind: project\nname: a\n  group: b\n".into(), 0, 3, 8, "not valid YAML"),
        ("kind: project\nname: a\nname: b\n".into(), 0, 3, 1, "keep one"),
        ("kind: project\nname: \"a\\0\"\ngroup: b\n".into(), 0, 2, 7, "NUL"),
    ];
    for (text, document, line, column, word) in table {
        let e = read(&text).expect_err(&text);
        let told = e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let place = (line > 0).then_some(Place { line, column });
        assert_eq!((e[0].document, e[0].place), (document, place), "{text}\n{told}");
        assert!(e[0].message.contains(word), "{text}\n{told}");
    }
}

#[test]
fn every_document_with_problems_is_told() {
    let e = read("kind: project\n---\nkind: host\nname: h\naddress: x\n---\nkind: x\n").expect_err("bad");
    assert_eq!(e.iter().map(|e| e.document).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn large_catalogs_are_read_quickly_and_too_large_ones_refused() {
    let hosts: String = (0..5000)
        .map(|i| format!("---\nkind: host\nname: h{i}\naddress: h{i}.example\nlabels: {{zone: a}}\n"))
        .collect();
    let begun = std::time::Instant::now();
    assert_eq!(read(&hosts).expect("reads").len(), 5000);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert!(read(&"#".repeat(yaml::MAX_BYTES + 1)).expect_err("large")[0].message.contains("split"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_text_is_answered(text in "\\PC{0,300}") {
        let _ = read(&text);
    }

    #[test]
    fn damaged_catalogs_are_answered(line in 0usize..46, what in 0usize..4, put in "[-:{}\\[\\], a-z0-9&*!|>'\"#%$?]{0,12}", at in 0usize..60) {
        let mut lines: Vec<String> = GOOD.lines().map(Into::into).collect();
        let line = line.min(lines.len() - 1);
        match what {
            0 => { lines.remove(line); }
            1 => { let l = lines[line].clone(); lines.insert(line, l); }
            _ => {
                let at = at.min(lines[line].len());
                if lines[line].is_char_boundary(at) { lines[line].insert_str(at, &put); }
            }
        }
        if let Err(e) = read(&lines.join("\n")) {
            prop_assert!(!e.is_empty() && e.iter().all(|p| !p.message.is_empty()));
        }
    }
}
