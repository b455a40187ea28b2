//! Secrets at the moment they are used: looked for in the scopes of a host or an environment, opened or fetched from Vault,
//! and put where a step refers to them. Values are in memory only as long as that takes.

use crate::shared::Shared;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use windlass_domain::{
    mask::Masker,
    reference::{self, Reference},
    secret::{self, Secret, Secrets},
    task::TaskSpec,
    work::{CentralWork, Work},
};
use windlass_runtime::{
    seal::SealError,
    vault::{BadPointer, VaultError},
};
use windlass_store::secrets::{self, Kept, Place};

/// Asked of Vault at the same time, for one task.
const AT_ONCE: usize = 4;

/// Why a step's secrets cannot be had. The texts name secrets, never values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSecrets {
    #[error("the secret `{name}` exists in none of {scopes}: store it with `windlass secret set`")]
    Absent { name: String, scopes: String },
    #[error("the value of the input `{0}` is not kept any more: the deployment it was given to has ended")]
    Input(String),
    #[error(transparent)]
    Sealed(#[from] SealError),
    #[error("the secret `{0}` is not a text")]
    NotText(String),
    #[error("the secret `{name}`: {error}")]
    Pointer { name: String, error: BadPointer },
    #[error("the secret `{name}` cannot be had: {}", crate::central::chain(.error))]
    Vault { name: String, error: VaultError },
    #[error("the secret `{name}` that Vault holds cannot be used: {error}")]
    Unmaskable { name: String, error: windlass_domain::mask::Unmaskable },
    #[error("the secrets cannot be read from the database")]
    Store(#[from] windlass_store::Error),
}

impl NoSecrets {
    /// Whether it may be otherwise soon: a store or Vault that does not answer.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            NoSecrets::Store(_) => true,
            NoSecrets::Vault { error: VaultError::Outbound(e), .. } => e.retryable(),
            NoSecrets::Vault { error: VaultError::Status { status, .. }, .. } => *status >= 429,
            _ => false,
        }
    }
}

/// Names of the secrets in a task's steps.
pub(crate) fn names(spec: &TaskSpec) -> BTreeSet<String> {
    spec.steps.iter().flat_map(|s| s.with.values()).flat_map(reference::secrets).collect()
}

/// Steps whose outputs a task refers to.
pub(crate) fn steps(spec: &TaskSpec) -> BTreeSet<String> {
    let step = |r| match r {
        Reference::Output { step, .. } => Some(step),
        Reference::Secret { .. } => None,
    };
    spec.steps.iter().flat_map(|s| s.with.values()).flat_map(reference::scan).filter_map(step).collect()
}

/// The values of these secrets for a host of the work's environment, or for no host.
pub(crate) async fn resolve(
    shared: &Shared,
    work: &Work,
    host: Option<&str>,
    names: &BTreeSet<String>,
) -> Result<Secrets, NoSecrets> {
    if names.is_empty() {
        return Ok(Secrets::new());
    }
    let mut tx = shared.ctx.store.read().await?;
    let place = Place::of(&mut tx, &work.project, &work.environment, host, Some(work.deployment)).await?;
    let wanted: Vec<String> = names.iter().cloned().collect();
    let found = secrets::find(&mut tx, &place, &wanted).await?;
    drop(tx);
    if let Some(name) = names.iter().find(|n| !found.contains_key(*n)) {
        return Err(match name.strip_prefix(reference::INPUT_PREFIX) {
            Some(input) => NoSecrets::Input(input.to_owned()),
            None => NoSecrets::Absent { name: name.clone(), scopes: place.scopes() },
        });
    }
    let open = |(name, kept): (String, Kept)| async move { open(shared, &name, &kept).await.map(|s| (name, s)) };
    stream::iter(found).map(open).buffer_unordered(AT_ONCE).try_collect().await
}

async fn open(shared: &Shared, name: &str, kept: &Kept) -> Result<Secret, NoSecrets> {
    let Some(pointer) = &kept.vault else {
        let bytes = shared.ctx.sealer.open(&kept.scope, &kept.name, &kept.sealed)?;
        return String::from_utf8(bytes).map(Secret::new).map_err(|_| NoSecrets::NotText(name.to_owned()));
    };
    let pointer = pointer.parse().map_err(|error| NoSecrets::Pointer { name: name.to_owned(), error })?;
    let failed = |error| NoSecrets::Vault { name: name.to_owned(), error };
    let vault = shared.vault.as_ref().ok_or(failed(VaultError::NotSet))?;
    let secret = Secret::new(vault.read(&pointer).await.map_err(failed)?);
    windlass_domain::mask::check(secret.expose().as_bytes())
        .map_err(|error| NoSecrets::Unmaskable { name: name.to_owned(), error })?;
    Ok(secret)
}

/// A central step's parameters with everything filled in, and what masks all that comes back.
pub(crate) async fn fill(
    shared: &Shared,
    work: &Work,
    step: &CentralWork,
    with: &Map<String, Value>,
) -> Result<Result<(Map<String, Value>, Masker), String>, windlass_store::Error> {
    let names = with.values().flat_map(reference::secrets).collect();
    let secrets = match resolve(shared, work, None, &names).await {
        Ok(s) => s,
        Err(NoSecrets::Store(error)) => return Err(error),
        Err(why) => return Ok(Err(why.to_string())),
    };
    let mut lookup = |r: &Reference| match r {
        Reference::Secret { name } => secrets.get(name).map(|s| Value::String(s.expose().to_owned())),
        Reference::Output { step: of, path } => reference::output(&step.outputs, of, path).cloned(),
    };
    let filled = reference::fill_map(with, &mut lookup).map_err(|e| e.to_string());
    Ok(filled.map(|with| (with, secret::masker(&secrets))))
}
