//! What the offline verifier finds, byte by byte.

use super::{
    export::Line,
    leaf_bytes,
    note::{Checkpoint, PublicKey},
    read_leaf,
    verify::{Report, VerifyError, verify_export},
};
use nkeys::KeyPair;
use windlass_domain::{
    event::{Event, Severity},
    merkle::{Frontier, leaf_hash},
};

const ORIGIN: &str = "windlass/test";

fn event(n: u64, id: &str, agg_seq: u64, what: &str, payload: serde_json::Value) -> Event {
    Event {
        id: uuid::Uuid::from_u128(u128::from(n)).into(),
        aggregate: "deployment".into(),
        aggregate_id: id.into(),
        agg_seq,
        what: what.into(),
        project: Some("shop".into()),
        environment: Some("beta".into()),
        severity: Severity::Info,
        actor: "service:scheduler".into(),
        at: "2026-11-21T00:00:00Z".parse().expect("time"),
        payload,
        trace: None,
    }
}

fn events() -> Vec<Event> {
    use serde_json::json;
    vec![
        event(1, "d1", 1, "deployment.requested", json!({"by": "ann", "version": "1.0.0", "note": "now \u{1F680}"})),
        event(2, "d1", 2, "deployment.approval_given", json!({"by": "bob", "digest": "sha256:aa", "comment": "ok"})),
        event(3, "d2", 1, "deployment.requested", json!({"by": "cat", "version": "2.0.0"})),
        event(4, "d1", 3, "deployment.approved", json!({"by": ["bob"], "digest": "sha256:aa"})),
        event(5, "d1", 4, "deployment.started", json!({"digest": "sha256:aa", "state": "running"})),
        event(6, "d2", 2, "deployment.rejected", json!({"by": "bob", "reason": "no", "state": "rejected"})),
        event(7, "d1", 5, "deployment.overridden", json!({"by": "zoe", "hosts": ["h1"], "reason": "dead"})),
    ]
}

/// Makes an export as somebody with `key` would: leaves with right hashes and indices, a checkpoint at each size.
fn export(leaves: &[String], checkpoints: &[u64], key: &KeyPair) -> Vec<Line> {
    let mut tree = Frontier::default();
    let mut out = vec![Line::header(&public(key).to_string(), Frontier::default(), leaves.len() as u64)];
    for (idx, leaf) in leaves.iter().enumerate() {
        let hash = leaf_hash(leaf.as_bytes());
        out.push(Line::Leaf { idx: idx as u64, leaf: leaf.clone(), hash });
        tree.append(hash);
        if checkpoints.contains(&tree.size()) {
            out.push(checkpoint(&tree, key));
        }
    }
    out
}

fn checkpoint(tree: &Frontier, key: &KeyPair) -> Line {
    let c = Checkpoint { origin: ORIGIN.into(), size: tree.size(), root: tree.root() };
    Line::Checkpoint { size: tree.size(), note: c.sign(key).expect("signs") }
}

fn public(key: &KeyPair) -> PublicKey {
    PublicKey::of(ORIGIN, key).expect("key")
}
fn leaves() -> Vec<String> {
    events().iter().map(|e| String::from_utf8(leaf_bytes(e).expect("bytes")).expect("text")).collect()
}
fn bytes(lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::new();
    lines.iter().for_each(|l| l.write(&mut out).expect("writes"));
    out
}
fn check(lines: &[Line], key: &KeyPair) -> Report {
    verify_export(bytes(lines).as_slice(), &public(key), None).expect("reads")
}
fn note_of(line: &Line) -> &str {
    match line {
        Line::Checkpoint { note, .. } => note,
        other => panic!("no checkpoint: {other:?}"),
    }
}

/// What an insider can do without the key: change lines, and make all hashes and indices fit again.
fn refit(lines: &[Line]) -> Vec<Line> {
    let mut at = 0;
    let fit = |l: &Line| match l {
        Line::Leaf { leaf, .. } => {
            at += 1;
            Line::Leaf { idx: at - 1, leaf: leaf.clone(), hash: leaf_hash(leaf.as_bytes()) }
        }
        other => other.clone(),
    };
    lines.iter().map(fit).collect()
}

