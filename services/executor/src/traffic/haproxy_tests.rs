//! HAProxy's answers, right ones and others, and what is made of them.

use super::*;
use std::sync::{Arc, Mutex};
use windlass_runtime::Outbound;

const HEAD: &str = "# pxname,svname,qcur,scur,status,weight,bck,type,check_status,last_chk,";

fn stat(rows: &[&str]) -> String {
    format!("{HEAD}\n{}\n\n", rows.join("\n"))
}

#[test]
fn statistics_are_read_by_the_names_of_their_columns() {
    let text = stat(&[
        "shop,FRONTEND,,3,OPEN,,,0,,,",
        "shop,a,1,2,UP,1,0,2,L7OK,,",
        "shop,b,,0,DOWN 1/2,1,0,2,L4CON,\"refused, twice\",",
        "shop,c,0,0,no check,1,1,2,,,",
        "shop,BACKEND,0,3,UP,2,1,1,,,",
    ]);
    let servers = parse(&text).expect("fine");
    assert_eq!(servers.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let a = &servers["a"];
    assert_eq!((a.is_up(), a.sessions, a.backup, a.checked), (true, 3, false, true), "those that wait count as well");
    assert!(!servers["b"].is_up() && servers["c"].is_up() && servers["c"].backup && !servers["c"].checked);
}

#[test]
fn what_is_no_statistics_is_said() {
    assert_eq!(parse("No such proxy.\n").expect_err("no"), "it answered \"No such proxy.\"");
    assert_eq!(parse("\n").expect_err("no"), "it answered nothing");
    assert!(parse("# pxname,svname\nshop,a\n").expect_err("no").contains("`status`"));
    assert!(parse(&stat(&["shop,a,x,2,UP,1,0,2,,,"])).expect_err("no").contains("not understood"));
    assert!(parse("<html>").expect_err("no").contains("<html>"));
}

#[test]
fn states_are_told_apart() {
    let of = |status: &str| Server { status: status.into(), sessions: 0, backup: false, checked: true };
    for up in ["UP", "UP 1/3", "no check"] {
        assert!(of(up).is_up() && !of(up).in_maintenance(), "{up}");
    }
    for off in ["MAINT", "MAINT (via x/y)"] {
        assert!(of(off).in_maintenance() && !of(off).is_up(), "{off}");
    }
    for neither in ["DRAIN", "DRAIN (agent)", "DOWN", "DOWN 1/2", "NOLB"] {
        assert!(!of(neither).is_up() && !of(neither).in_maintenance(), "{neither}");
    }
}

#[test]
fn the_minimum_counts_the_others_that_are_up() {
    let rows = ["shop,a,,,UP,1,0,2,,,", "shop,b,,,UP,1,0,2,,,", "shop,c,,,DRAIN,1,0,2,,,", "shop,d,,,UP,1,1,2,,,"];
    let servers = parse(&stat(&rows)).expect("fine");
    assert!(enough(&servers, "a", Share::Count(1)).is_ok());
    let short = enough(&servers, "a", Share::Count(2)).expect_err("b alone is left");
    assert!(short.contains("1 of 3") && short.contains("asks for 2"), "{short}");
    assert!(enough(&servers, "a", Share::Percent(34)).is_err(), "34% of 3 is 2");
    assert!(enough(&servers, "a", Share::Percent(33)).is_ok());
    assert!(enough(&servers, "c", Share::Count(3)).is_ok(), "it is off already");
}

/// A HAProxy that answers as the test says.
async fn fake(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let at = format!("tcp://{}", listener.local_addr().expect("address"));
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let keep = Arc::clone(&said);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let (keep, answer) = (Arc::clone(&keep), Arc::clone(&answer));
            tokio::spawn(async move {
                let mut line = Vec::new();
                while !line.ends_with(b"\n") && s.read_buf(&mut line).await.is_ok_and(|n| n > 0) {}
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                keep.lock().expect("lock").push(line.clone());
                match answer(&line) {
                    Some(bytes) => drop(s.write_all(&bytes).await),
                    // Holds the connection and says nothing.
                    None => std::future::pending().await,
                }
            });
        }
    });
    (at, said)
}

fn outbound() -> Outbound {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    Outbound::new(vec!["127.0.0.0/8".parse().expect("net")]).expect("client")
}

fn says() -> super::super::Says {
    let (to, _) = tokio::sync::mpsc::channel(1);
    super::super::Says {
        task: windlass_domain::ids::TaskId(uuid::Uuid::nil()),
        state: windlass_domain::traffic::TrafficState::Draining,
        to,
        last: Mutex::new((Instant::now(), String::new())),
    }
}

async fn drain(at: &[String], server: &str, limit: Duration, late: OnDrainTimeout) -> Result<(), Fault> {
    let outbound = outbound();
    let h = Haproxy { outbound: &outbound, endpoints: at, backend: "shop", server };
    h.drain(None, limit, late, &says()).await
}

