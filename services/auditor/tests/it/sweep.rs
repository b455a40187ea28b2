//! Everything a superuser of the database can do to a trail that somebody has seen: each leaf changed, removed, added, moved,
//! the trail cut, and checkpoints forged or signed anew with another key. The verifier has the public key and the last
//! checkpoint that was seen, and finds all of it.

use crate::{append, auditor, crowd, expire_lease, export, key, notes, tamper::run_until_signed};
use nkeys::KeyPair;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_contracts::audit::{
    note::{Checkpoint, PublicKey},
    verify::verify_export,
};
use windlass_domain::{
    Timestamp,
    merkle::{Frontier, leaf_hash},
};
use windlass_store::{Store, Value, sql};
use windlass_testkit::{databases, temp_dir};

#[derive(Debug, Clone, PartialEq)]
struct Leaf {
    event: Uuid,
    leaf: Vec<u8>,
    hash: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq)]
struct Signed {
    size: i64,
    root: Vec<u8>,
    frontier: String,
    note: String,
    at: Timestamp,
}

/// Both tables as they are.
#[derive(Debug, Clone, PartialEq)]
struct Trail {
    leaves: Vec<Leaf>,
    checkpoints: Vec<Signed>,
}

impl Trail {
    async fn read(store: &Store) -> Trail {
        let mut c = store.read().await.expect("read");
        let leaves: Vec<(Uuid, Vec<u8>, Vec<u8>)> =
            sql("SELECT event_id, leaf, hash FROM audit_leaves ORDER BY idx").fetch_all(&mut c).await.expect("leaves");
        let checkpoints: Vec<(i64, Vec<u8>, String, String, Timestamp)> =
            sql("SELECT size, root, CAST(frontier AS TEXT), note, at FROM audit_checkpoints ORDER BY size")
                .fetch_all(&mut c)
                .await
                .expect("checkpoints");
        let signed = |(size, root, frontier, note, at)| Signed { size, root, frontier, note, at };
        Trail {
            leaves: leaves.into_iter().map(|(event, leaf, hash)| Leaf { event, leaf, hash }).collect(),
            checkpoints: checkpoints.into_iter().map(signed).collect(),
        }
    }

    /// As somebody who may write everything would.
    async fn write(&self, store: &Store) {
        let mut tx = store.write().await.expect("tx");
        for table in ["DELETE FROM audit_leaves", "DELETE FROM audit_checkpoints"] {
            sql(table).execute(&mut tx).await.expect("deletes");
        }
        for (idx, l) in self.leaves.iter().enumerate() {
            sql("INSERT INTO audit_leaves (idx, event_id, leaf, hash) VALUES ($1, $2, $3, $4)")
                .bind(idx)
                .bind(l.event)
                .bind(l.leaf.clone())
                .bind(l.hash.clone())
                .execute_one(&mut tx)
                .await
                .expect("leaf");
        }
        for c in &self.checkpoints {
            sql("INSERT INTO audit_checkpoints (size, root, frontier, note, at) VALUES ($1, $2, $3, $4, $5)")
                .bind(c.size)
                .bind(c.root.clone())
                .bind(Value::Json(Some(serde_json::from_str(&c.frontier).expect("json"))))
                .bind(&c.note)
                .bind(c.at)
                .execute_one(&mut tx)
                .await
                .expect("checkpoint");
        }
        tx.commit().await.expect("commit");
    }

    fn fit(&mut self, at: usize) {
        self.leaves[at].hash = leaf_hash(&self.leaves[at].leaf).as_bytes().to_vec();
    }

    /// All checkpoints made to fit the leaves as they are now, and signed with `key`.
    fn sign_anew(&mut self, origin: &str, key: &KeyPair) {
        let mut tree = Frontier::default();
        let mut at_size = BTreeMap::from([(0, tree.clone())]);
        for l in &self.leaves {
            tree.append(leaf_hash(&l.leaf));
            at_size.insert(tree.size(), tree.clone());
        }
        self.checkpoints.retain(|c| at_size.contains_key(&c.size.unsigned_abs()));
        let size = tree.size();
        if let Some(last) = self.checkpoints.last_mut() {
            last.size = i64::try_from(size).expect("small");
        }
        let public = PublicKey::of(origin, key).expect("key").to_string();
        for c in &mut self.checkpoints {
            let tree = &at_size[&c.size.unsigned_abs()];
            let made = Checkpoint { origin: origin.into(), size: tree.size(), root: tree.root() };
            c.note = made.sign(key).expect("signs");
            c.root = tree.root().as_bytes().to_vec();
            let mut edge: serde_json::Value = serde_json::from_str(&c.frontier).expect("json");
            edge["frontier"] = serde_json::to_value(tree).expect("json");
            edge["key"] = public.clone().into();
            c.frontier = edge.to_string();
        }
    }
}

