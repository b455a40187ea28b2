//! `ansible.playbook` with the real program.

use crate::{plugins::log, world::World};
use serde_json::{Value, json};
use std::time::Duration;
use windlass_domain::work::WorkResult;
use windlass_testkit::databases;

const PROGRAM: &str = "/usr/bin/ansible-playbook";

async fn result(w: &World, step: &str) -> (bool, String, Value) {
    assert!(std::path::Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the Debian package ansible-core");
    let work = w.central(step).await;
    // The step itself may take 60 s, and Ansible begins slowly on a crowded machine.
    match w.result_within(work, 1, Duration::from_secs(90)).await {
        WorkResult::Central { succeeded, reason, output, .. } => (succeeded, reason.unwrap_or_default(), output),
        other => panic!("not central: {other:?}"),
    }
}

#[tokio::test]
async fn a_playbook_runs_on_every_host_and_says_how_each_came_out() {
    for db in databases().await {
        let dir = windlass_testkit::temp_dir();
        let d = dir.path().display();
        let good = format!(
            "- hosts: role_web\n  gather_facts: false\n  tasks:\n    - name: write\n      copy:\n        dest: \"{d}/{{{{ inventory_hostname }}}}\"\n        \
             content: \"{{{{ greeting }}}} {{{{ windlass_version }}}}\"\n"
        );
        let bad = "- hosts: all\n  gather_facts: false\n  tasks:\n    - name: only one\n      fail: { msg: no room }\n      \
                   when: inventory_hostname == 'h1'\n";
        let nowhere = "- hosts: role_db\n  tasks: []\n";
        let greeting = "{{ lookup('pipe', 'id') }} \"quoted\"\nönd";
        let local =
            |playbook: &str| json!({ "playbook": playbook, "connection": "local", "vars": { "greeting": greeting } });
        let steps = [
            local(&good),
            local(bad),
            local(nowhere),
            local("- hosts: [\n"),
            json!({ "playbook": good, "connection": "local", "check": "yes", "vars": { "ansible_user": "x" } }),
            json!({ "playbook": good, "connection": "ssh", "vars": {} }),
        ];
        let steps = steps.into_iter().map(|with| ("ansible.playbook".to_owned(), with, 60)).collect();
        let w = World::with_plan(db, 2, 0, steps, vec![]).await;
        let off = w.executor().await;
        let (ok, reason, _) = result(&w, "c0").await;
        assert!(!ok && reason.contains("executor.ansible_playbook"), "{reason}");
        off.shut_down().await;

        let e = w.executor_with(|s| s.executor.ansible_playbook = Some(PROGRAM.into())).await;
        let (ok, reason, output) = result(&w, "c0").await;
        assert!(ok, "{reason}\n{}", log(&w).await);
        assert_eq!(
            output["hosts"]["h0"],
            json!({ "ok": 1, "changed": 1, "failures": 0, "unreachable": 0, "skipped": 0 })
        );
        for host in ["h0", "h1"] {
            let text = std::fs::read_to_string(dir.path().join(host)).expect("written");
            assert_eq!(text, format!("{greeting} 1.0.0"), "the value is text, never evaluated");
        }
        assert!(log(&w).await.contains("TASK [write]"), "{}", log(&w).await);

        let (ok, reason, output) = result(&w, "c1").await;
        assert!(!ok && reason.contains("1 of 2 hosts") && reason.contains("h1 failed: only one: no room"), "{reason}");
        assert_eq!((&output["hosts"]["h0"]["failures"], &output["hosts"]["h1"]["failures"]), (&json!(0), &json!(1)));
        for (step, says) in [
            ("c2", "ran on no host"),
            ("c3", "before it ran on any host"),
            ("c4", "`vars` holds `ansible_user`"),
            ("c5", "is not in the catalog"),
        ] {
            let (ok, reason, _) = result(&w, step).await;
            assert!(!ok && reason.contains(says), "{step}: {reason}");
        }
        let left = std::fs::read_dir(w.settings.state_dir.join("runs")).expect("runs").count();
        assert_eq!(left, 0, "private directories stay behind");
        e.shut_down().await;
    }
}
