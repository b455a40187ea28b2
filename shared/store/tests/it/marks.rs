//! Vetoes, pins and holds on both databases.

use chrono::{DateTime, Utc};
use windlass_store::{
    Store,
    marks::{self, Hold, Kind, Mark},
};
use windlass_testkit::databases;

fn at(second: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-11-21T00:00:00.123456Z".parse().expect("time");
    start + chrono::Duration::seconds(second)
}

fn mark(kind: Kind, version: &str, environment: Option<&str>, second: i64) -> Mark {
    Mark {
        project: "shop".into(),
        environment: environment.map(Into::into),
        kind,
        version: version.into(),
        by: "zoe".into(),
        reason: format!("reason {second}"),
        at: at(second),
    }
}

#[tokio::test]
async fn marks_are_set_listed_asked_for_and_removed() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        for m in [
            mark(Kind::Veto, "2", Some("beta"), 1),
            mark(Kind::Veto, "3", None, 2),
            mark(Kind::Veto, "2", Some("beta"), 3),
            Mark { project: "web".into(), ..mark(Kind::Veto, "1", None, 4) },
        ] {
            marks::set(&mut tx, &m).await.expect("set");
        }
        let all = marks::list(&mut tx, "shop").await.expect("list");
        // The same mark again has the newer reason.
        assert_eq!(all, [mark(Kind::Veto, "3", None, 2), mark(Kind::Veto, "2", Some("beta"), 3)]);
        let against = async |tx: &mut windlass_store::Tx, environment: &str, version: &str| {
            marks::against(tx, "shop", environment, version).await.expect("against").map(|m| (m.code(), m.version))
        };
        assert_eq!(against(&mut tx, "beta", "1").await, None);
        assert_eq!(against(&mut tx, "beta", "2").await, Some(("vetoed", "2".into())));
        assert_eq!(against(&mut tx, "online", "2").await, None);
        assert_eq!(against(&mut tx, "online", "3").await, Some(("vetoed", "3".into())));

        // One pin a place; the environment's own before the project's; a veto before both.
        marks::set(&mut tx, &mark(Kind::Pin, "1", None, 5)).await.expect("set");
        marks::set(&mut tx, &mark(Kind::Pin, "4", None, 6)).await.expect("set");
        marks::set(&mut tx, &mark(Kind::Pin, "2", Some("beta"), 7)).await.expect("set");
        assert_eq!(marks::list(&mut tx, "shop").await.expect("list").len(), 4);
        assert_eq!(against(&mut tx, "online", "1").await, Some(("pinned", "4".into())));
        assert_eq!(against(&mut tx, "online", "4").await, None);
        assert_eq!(against(&mut tx, "beta", "4").await, Some(("pinned", "2".into())));
        assert_eq!(against(&mut tx, "beta", "2").await, Some(("vetoed", "2".into())));

        let gone = marks::remove(&mut tx, "shop", Some("beta"), Kind::Veto, "3").await.expect("remove");
        assert_eq!(gone, None, "a veto in all environments is not taken away in one of them");
        let gone = marks::remove(&mut tx, "shop", None, Kind::Veto, "3").await.expect("remove");
        assert_eq!(gone, Some(mark(Kind::Veto, "3", None, 2)));
        assert_eq!(against(&mut tx, "gray", "3").await, Some(("pinned", "4".into())));
        tx.commit().await.expect("commit");
        store.close().await;
    }
}

#[test]
fn a_refusal_says_who_when_why_and_what_to_do() {
    let text = mark(Kind::Veto, "2", Some("beta"), 0).text("2");
    for word in ["version 2", "shop/beta", "zoe", "2026-11-21 00:00 UTC", "reason 0", "remove the veto"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let text = Mark { reason: " ".into(), ..mark(Kind::Pin, "1", None, 0) }.text("2");
    for word in ["all environments of shop", "version 1", "version 2", "no reason was given", "pin is removed"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[tokio::test]
async fn a_hold_stays_until_it_is_released() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        let hold = |environment: &str, by: &str, second| Hold {
            project: "shop".into(),
            environment: environment.into(),
            by: by.into(),
            reason: "bad".into(),
            at: at(second),
            deployment: (second == 2).then(|| uuid::Uuid::from_u128(7).into()),
        };
        for h in [hold("online", "ann", 1), hold("beta", "ann", 1), hold("online", "bob", 2)] {
            marks::hold(&mut tx, &h).await.expect("set");
        }
        let all = marks::holds(&mut tx, Some("shop")).await.expect("list");
        assert_eq!(all, [hold("beta", "ann", 1), hold("online", "bob", 2)]);
        assert_eq!(marks::holds(&mut tx, None).await.expect("list").len(), 2);
        assert_eq!(marks::holds(&mut tx, Some("web")).await.expect("list"), []);
        assert_eq!(marks::held(&mut tx, "shop", "gray").await.expect("held"), None);
        assert_eq!(marks::release(&mut tx, "shop", "online").await.expect("release"), Some(hold("online", "bob", 2)));
        assert_eq!(marks::release(&mut tx, "shop", "online").await.expect("release"), None);
        assert!(marks::held(&mut tx, "shop", "beta").await.expect("held").is_some());
        tx.commit().await.expect("commit");
        store.close().await;
    }
}
