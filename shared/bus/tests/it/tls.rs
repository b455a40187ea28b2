//! NATS over TLS: a real server with a certificate, services and agents that believe its authority and no other.

use crate::identities::options;
use crate::support::SOON;
use std::{path::Path, process::Command};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{Bus, BusOptions, EmbeddedServer, Identities, identity::ServerTls};
use windlass_runtime::{Health, Settings};

/// An authority `<name>-ca.pem`, and a certificate of 127.0.0.1 that it signed.
fn authority(dir: &Path, name: &str) -> ServerTls {
    let file = |f: &str| dir.join(format!("{name}-{f}"));
    let run = |args: &[&str]| {
        let done = Command::new("openssl").args(args).output().expect("openssl runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let text = |p: &Path| p.display().to_string();
    let (ca, ca_key) = (text(&file("ca.pem")), text(&file("ca.key")));
    let (cert, key, ask, ext) =
        (text(&file("cert.pem")), text(&file("cert.key")), text(&file("csr")), text(&file("ext")));
    std::fs::write(&ext, "subjectAltName=IP:127.0.0.1\n").expect("writes");
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    run(&[&["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", &ca_key, "-out", &ca][..], &curve]
        .concat());
    run(&[&["req", "-subj", "/CN=nats", "-keyout", &key, "-out", &ask][..], &curve].concat());
    run(&["x509", "-req", "-in", &ask, "-CA", &ca, "-CAkey", &ca_key, "-days", "2", "-extfile", &ext, "-out", &cert]);
    ServerTls { cert: cert.into(), key: key.into(), ca: Some(ca.into()) }
}

#[tokio::test]
async fn services_speak_tls_with_the_authority_they_know_and_with_no_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().expect("dir");
    let (shutdown, tracker, health) = (CancellationToken::new(), TaskTracker::new(), Health::new());
    let (ours, theirs) = (authority(dir.path(), "ours"), authority(dir.path(), "theirs"));
    let ids = Identities::load_or_create(&dir.path().join("keys")).expect("keys").with_tls(Some(ours.clone()));
    let server = EmbeddedServer::start(options(&dir, &ids).await, health.clone(), shutdown.clone(), &tracker).await;
    let url = server.expect("starts").url();

    let mut s = Settings::default();
    s.nats.urls = vec![url.replace("nats://", "tls://")];
    s.nats.services_creds = Some(ids.creds_of("scheduler"));
    s.nats.tls.ca_file = ours.ca.clone();
    let bus = Bus::connect(BusOptions::services(&s), &health).await.expect("connects");
    bus.ensure_topology().await.expect("works");
    assert!(bus.client().server_info().tls_required);
    // Also where the URL does not say it: a named authority is a must.
    s.nats.urls = vec![url.clone()];
    Bus::connect(BusOptions::services(&s), &health).await.expect("connects").ensure_topology().await.expect("works");
    // Revoking goes the same way.
    let agent = nkeys::KeyPair::new_user().public_key();
    s.nats.system_creds = Some(ids.system_creds());
    ids.revoke(&s.nats, &[agent]).await.expect("is confirmed over TLS");

    // Somebody else's authority, or none: no connection, and the service goes on without.
    for ca in [theirs.ca, None] {
        s.nats.tls.ca_file = ca.clone();
        let options = BusOptions { first_wait: std::time::Duration::from_secs(1), ..BusOptions::services(&s) };
        let bus = Bus::connect(options, &health).await.expect("starts without");
        assert!(!bus.is_up(), "with {ca:?}");
    }
    shutdown.cancel();
    tracker.close();
    tokio::time::timeout(SOON, tracker.wait()).await.expect("the server ends");
}