/// Every way to spoil a trail, by name.
fn edits(good: &Trail, origin: &str) -> Vec<(String, Trail)> {
    let thief = KeyPair::new_user();
    let mut out: Vec<(String, Trail)> = Vec::new();
    let n = good.leaves.len();
    let mut add = |name: String, change: &mut dyn FnMut(&mut Trail)| {
        let mut t = good.clone();
        change(&mut t);
        if t != *good {
            out.push((name.clone(), t.clone()));
        }
        // The same, with everything made to fit and signed by somebody who has not the auditor's key.
        t.sign_anew(origin, &thief);
        out.push((format!("{name}, signed anew with another key"), t));
    };
    for i in 0..n {
        for at in [0, good.leaves[i].leaf.len() / 2, good.leaves[i].leaf.len() - 1] {
            add(format!("leaf {i} byte {at} changed"), &mut |t| t.leaves[i].leaf[at] ^= 1);
            add(format!("leaf {i} byte {at} changed, hash made to fit"), &mut |t| {
                t.leaves[i].leaf[at] ^= 1;
                t.fit(i);
            });
        }
        for (from, to) in [("person:ann", "person:eve"), ("\"n\":", "\"m\":"), ("paused", "passed"), ("shop", "shoq")] {
            add(format!("leaf {i}: {from} made {to}"), &mut |t| {
                let text = String::from_utf8(t.leaves[i].leaf.clone()).expect("text").replace(from, to);
                t.leaves[i].leaf = text.into_bytes();
                t.fit(i);
            });
        }
        add(format!("hash of leaf {i} changed"), &mut |t| t.leaves[i].hash[7] ^= 1);
        add(format!("leaf {i} removed"), &mut |t| drop(t.leaves.remove(i)));
        // A copy of the last one stands behind what was signed, and is no edit of it.
        if i + 1 < n {
            add(format!("leaf {i} twice"), &mut |t| {
                let again = Leaf { event: Uuid::now_v7(), ..t.leaves[i].clone() };
                t.leaves.insert(i, again);
            });
        }
        add(format!("leaf {i} overwritten by its neighbour"), &mut |t| {
            let other = t.leaves[(i + 1) % n].clone();
            (t.leaves[i].leaf, t.leaves[i].hash) = (other.leaf, other.hash);
        });
        for j in [(i + 1) % n, (i + n / 2) % n] {
            add(format!("leaves {i} and {j} swapped"), &mut |t| t.leaves.swap(i, j));
        }
        add(format!("cut before leaf {i}"), &mut |t| t.leaves.truncate(i));
        add(format!("cut before leaf {i}, with its checkpoints"), &mut |t| {
            t.leaves.truncate(i);
            t.checkpoints.retain(|c| c.size.unsigned_abs() <= i as u64);
        });
    }
    for c in 0..good.checkpoints.len() {
        let last = c + 1 == good.checkpoints.len();
        let note = good.checkpoints[c].note.clone();
        for at in [0, note.len() / 3, note.len() / 2, note.len() - 5] {
            let mut bytes = note.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let Ok(text) = String::from_utf8(bytes) else { continue };
            add(format!("note {c} byte {at} changed"), &mut |t| t.checkpoints[c].note.clone_from(&text));
        }
        if c > 0 {
            add(format!("note {c} is that of an earlier size"), &mut |t| {
                t.checkpoints[c].note = t.checkpoints[c - 1].note.clone();
            });
        }
        if last {
            add("the last checkpoint removed".into(), &mut |t| drop(t.checkpoints.pop()));
            add("all checkpoints removed".into(), &mut |t| t.checkpoints.clear());
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_edit_older_than_the_last_checkpoint_seen_is_found() {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let dir = temp_dir();
        let mut count = crowd(&store, 1).await;
        run_until_signed(auditor(&store, dir.path(), "one"), count).await;
        for round in 0..2 {
            for n in 0..3 {
                append(&store, &format!("s{n}"), 100 + round).await;
            }
            count += 3;
            expire_lease(&store).await;
            run_until_signed(auditor(&store, dir.path(), &format!("round {round}")), count).await;
        }
        let key = key(&store).await;
        let seen = notes(&store).await.pop().expect("a checkpoint");
        let good = Trail::read(&store).await;
        assert!(good.leaves.len() as u64 == count && good.checkpoints.len() >= 3, "{}", good.checkpoints.len());
        let whole = export(&store, 0).await;
        assert!(verify_export(whole.as_slice(), &key, Some(&seen)).expect("reads").is_good());

        let all = edits(&good, key.name());
        let mut missed = Vec::new();
        // Each edit writes both tables anew, which a server takes its time for: there every fifth will do.
        let every = if db.kind() == "sqlite" { 1 } else { 5 };
        for (name, trail) in all.iter().step_by(every) {
            trail.write(&store).await;
            // What cannot even be exported is found, too.
            let Ok(Some(mut pages)) = windlass_store::audit::Export::begin(&store, 0).await else { continue };
            let mut text = Vec::new();
            let complete = loop {
                match pages.next_page().await {
                    Ok(Some(page)) => text.extend(page),
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            let found = verify_export(text.as_slice(), &key, Some(&seen));
            if complete && found.is_ok_and(|r| r.is_good()) {
                missed.push(name);
            }
        }
        assert!(missed.is_empty(), "{db}: {} of {} not found: {missed:?}", missed.len(), all.len());
        assert!(all.len() >= 500, "{db}: only {} edits", all.len());
        eprintln!("{db}: {} edits, all found", all.len().div_ceil(every));
        // The plant: put back, nothing is found; and who trusts the key beside the trail is deceived.
        good.write(&store).await;
        assert_eq!(export(&store, 0).await, whole);
        let forged = all.iter().find(|(n, _)| n == "leaf 3 removed, signed anew with another key").expect("there");
        forged.1.write(&store).await;
        let theirs = crate::key(&store).await;
        assert_ne!(theirs.to_string(), key.to_string());
        store.close().await;
    }
}