#[test]
fn leaves_have_the_same_bytes_for_ever() {
    let e = event(1, "d1", 1, "deployment.requested", serde_json::json!({"z": 1, "a": {"c": [1, 2.5], "b": null}}));
    let bytes = leaf_bytes(&e).expect("bytes");
    let want = "{\"event\":{\"actor\":\"service:scheduler\",\"agg_seq\":1,\"aggregate\":\"deployment\",\"aggregate_id\":\"d1\",\
                \"at\":\"2026-11-21T00:00:00Z\",\"environment\":\"beta\",\"id\":\"00000000-0000-0000-0000-000000000001\",\
                \"payload\":{\"a\":{\"b\":null,\"c\":[1,2.5]},\"z\":1},\"project\":\"shop\",\"severity\":\"info\",\
                \"trace\":null,\"what\":\"deployment.requested\"},\"v\":1}";
    assert_eq!(String::from_utf8_lossy(&bytes), want);
    assert_eq!(read_leaf(&bytes), Some(e));
    assert_eq!(read_leaf(want.replace("\"v\":1", "\"v\":2").as_bytes()), None);
}

#[test]
fn an_untouched_export_is_good_and_tells_who_did_what() {
    let key = KeyPair::new_user();
    let report = check(&export(&leaves(), &[4, 7], &key), &key);
    assert!(report.is_good(), "{:?}", report.findings);
    assert_eq!((report.leaves, report.checkpoints, report.signed_size), (7, 2, 7));
    let d1 = &report.deployments["d1"];
    let who = |acts: &[super::story::Act]| acts.iter().map(|a| (a.who.clone(), a.leaf)).collect::<Vec<_>>();
    assert_eq!(who(&d1.requested), [("ann".to_owned(), 0)]);
    assert_eq!(who(&d1.approved), [("bob".to_owned(), 1)]);
    assert_eq!(who(&d1.overrode), [("zoe".to_owned(), 6)]);
    assert_eq!((d1.digest.as_deref(), d1.state.as_deref()), (Some("sha256:aa"), Some("running")));
    assert_eq!(d1.overrode[0].why, "dead");
    assert_eq!(who(&report.deployments["d2"].rejected), [("bob".to_owned(), 5)]);
}

#[test]
fn every_changed_byte_of_the_file_is_found() {
    let key = KeyPair::new_user();
    let good = bytes(&export(&leaves(), &[4, 7], &key));
    for at in 0..good.len() {
        for flip in [0x01, 0x20, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            let report = verify_export(bad.as_slice(), &public(&key), None).expect("reads");
            assert!(
                !report.is_good(),
                "byte {at} ^ {flip:#x}: {:?}",
                String::from_utf8_lossy(&bad[at.saturating_sub(30)..(at + 30).min(bad.len())])
            );
        }
    }
}

#[test]
fn every_changed_byte_of_a_leaf_is_found_even_with_the_hashes_made_to_fit() {
    let key = KeyPair::new_user();
    let good = export(&leaves(), &[4, 7], &key);
    for (n, line) in good.iter().enumerate() {
        let Line::Leaf { leaf, .. } = line else { continue };
        for at in 0..leaf.len() {
            let mut changed = leaf.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(leaf) = String::from_utf8(changed) else { continue };
            let mut bad = good.clone();
            bad[n] = Line::Leaf { idx: 0, leaf, hash: leaf_hash(b"") };
            assert!(!check(&refit(&bad), &key).is_good(), "line {n} byte {at}");
        }
    }
}

#[test]
fn removed_added_and_moved_leaves_are_found() {
    let key = KeyPair::new_user();
    let good = export(&leaves(), &[4, 7], &key);
    let is_leaf = |l: &Line| matches!(l, Line::Leaf { .. });
    let at: Vec<usize> = (0..good.len()).filter(|i| is_leaf(&good[*i])).collect();
    for i in &at {
        let mut bad = good.clone();
        bad.remove(*i);
        assert!(!check(&bad, &key).is_good(), "removed {i}");
        assert!(!check(&refit(&bad), &key).is_good(), "removed {i}, refitted");
        for j in &at {
            let mut bad = good.clone();
            bad.insert(*i, good[*j].clone());
            assert!(!check(&bad, &key).is_good(), "{j} again at {i}");
            assert!(!check(&refit(&bad), &key).is_good(), "{j} again at {i}, refitted");
            if i != j {
                let mut bad = good.clone();
                bad.swap(*i, *j);
                assert!(!check(&bad, &key).is_good(), "swapped {i} {j}");
                assert!(!check(&refit(&bad), &key).is_good(), "swapped {i} {j}, refitted");
            }
        }
    }
}

