//! The first start: somebody must be able to let the others in.

use crate::{
    auth,
    call::now,
    problem::{Fail, transact},
    state::State,
};
use serde_json::json;
use std::path::PathBuf;
use uuid::Uuid;
use windlass_domain::{
    access::{Grant, Role},
    event::{Aggregate, NewEvent, Severity},
    ids::TokenId,
};
use windlass_runtime::keys;
use windlass_store::{Tx, events, people, secrets, ssh, tokens};

const ADMIN: &str = "admin";
/// Also how `doctor` finds the token.
const LABEL: &str = "first start";

/// Makes the person `admin` and their token when there is nobody at all. Of two processes that start at once, one makes them.
///
/// The file is there before the token counts: after a crash in between, the next start writes it anew.
pub(crate) async fn first_person(state: &State) -> Result<(), Fail> {
    let path: PathBuf = state.settings().state_dir.join("admin.token");
    let file = path.clone();
    let made: Result<bool, Fail> = transact!(state.store(), tx => {
        if people::any(&mut tx).await? {
            false
        } else {
            // The row is what two starts race for; the one that waited finds it taken.
            let p = people::Person { name: ADMIN.into(), display: "First admin".into(), disabled: false, created_at: now() };
            if people::insert(&mut tx, &p).await? {
                let token = store(&mut tx).await?;
                keys::replace(&file, format!("{token}\n").as_bytes()).map_err(|e| Fail::Internal(e.to_string()))?;
                true
            } else {
                false
            }
        }
    });
    if made? {
        tracing::info!(file = %path.display(), "first start: the token of `admin` is in this file");
    }
    Ok(())
}

async fn store(tx: &mut Tx) -> Result<String, Fail> {
    people::set_grants(tx, ADMIN, &[Grant { project_group: "*".into(), role: Role::Admin }]).await?;
    let fresh = auth::mint("wl");
    let token = tokens::Token {
        id: TokenId(fresh.id),
        hash: fresh.hash,
        person: ADMIN.into(),
        label: LABEL.into(),
        scopes: vec![],
        project: None,
        created_at: now(),
        expires_at: None,
        revoked_at: None,
    };
    tokens::insert(tx, &token).await?;
    let e = NewEvent {
        id: Uuid::now_v7().into(),
        aggregate: Aggregate::Access,
        aggregate_id: format!("person/{ADMIN}"),
        what: "person.saved".into(),
        project: None,
        environment: None,
        severity: Severity::Notice,
        actor: "service:api".into(),
        at: now(),
        payload: json!({ "person": ADMIN, "first_start": true, "token": fresh.id }),
        trace: None,
    };
    events::append(tx, e).await?;
    Ok(fresh.text)
}

/// Forgets what is only kept for a while, a little at a time.
pub(crate) async fn forget(state: &State) -> Result<(), Fail> {
    const BATCH: u32 = 1000;
    let day = chrono::Duration::days(1);
    let kept = &state.settings().retention;
    // For ever, said as a time before anything was written.
    let before =
        |days: u32| if days == 0 { chrono::DateTime::UNIX_EPOCH } else { now() - chrono::Duration::days(days.into()) };
    let (intake, keys) = (before(kept.intake_days), before(kept.idempotency_days));
    for _ in 0..100 {
        let n: Result<u64, Fail> = transact!(state.store(), tx => {
            windlass_store::intake::forget(&mut tx, intake, BATCH).await?
                + windlass_store::idempotency::forget(&mut tx, keys, BATCH).await?
        });
        if n? == 0 {
            break;
        }
    }
    let n: Result<u64, Fail> = transact!(state.store(), tx => {
        windlass_store::agents::forget_tokens(&mut tx, now() - day * 30).await?
    });
    n.map(drop)
}

/// Writes down the public keys that agents must know, for executors, which hold no private half of them.
pub(crate) async fn publish_keys(state: &State) -> Result<(), windlass_store::Error> {
    let mut tx = state.store().write().await?;
    ssh::put_control_key(&mut tx, ssh::APPROVAL_KEY, &state.approval.public_key()).await?;
    tx.commit().await
}

/// Removes the values of secret inputs whose deployment has ended.
pub(crate) async fn forget_inputs(state: &State) -> Result<(), windlass_store::Error> {
    let over = secrets::of_ended_deployments(&mut state.ctx.store.read().await?).await?;
    if over.is_empty() {
        return Ok(());
    }
    let mut tx = state.ctx.store.write().await?;
    for scope in over {
        secrets::remove_scope(&mut tx, &scope).await?;
    }
    tx.commit().await
}
