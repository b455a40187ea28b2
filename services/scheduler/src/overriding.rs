//! Override is for hosts of which nobody knows what they did. A host's own word that came first counts: it is waited for, and
//! looked for again under the lock of its work. What a host says after the override has committed changes nothing; executors
//! look for overrides before they take its word.

use crate::{Error, Refused};
use std::collections::BTreeSet;
use windlass_domain::{deployment::Deployment, ids::DeploymentId};
use windlass_store::{Tx, tasks, works};

/// Hosts have said something that the deployment has not heard yet.
pub(crate) async fn waits(tx: &mut Tx, id: DeploymentId) -> Result<bool, Error> {
    Ok(!works::results_to_apply(tx, Some(id), 1).await?.is_empty())
}

/// Why these hosts are not overridden: they have spoken. `Conflict` where the deployment has yet to hear it; the next look does.
pub(crate) async fn spoken(tx: &mut Tx, d: &Deployment, hosts: &[String]) -> Result<Option<Refused>, Error> {
    let mut unknown = d.unknown_works();
    // Always in this order, as others lock several.
    unknown.sort_by_key(|(work, _)| *work);
    for (work, _) in &unknown {
        works::lock_desired(tx, *work).await?;
    }
    if waits(tx, d.id).await? {
        return Err(windlass_store::Error::Conflict.into());
    }
    let named: BTreeSet<&str> = hosts.iter().map(String::as_str).collect();
    for (work, silent) in unknown {
        let silent: BTreeSet<(&str, u32)> = silent.into_iter().collect();
        for (host, attempt, state) in tasks::ended_untold(tx, work).await? {
            let meant = named.is_empty() || named.contains(host.as_str());
            if meant && silent.contains(&(host.as_str(), attempt)) {
                let why = format!(
                    "host {host} has said what became of it: {}. It counts when its load balancers have it back; leave it out, or wait",
                    state.replace('_', " ")
                );
                return Ok(Some(("unsettled", why)));
            }
        }
    }
    Ok(None)
}
