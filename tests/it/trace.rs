//! One trace from the event that asks for a release to the process on a host: every service sends its part of it to a
//! collector that speaks OTLP over HTTP.

use crate::{
    journey::{SECRET, TRACE, cdevent},
    package::pack,
    ssh::Reach,
    world::{Form, PATIENCE, SERVICES, World},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};
use windlass_testkit::{Db, eventually};

/// What came: spans, by the service that sent them.
type Spans = Arc<Mutex<BTreeMap<String, Vec<Span>>>>;

/// Takes what exporters send.
fn collector() -> (String, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let spans = Spans::default();
    let keep = Arc::clone(&spans);
    std::thread::spawn(move || {
        for c in listener.incoming().flatten() {
            let keep = Arc::clone(&keep);
            // An exporter keeps its connection for the next batch.
            std::thread::spawn(move || while take(&c, &keep).is_some() {});
        }
    });
    (url, spans)
}

/// One request of a connection.
fn take(c: &TcpStream, keep: &Spans) -> Option<()> {
    c.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    let mut reader = BufReader::new(c);
    let (mut length, mut traces) = (0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        traces |= line.starts_with("POST /v1/traces ");
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    // The chat's messages come here too; they are no traces.
    let body = if traces { body.as_slice() } else { &[] };
    for of in ExportTraceServiceRequest::decode(body).expect("OTLP").resource_spans {
        let attributes = of.resource.unwrap_or_default().attributes;
        let name = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
        let Some(Value::StringValue(name)) = name else { panic!("a resource without its service's name") };
        let came = of.scope_spans.into_iter().flat_map(|s| s.spans);
        keep.lock().expect("lock").entry(name).or_default().extend(came);
    }
    let mut c = c;
    c.write_all(if traces {
        b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
    } else {
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
    })
    .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_through_every_service_to_the_process_on_the_host() {
    let (endpoint, spans) = collector();
    let telemetry = format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\n");
    let mut w = World::start_with(Db::postgres().await, Form::Scaled, &telemetry).await;
    let hosts = ["h1"];
    w.reach(Reach::Agent, &hosts).await;
    let channel =
        "---\nkind: channel\nname: ops\nprovider: { type: slack, url: ops-url }\nrules:\n  - { severity: info }\n";
    w.apply(&(w.catalog(&hosts, "1", 1, "parallel: 0") + channel)).await;
    w.secret("project.shop", "ci", SECRET).await;
    w.secret("channel", "ops-url", &format!("{endpoint}/chat")).await;
    let bob = w.person("bob", "approver").await;
    w.agents(&hosts).await;
    let files = [("VERSION", "1.0.0"), ("bin/go", "echo $TRACEPARENT > $WINDLASS_ROOT/trace")];
    let (package, digest, _) = pack(w.dir.path(), "one", &files);
    let (status, answer) = w.hook("evt-1", &cdevent("evt-1", "1.0.0", &package, &digest)).await;
    assert!((200..300).contains(&status), "{status} {answer}");
    let id = answer["deployments"][0].as_str().unwrap_or_else(|| panic!("a deployment: {answer}")).to_owned();
    let d = w.until(&id, &["awaiting_approval"]).await;
    w.post_as(&bob, &format!("/deployments/{id}/approve"), json!({ "digest": d["plan_digest"] })).await;
    w.until(&id, &["succeeded"]).await;

    let trace = u128::from_str_radix(TRACE, 16).expect("hex").to_be_bytes();
    let wanted: BTreeSet<(&str, &str)> = [
        ("windlass-api", "request"),
        ("windlass-scheduler", "decide"),
        ("windlass-executor", "work"),
        ("windlass-notifier", "deliver"),
        ("windlass-auditor", "leaf"),
    ]
    .into();
    assert_eq!(wanted.len(), SERVICES.len());
    eventually(PATIENCE, "every service has sent its part of the trace", async || {
        let all = spans.lock().expect("lock");
        let has = |(service, name): &(&str, &str)| {
            all.get(*service).is_some_and(|s| s.iter().any(|s| s.trace_id == trace && s.name == *name))
        };
        wanted.iter().all(has).then_some(())
    })
    .await;
    let of_host = std::fs::read_to_string(w.root("h1").join("trace")).expect("the step wrote it");
    let parent = of_host.trim().split('-').nth(2).expect("a traceparent").to_owned();
    assert!(of_host.contains(TRACE), "{of_host}");
    let all = spans.lock().expect("lock");
    let work = all["windlass-executor"].iter().find(|s| s.trace_id == trace && s.name == "work").expect("the work");
    let own: String = work.span_id.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(parent, own, "what runs on the host is a child of the executor's work");
}
