//! Whether whoever approved may do so still when it counts. A decision waits in the queue until a scheduler takes it, and
//! meanwhile its maker may have been sent away: the rights are read anew in the transaction that takes it, and change only after
//! it ([`Latch::Access`]).

use crate::{Error, Refused};
use windlass_domain::{
    access::{Actor, Permission, Target},
    approval::{Approval, Decision},
    catalog::{Item, Kind},
    ids::TokenId,
};
use windlass_store::{
    Tx, catalog,
    latches::{self, Latch},
    people, tokens,
};

/// Why an approval counts no more; `None` when it does. To reject needs no right that could be lost: it starts nothing.
/// `token` is absent in commands of versions that did not keep it; then the person's rights alone decide.
pub(crate) async fn gone(
    tx: &mut Tx,
    approval: &Approval,
    token: Option<TokenId>,
    project: &str,
) -> Result<Option<Refused>, Error> {
    if approval.decision != Decision::Approve {
        return Ok(None);
    }
    latches::share(tx, Latch::Access).await?;
    let refused = |why: &str| {
        let text = format!("the approval of {} is not taken: {why}; somebody else has to approve", approval.person);
        Ok(Some(("not_asked", text)))
    };
    let Some(person) = people::get(tx, &approval.person).await?.filter(|p| !p.disabled) else {
        return refused("they are no longer a person who may sign in here");
    };
    let (scopes, only_project) = match token {
        None => (vec![], None),
        Some(id) => {
            let now = tx.now().await?;
            let works = |t: &tokens::Standing| {
                t.person == person.name && t.revoked_at.is_none() && t.expires_at.is_none_or(|e| e > now)
            };
            match tokens::standing(tx, id).await?.filter(works) {
                Some(t) => (t.scopes, t.project),
                None => return refused("the token it was given with has been revoked or has expired"),
            }
        }
    };
    let group = match catalog::get(tx, Kind::Project, project).await?.map(|e| e.item) {
        Some(Item::Project(p)) => p.group,
        // Of a project that is gone decides who may everywhere.
        _ => String::new(),
    };
    let actor = Actor { grants: people::grants(tx, &person.name).await?, person: person.name, scopes, only_project };
    if actor.may(Permission::Approve, Target::Project { name: project, group: &group }) {
        return Ok(None);
    }
    refused("they no longer have the permission `approve` there")
}
