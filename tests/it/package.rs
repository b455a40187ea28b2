//! Small packages, and the flow that releases them: fetch, verify, switch, a script that leaves a mark, a check.

use crate::world::World;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::Path, process::Command};

/// Packs a directory with these files; the answer is the URL, the digest and the size.
pub(crate) fn pack(dir: &Path, name: &str, files: &[(&str, &str)]) -> (String, String, u64) {
    let src = dir.join(format!("src-{name}"));
    for (path, text) in files {
        let p = src.join(path);
        std::fs::create_dir_all(p.parent().expect("parent")).expect("directory");
        std::fs::write(p, text).expect("file");
    }
    let out = dir.join(format!("{name}.tar.gz"));
    let done = Command::new("tar").args(["-czf"]).arg(&out).arg("-C").arg(&src).arg(".").status().expect("tar");
    assert!(done.success());
    let bytes = std::fs::read(&out).expect("package");
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    (format!("file://{}", out.display()), format!("sha256:{digest}"), bytes.len() as u64)
}

impl World {
    /// Registers a version whose `VERSION` file says so; `script` is run by the flow as `bin/go`.
    pub(crate) async fn version(&self, project: &str, version: &str, go: &str) {
        let (url, digest, size) =
            pack(self.dir.path(), &format!("{project}-{version}"), &[("VERSION", version), ("bin/go", go)]);
        let body = json!({ "version": version, "url": url, "digest": digest, "size": size });
        self.post(&format!("/projects/{project}/artifacts"), body).await;
    }

    /// Where the flow's script leaves a line for every start: `<task key> <host> <what>`.
    pub(crate) fn marks(&self) -> std::path::PathBuf {
        self.dir.path().join("marks")
    }

    /// How often each (task, what) was started.
    pub(crate) fn starts(&self) -> BTreeMap<String, u32> {
        let mut n = BTreeMap::new();
        for line in std::fs::read_to_string(self.marks()).unwrap_or_default().lines() {
            *n.entry(line.to_owned()).or_insert(0) += 1;
        }
        n
    }

    /// The promise that counts most: no attempt ever started a step twice.
    pub(crate) fn assert_started_once(&self) {
        for (what, n) in self.starts() {
            assert_eq!(n, 1, "{what} was started {n} times");
        }
    }

    /// The version a host runs now.
    pub(crate) fn current(&self, host: &str) -> Option<String> {
        std::fs::read_to_string(self.root(host).join("current/VERSION")).ok()
    }

    /// The catalog most tests use: project `shop`, environment `beta` with these hosts, a flow in the given waves. `go` of
    /// the package runs between two marks, so its length is the test's to choose.
    pub(crate) fn catalog(&self, hosts: &[&str], waves: &str, quorum: u32, extra: &str) -> String {
        let marks = self.marks();
        let marks = marks.display();
        let mut y = String::from("kind: project\nname: shop\ngroup: retail\nhooks:\n  cdevents: { secret: ci }\n");
        for h in hosts {
            y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\nlabels: {{ role: web }}\n");
            y += &self.ssh_of(h);
        }
        y += &format!("---\nkind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [{}]\n", hosts.join(", "));
        y += &format!(
            r#"---
kind: flow
project: shop
flow: web
on_failure: pause
steps:
  - id: rollout
    waves: "{waves}"
    {extra}
    steps:
      - uses: artifact.fetch
      - uses: artifact.verify
      - uses: release.switch
      - id: go
        uses: script
        timeout: 120s
        with:
          run: |
            echo "$TASK_KEY $WINDLASS_HOST go" >> {marks}
            . "$WINDLASS_ROOT/current/bin/go"
      - id: after
        uses: script
        with:
          run: |
            echo "$TASK_KEY $WINDLASS_HOST after" >> {marks}
rollback:
  normal:
    - uses: release.switch
      with: {{ to: last_known_good }}
"#
        );
        if quorum > 0 {
            y += &format!(
                "---\nkind: policy\nname: beta\nmatch: {{ projects: [shop], environments: [beta] }}\non_artifact: [beta]\napprovals:\n  - {{ name: ops, quorum: {quorum} }}\n"
            );
        }
        y
    }
}