#[test]
fn a_cut_is_found() {
    let key = KeyPair::new_user();
    let good = export(&leaves(), &[4, 7], &key);
    let last = note_of(good.last().expect("lines")).to_owned();
    for keep in 0..good.len() {
        let bad = bytes(&good[..keep]);
        let report = verify_export(bad.as_slice(), &public(&key), Some(&last)).expect("reads");
        assert!(!report.is_good(), "cut to {keep} lines");
        // An interrupted download shows by itself.
        let alone = verify_export(bad.as_slice(), &public(&key), None).expect("reads");
        assert!(!alone.is_good(), "cut to {keep} lines");
    }
    // Who cuts on purpose announces less: only a checkpoint that was kept elsewhere tells.
    let shorter = bytes(&export(&leaves()[..4], &[4], &key));
    assert!(verify_export(shorter.as_slice(), &public(&key), None).expect("reads").is_good());
    assert!(!verify_export(shorter.as_slice(), &public(&key), Some(&last)).expect("reads").is_good());
    let whole = bytes(&good);
    for keep in 0..whole.len() {
        let report = verify_export(&whole[..keep], &public(&key), Some(&last)).expect("reads");
        assert!(!report.is_good(), "cut to {keep} bytes");
    }
}

#[test]
fn history_rewritten_with_the_real_key_is_found_by_an_earlier_checkpoint() {
    let key = KeyPair::new_user();
    let honest = export(&leaves(), &[4, 7], &key);
    let kept = note_of(&honest[5]).to_owned();
    let mut forged = leaves();
    forged[1] = forged[1].replace("bob", "eve");
    let forged = bytes(&export(&forged, &[4, 7], &key));
    assert!(verify_export(forged.as_slice(), &public(&key), None).expect("reads").is_good());
    assert!(!verify_export(forged.as_slice(), &public(&key), Some(&kept)).expect("reads").is_good());
    assert!(verify_export(bytes(&honest).as_slice(), &public(&key), Some(&kept)).expect("reads").is_good());
}

#[test]
fn another_key_is_found() {
    let (key, thief) = (KeyPair::new_user(), KeyPair::new_user());
    let mut forged = export(&leaves(), &[4, 7], &thief);
    assert!(!check(&forged, &key).is_good());
    forged[0] = Line::header(&public(&key).to_string(), Frontier::default(), 7);
    let report = check(&forged, &key);
    assert_eq!((report.is_good(), report.checkpoints), (false, 0));
    let theirs = note_of(forged.last().expect("lines"));
    let good = bytes(&export(&leaves(), &[7], &key));
    assert!(matches!(verify_export(good.as_slice(), &public(&key), Some(theirs)), Err(VerifyError::Earlier(_))));
}

#[test]
fn gaps_in_a_stream_are_found_even_when_signed() {
    let key = KeyPair::new_user();
    let mut missing = leaves();
    missing.remove(1);
    let report = check(&export(&missing, &[6], &key), &key);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert_eq!(report.findings[0].leaf, Some(2));
    let mut twice = leaves();
    twice.insert(2, twice[1].clone());
    assert!(!check(&export(&twice, &[8], &key), &key).is_good());
    let mut turned = leaves();
    turned.swap(0, 1);
    assert!(!check(&export(&turned, &[7], &key), &key).is_good());
}

#[test]
fn a_later_export_continues_an_earlier_one() {
    let key = KeyPair::new_user();
    let all = export(&leaves(), &[4, 7], &key);
    let kept = note_of(&all[5]).to_owned();
    let mut tree = Frontier::default();
    leaves()[..4].iter().for_each(|l| tree.append(leaf_hash(l.as_bytes())));
    let mut part = all[6..].to_vec();
    part.insert(0, Line::header(&public(&key).to_string(), tree.clone(), 7));
    let verify =
        |lines: &[Line], earlier| verify_export(bytes(lines).as_slice(), &public(&key), earlier).expect("reads");
    let report = verify(&part, Some(&kept));
    assert!(report.is_good(), "{:?}", report.findings);
    assert_eq!((report.from, report.leaves), (4, 3));
    let mut other = Frontier::default();
    (0..4).for_each(|_| other.append(leaf_hash(b"other")));
    part[0] = Line::header(&public(&key).to_string(), other, 7);
    assert!(!verify(&part, None).is_good());
    assert!(!verify(&part, Some(&kept)).is_good());
    tree.append(leaf_hash(leaves()[4].as_bytes()));
    let mut late = all[7..].to_vec();
    late.insert(0, Line::header(&public(&key).to_string(), tree, 7));
    assert!(verify(&late, None).is_good());
    assert!(!verify(&late, Some(&kept)).is_good(), "what lies between is not shown");
}

#[test]
fn junk_is_reported_not_believed() {
    let key = KeyPair::new_user();
    for junk in [&b""[..], b"\n", b"{}", b"\xff\xfe\n", b"{\"t\":\"leaf\"}\n", &[b'{'; 4096], &[b'\n'; 500]] {
        let report = verify_export(junk, &public(&key), None).expect("reads");
        assert!(!report.is_good() && report.checkpoints == 0, "{junk:?}");
        assert!(report.findings.len() <= 100);
    }
}
