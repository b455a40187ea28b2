//! What senders of webhooks and holders of tokens hand to the api.

use crate::{choice, plant::planted, text};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Component, Path};
use windlass_api::fuzzing;
use windlass_domain::{artifact::Artifact, catalog::GenericHook};

const EVENTS: [&str; 5] = ["release", "package", "registry_package", "workflow_run", "ping"];

/// First byte: which hook, which event of GitHub. The rest is the body.
///
/// It is a build or a reason. A build that is valid has a version that is one part of a path, and no text of it holds what
/// cannot be stored or would be read as something else.
pub(crate) fn hook(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let Ok(body) = serde_json::from_slice::<Value>(rest) else { return };
    let read = match how % 3 {
        0 => fuzzing::github(EVENTS[usize::from(how / 3) % EVENTS.len()], &body),
        1 => match fuzzing::cdevents(&body) {
            Ok((delivery, read)) => {
                assert!(!delivery.is_empty());
                read
            }
            Err(why) => Err(why),
        },
        _ => fuzzing::generic(&mapping(), body.clone(), body),
    };
    match read {
        Ok(a) => artifact(&a),
        Err(why) => assert!(!why.is_empty()),
    }
}

fn mapping() -> GenericHook {
    GenericHook {
        secret: "s".into(),
        when: Some("body.status == 'ok'".into()),
        version: "body.v".into(),
        url: "'https://ci/' + body.v + body.ext".into(),
        digest: "body.sums.sha256".into(),
        commit: Some("body.commit".into()),
        git_ref: Some("headers['x-ref']".into()),
        committer: None,
    }
}

fn artifact(a: &Artifact) {
    // The plant: nobody looks at it again.
    if a.validate().is_err() && !planted() {
        return;
    }
    let dir = a.release_dir("beta");
    let parts: Vec<_> = Path::new(&a.version).components().collect();
    assert!(matches!(parts.as_slice(), [Component::Normal(_)]), "{:?}", a.version);
    assert!(
        dir.len() <= 255
            && matches!(Path::new(&dir).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)])
    );
    let texts = [Some(&a.url), a.git_ref.as_ref(), a.commit.as_ref(), a.committer.as_ref(), a.build_url.as_ref()];
    for t in texts.into_iter().flatten() {
        assert!(!t.chars().any(char::is_control), "a control character in {t:?}");
    }
}

/// First byte: a bearer token or a cursor of a list. The rest is its text.
///
/// A token that is taken has exactly one form: its id and secret written again are the text. A cursor is what it was made of.
pub(crate) fn token(bytes: &[u8]) {
    let (how, rest) = choice(bytes);
    let Some(source) = text(rest) else { return };
    match how % 2 {
        0 => {
            // The plant: letters of either case.
            let lower = source.to_ascii_lowercase();
            let read = if planted() { fuzzing::token("wl", &lower) } else { fuzzing::token("wl", source) };
            let Some((id, hash)) = read else { return };
            let (head, secret) = source.split_at(36);
            assert_eq!(head, format!("wl_{}_", id.simple()));
            let raw = URL_SAFE_NO_PAD.decode(secret).expect("it was taken");
            assert_eq!(raw.len(), 32);
            assert_eq!(URL_SAFE_NO_PAD.encode(&raw), secret);
            assert_eq!(Sha256::digest(&raw).to_vec(), hash);
            assert!(fuzzing::token("we", source).is_none());
        }
        _ => {
            let Some(place) = fuzzing::cursor(source) else { return };
            assert!(source.len() <= 1024);
            let again = fuzzing::cursor_of(&place);
            assert!(again.len() > 1024 || fuzzing::cursor(&again) == Some(place));
        }
    }
}