#[tokio::test]
async fn silence_garbage_and_refusals_are_faults_in_time() {
    let begun = Instant::now();
    let short = Duration::from_millis(300);
    let (at, _) = fake(|_| Some(b"\xff\xfe\x00".to_vec())).await;
    assert!(matches!(drain(&[at], "a", short, OnDrainTimeout::Fail).await, Err(Fault::Refused(_))));
    let (at, _) = fake(|_| Some(b"Unknown command\n".to_vec())).await;
    let Err(Fault::Refused(why)) = drain(&[at], "a", short, OnDrainTimeout::Fail).await else { panic!("refused") };
    assert!(why.contains("Unknown command"), "{why}");
    let (at, _) = fake(|_| Some(stat(&["shop,b,0,0,UP,1,0,2,,,"]).into_bytes())).await;
    let Err(Fault::Refused(why)) = drain(&[at], "a", short, OnDrainTimeout::Fail).await else { panic!("refused") };
    assert!(why.contains("has no server a, only b"), "{why}");
    let (at, _) = fake(|l| match l.starts_with("show") {
        true => Some(stat(&["shop,a,0,0,UP,1,0,2,,,"]).into_bytes()),
        false => Some(b"Permission denied\n".to_vec()),
    })
    .await;
    let Err(Fault::Refused(why)) = drain(&[at], "a", short, OnDrainTimeout::Fail).await else { panic!("refused") };
    assert!(why.contains("Permission denied"), "{why}");
    // Nobody listens there, and somebody who never answers: both end.
    let gone = format!("tcp://127.0.0.1:{}", windlass_testkit::free_port());
    assert!(matches!(drain(&[gone], "a", short, OnDrainTimeout::Fail).await, Err(Fault::Broken(_))));
    let (at, _) = fake(|_| None).await;
    assert!(matches!(drain(&[at], "a", short, OnDrainTimeout::Fail).await, Err(Fault::Broken(_))));
    assert!(begun.elapsed() < EXCHANGE * 3, "{:?}", begun.elapsed());
    // An endless answer is cut.
    let (at, _) = fake(|_| Some(vec![b'x'; 9 << 20])).await;
    let long = Duration::from_secs(20);
    let Err(Fault::Refused(why)) = drain(&[at], "a", long, OnDrainTimeout::Fail).await else { panic!("refused") };
    assert!(why.contains("more than"), "{why}");
}

#[tokio::test]
async fn sessions_that_stay_end_the_wait_or_are_cut() {
    let busy = |l: &str| match l.starts_with("show") {
        true => Some(stat(&["shop,a,0,2,DRAIN,1,0,2,L7OK,,"]).into_bytes()),
        false => Some(b"\n".to_vec()),
    };
    let (at, said) = fake(busy).await;
    let limit = Duration::from_secs(1);
    let Err(Fault::Timeout(why)) = drain(std::slice::from_ref(&at), "a", limit, OnDrainTimeout::Fail).await else {
        panic!("timeout")
    };
    assert!(why.contains("2 sessions of a"), "{why}");
    assert!(!said.lock().expect("lock").iter().any(|l| l.contains("shutdown") || l.contains("maint")));
    drain(&[at], "a", limit, OnDrainTimeout::GoOn).await.expect("goes on");
    let said = said.lock().expect("lock").clone();
    assert!(said.contains(&"shutdown sessions server shop/a".to_owned()), "{said:?}");
    assert!(said.contains(&"set server shop/a state maint".to_owned()), "{said:?}");
}

#[tokio::test]
async fn a_name_cannot_carry_a_command() {
    let (at, said) = fake(|_| Some(b"\n".to_vec())).await;
    for bad in ["a; disable server shop/b", "a\nshow info", ""] {
        let r = drain(std::slice::from_ref(&at), bad, Duration::from_secs(1), OnDrainTimeout::Fail).await;
        assert!(matches!(r, Err(Fault::Refused(_))), "{bad:?}");
    }
    assert!(said.lock().expect("lock").is_empty(), "nothing was sent");
}

#[tokio::test]
async fn an_endpoint_must_be_one_that_executors_may_call() {
    for bad in ["127.0.0.1:9", "tcp://127.0.0.1", "http://127.0.0.1:9"] {
        let r = drain(&[bad.to_owned()], "a", Duration::from_secs(1), OnDrainTimeout::Fail).await;
        assert!(matches!(r, Err(Fault::Refused(_))), "{bad}");
    }
    // Inside of the network, and not allowed.
    let r = drain(&["tcp://10.1.2.3:9".to_owned()], "a", Duration::from_secs(1), OnDrainTimeout::Fail).await;
    assert!(matches!(r, Err(Fault::Refused(_))), "{r:?}");
}

#[tokio::test]
async fn a_server_out_of_maintenance_waits_for_its_first_check() {
    // What HAProxy holds of the server, as far as this test needs it.
    let state = Arc::new(Mutex::new("MAINT".to_owned()));
    let held = Arc::clone(&state);
    let (at, said) = fake(move |l| {
        let mut s = held.lock().expect("lock");
        match l {
            _ if l.starts_with("show") => {
                let check = if s.as_str() == "MAINT" { "" } else { "L7OK" };
                let answer = stat(&[&format!("shop,a,0,0,{s},1,0,2,{check},,")]);
                if s.as_str() == "DOWN 1/2" {
                    *s = "UP".into();
                }
                return Some(answer.into_bytes());
            }
            "set server shop/a state drain" => *s = "DRAIN".into(),
            "set server shop/a health down; set server shop/a state ready" => *s = "DOWN 1/2".into(),
            "set server shop/a state ready" => {}
            other => return Some(format!("Unknown: {other}").into_bytes()),
        }
        Some(b"\n\n".to_vec())
    })
    .await;
    let outbound = outbound();
    let endpoints = [at];
    let h = Haproxy { outbound: &outbound, endpoints: &endpoints, backend: "shop", server: "a" };
    h.attach(Duration::from_secs(5), &says()).await.expect("up");
    assert!(said.lock().expect("lock").iter().any(|l| l.contains("health down")));
    said.lock().expect("lock").clear();
    // Again: it is up, and is not taken down for it.
    h.attach(Duration::from_secs(5), &says()).await.expect("up");
    assert!(!said.lock().expect("lock").iter().any(|l| l.contains("health")));
}
