//! What serves pages: static files, Node, Tomcat and PHP-FPM.

use super::{Lab, answers, run, runs, stops};
use serde_json::{Value, json};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_static_site_is_switched_at_once_and_back() {
    let lab = Lab::start("static-site", "").await;
    let inputs = json!({ "port": lab.port });
    lab.release("1.0.0", &[]).await;
    lab.deploy("1.0.0", inputs.clone()).await;
    lab.release("1.1.0", &[]).await;
    let second = lab.deploy("1.1.0", inputs.clone()).await;
    for h in [0, 1] {
        assert_eq!(lab.get(h, "/VERSION").await, "1.1.0");
    }
    // A package without its first page never goes live.
    lab.release("1.2.0", &[("index.html", "")]).await;
    let bad = lab.request("online", json!({ "version": "1.2.0", "inputs": inputs })).await;
    let reason = stops(&lab, &bad).await;
    assert!(reason.contains("the package holds no index.html"), "{reason}");
    assert_eq!(lab.get(0, "/VERSION").await, "1.1.0", "the old one still stands");
    lab.w.post(&format!("/deployments/{bad}/abort"), json!({ "reason": "bad package" })).await;
    lab.w.until(&bad, &["aborted"]).await;
    lab.roll_back(second["id"].as_str().expect("id"), "normal").await;
    for h in [0, 1] {
        assert_eq!(lab.get(h, "/VERSION").await, "1.0.0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_process_is_replaced() {
    let lab = Lab::start("node", "").await;
    let inputs = json!({ "port": lab.port, "drain_seconds": 0 });
    lab.release("1.0.0", &[]).await;
    lab.deploy("1.0.0", inputs.clone()).await;
    let before = [lab.get(0, "/pid").await, lab.get(1, "/pid").await];
    lab.release("1.1.0", &[]).await;
    lab.deploy("1.1.0", inputs.clone()).await;
    for h in [0, 1] {
        assert_eq!(lab.get(h, "/version").await, "1.1.0");
        assert_ne!(lab.get(h, "/pid").await, before[h], "a new process");
        assert!(!runs(&before[h]), "the old one ended");
        assert!(!lab.shared(h, "draining").exists());
    }
    // One that is not well stops at the canary; its mark is taken away all the same, and the way back works.
    lab.release("1.2.0", &[("BROKEN", "yes")]).await;
    let mut body = json!({ "version": "1.2.0", "inputs": inputs });
    body["inputs"]["health_path"] = json!("/health");
    let bad = lab.request("online", body).await;
    let reason = stops(&lab, &bad).await;
    assert!(reason.contains("500"), "{reason}");
    assert!(!lab.shared(0, "draining").exists(), "clean-up ran after the failure");
    assert_eq!(lab.get(1, "/version").await, "1.1.0", "the second host was not touched");
    lab.roll_back(&bad, "normal").await;
    answers(&lab, 0, "/health", "1.1.0").await;
    // One that does not even read is found while the old one serves.
    lab.release("1.3.0", &[("server.js", "const = ;")]).await;
    let bad = lab.request("online", json!({ "version": "1.3.0", "inputs": { "port": lab.port } })).await;
    stops(&lab, &bad).await;
    assert_eq!(lab.get(0, "/version").await, "1.1.0");
    // In an emergency there is no draining and no asking: switched and restarted.
    let before = lab.get(0, "/pid").await;
    lab.roll_back(&bad, "emergency").await;
    answers(&lab, 0, "/version", "1.1.0").await;
    assert_ne!(lab.get(0, "/pid").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn tomcat_starts_anew_with_nothing_left_over() {
    let lab = Lab::start("tomcat", "").await;
    let inputs = json!({ "port": lab.port, "drain_seconds": 0, "java_opts": "-Xmx128m -XX:TieredStopAtLevel=1" });
    lab.release("1.0.0", &[]).await;
    lab.deploy("1.0.0", inputs.clone()).await;
    assert_eq!(lab.get(0, "/version.jsp").await, "1.0.0");
    let pid = std::fs::read_to_string(lab.shared(0, "tomcat/tomcat.pid")).expect("runs").trim().to_owned();
    let compiled = "tomcat/work/Catalina/localhost/ROOT/org/apache/jsp/version_jsp.class";
    assert!(lab.shared(0, compiled).exists(), "the page was compiled into work/");
    let left = [lab.shared(0, "tomcat/work/left/over.class"), lab.shared(0, "tomcat/temp/upload.tmp")];
    for f in &left {
        std::fs::create_dir_all(f.parent().expect("parent")).expect("directory");
        std::fs::write(f, "old").expect("file");
    }
    // All files of a package have one time, so Tomcat would take the old page's class in work/ for the new one's.
    let page = "<%@ page contentType=\"text/plain\" %>2.0.0 <%= 6 * 7 %>";
    lab.release("2.0.0", &[("webapp/version.jsp", page)]).await;
    let second = lab.deploy("2.0.0", inputs).await;
    assert_eq!(lab.get(0, "/version.jsp").await, "2.0.0 42");
    assert!(!runs(&pid), "the old Tomcat ended");
    assert!(left.iter().all(|f| !f.exists()), "work/ and temp/ were cleared");
    assert!(!lab.shared(0, "draining").exists());
    lab.roll_back(second["id"].as_str().expect("id"), "normal").await;
    assert_eq!(lab.get(0, "/version.jsp").await, "1.0.0");
}

impl Lab {
    /// What the pool answers for the page, by the path over `current` that a web server sends.
    fn php(&self) -> String {
        let page = self.root(0).join("current/public/index.php");
        let mut c = Command::new("cgi-fcgi");
        c.args(["-bind", "-connect"]).arg(self.shared(0, "php-fpm.sock"));
        c.env("REQUEST_METHOD", "GET").env("SCRIPT_NAME", "/index.php").env("SCRIPT_FILENAME", page);
        run(&mut c).lines().last().unwrap_or_default().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn php_serves_the_new_code_although_it_never_looks_at_a_file_twice() {
    let lab = Lab::start("php-fpm", "").await;
    let page = |n: u32| format!("<?php header('Content-Type: text/plain'); echo '{n}.0.0';");
    for n in 1..=3 {
        lab.release(&format!("{n}.0.0"), &[("public/index.php", &page(n))]).await;
    }
    lab.deploy("1.0.0", Value::Null).await;
    assert_eq!(lab.php(), "1.0.0");
    // The control: without the flow the pool goes on with the old code for ever.
    let kept = lab.root(0).join("current/public/index.php").canonicalize().expect("page");
    std::fs::write(&kept, page(9)).expect("page");
    assert_eq!(lab.php(), "1.0.0", "the cache is really on");
    std::fs::write(&kept, page(1)).expect("page");
    lab.deploy("2.0.0", json!({ "cache": "reset" })).await;
    assert_eq!(lab.php(), "2.0.0");
    let third = lab.deploy("3.0.0", json!({ "cache": "reload" })).await;
    for _ in 0..10 {
        assert_eq!(lab.php(), "3.0.0", "from every worker");
    }
    lab.roll_back(third["id"].as_str().expect("id"), "emergency").await;
    assert_eq!(lab.php(), "2.0.0");
    // Code that does not parse never goes live.
    lab.release("4.0.0", &[("public/index.php", "<?php echo (;")]).await;
    let bad = lab.request("online", json!({ "version": "4.0.0" })).await;
    let reason = stops(&lab, &bad).await;
    assert!(reason.contains("Errors parsing"), "{reason}");
    assert_eq!(lab.php(), "2.0.0");
}
