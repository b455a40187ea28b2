//! Which plugins a release freezes.

use serde_json::json;
use windlass_domain::{catalog::Item, flow, plugin::Plugin};
use windlass_store::{Store, catalog, plugins};
use windlass_testkit::databases;

fn plugin(name: &str, version: &str) -> Plugin {
    serde_json::from_value(json!({ "name": name, "version": version, "transport": { "type": "nats" } }))
        .expect("a definition")
}

#[tokio::test]
async fn the_named_version_is_frozen_or_the_newest_by_number() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("begins");
        for (name, version) in [("page", "1.9.0"), ("page", "1.10.0"), ("page-two", "9.0.0")] {
            let item = Item::Plugin(plugin(name, version));
            catalog::save(&mut tx, &item, 0, false, "ann", chrono::Utc::now()).await.expect("saves");
        }
        let flow =
            |steps: &str| flow::parse(&format!("flow: f\nsteps: [{steps}]\n")).unwrap_or_else(|e| panic!("{e:#?}"));
        let two = flow(
            "{ id: a, uses: plugin/page }, { id: b, uses: plugin/page@1.9.0 }, { id: c, uses: wait, with: { for: 1s } }",
        );
        let pins = plugins::pin(&mut tx, &two).await.expect("reads").expect("both exist");
        let got: Vec<(&str, &str)> = pins.iter().map(|(k, p)| (k.as_str(), p.version.as_str())).collect();
        assert_eq!(got, [("plugin/page", "1.10.0"), ("plugin/page@1.9.0", "1.9.0")]);
        for (uses, says) in [("plugin/page@2.0.0", "it has: 1.9.0, 1.10.0"), ("plugin/pag", "there is no plugin `pag`")]
        {
            let e = plugins::pin(&mut tx, &flow(&format!("{{ id: a, uses: {uses} }}")))
                .await
                .expect("reads")
                .expect_err(uses);
            assert!(e.to_string().contains(says) && e.to_string().contains("step `a`"), "{e}");
        }
        tx.commit().await.expect("commits");
        store.close().await;
    }
}
