//! People, grants, tokens, secrets.

use crate::{
    auth,
    call::{Answer, Call, Once, json, now, ok, page},
    problem::{Fail, Problem, transact},
    routes::known,
};
use actix_web::{HttpResponse, http::StatusCode};
use serde_json::json as value;
use windlass_contracts::http as body;
use windlass_domain::{
    access::{Grant, Permission, Role, Target},
    artifact::is_name,
    event::Aggregate,
    ids::TokenId,
    mask,
};
use windlass_runtime::vault::Pointer;
use windlass_store::{
    Tx, events,
    latches::{self, Latch},
    people, secrets, tokens,
};

fn grant_view(g: &Grant) -> body::Grant {
    body::Grant { project_group: g.project_group.clone(), role: g.role.as_str().into() }
}

fn scopes(of: &[Permission]) -> Vec<String> {
    of.iter().map(|p| p.as_str().to_owned()).collect()
}

#[utoipa::path(get, path = "/api/v1/me", tag = "access", responses((status = 200, body = body::Me), (status = "default", body = body::Problem)))]
pub(crate) async fn me(call: Call) -> Answer {
    let w = call.who()?;
    ok(&body::Me {
        person: w.actor.person.clone(),
        display: w.display.clone(),
        token: w.token.0,
        grants: w.actor.grants.iter().map(grant_view).collect(),
        scopes: scopes(&w.actor.scopes),
        project: w.actor.only_project.clone(),
        expires_at: w.expires_at,
    })
}

fn grants(given: &[body::Grant]) -> Result<Vec<Grant>, Problem> {
    let mut out: Vec<Grant> = Vec::new();
    for g in given {
        if g.project_group != "*" && !is_name(&g.project_group) {
            return Err(Problem::invalid(format!("`project_group` must be a name or `*`, got {:?}", g.project_group)));
        }
        let grant =
            Grant { project_group: g.project_group.clone(), role: g.role.parse::<Role>().map_err(Problem::invalid)? };
        if !out.contains(&grant) {
            out.push(grant);
        }
    }
    Ok(out)
}

async fn person_view(tx: &mut Tx, p: people::Person) -> Result<body::Person, Fail> {
    let grants = people::grants(tx, &p.name).await?.iter().map(grant_view).collect();
    Ok(body::Person { name: p.name, display: p.display, disabled: p.disabled, grants, created_at: p.created_at })
}

/// Somebody must be left who can mend what is locked.
async fn keep_an_admin(tx: &mut Tx) -> Result<(), Fail> {
    if people::count_admins(tx).await? == 0 {
        let detail = "nobody would be left with the role admin on `*`; give it to somebody else first";
        return Err(Problem::conflict("last_admin", detail).into());
    }
    Ok(())
}

#[utoipa::path(post, path = "/api/v1/people", tag = "access", request_body = body::PersonPut, responses((status = 200, body = body::Person), (status = 201, body = body::Person), (status = "default", body = body::Problem)))]
pub(crate) async fn put_person(call: Call) -> Answer {
    let given: body::PersonPut = call.body()?;
    if !is_name(&given.name) {
        return Err(
            Problem::invalid(format!("`name` must match [a-z0-9][a-z0-9_-]{{0,62}}, got {:?}", given.name)).into()
        );
    }
    let wanted = given.grants.as_deref().map(grants).transpose()?;
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            latches::take(&mut tx, Latch::Access).await?;
            let at = now();
            let new = people::Person { name: given.name.clone(), display: given.display.clone(), disabled: given.disabled, created_at: at };
            let made = people::insert(&mut tx, &new).await?;
            if !made {
                people::update(&mut tx, &given.name, &given.display, given.disabled).await?;
            }
            if let Some(g) = &wanted {
                people::set_grants(&mut tx, &given.name, g).await?;
            }
            keep_an_admin(&mut tx).await?;
            let p = people::get(&mut tx, &given.name).await?.ok_or_else(Problem::not_found)?;
            let view = person_view(&mut tx, p).await?;
            let payload = value!({ "person": &view.name, "disabled": view.disabled, "grants": &view.grants });
            events::append(&mut tx, call.event(Aggregate::Access, format!("person/{}", given.name), "person.saved", payload)).await?;
            let status = if made { StatusCode::CREATED } else { StatusCode::OK };
            call.keep(&mut tx, status, &view).await?;
            (status, value!(view))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

#[utoipa::path(get, path = "/api/v1/people", tag = "access", params(("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Person>), (status = "default", body = body::Problem)))]
pub(crate) async fn list_people(call: Call) -> Answer {
    call.only(&["limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let after: Option<String> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let rows = people::list(&mut tx, after.as_deref(), limit + 1).await?;
    let p = page(rows, limit, |r| r.name.clone(), |r| r);
    let mut items = Vec::new();
    for person in p.items {
        items.push(person_view(&mut tx, person).await?);
    }
    ok(&body::Page { items, next: p.next })
}

#[utoipa::path(post, path = "/api/v1/people/{name}/grants", tag = "access", params(("name" = String, Path,)), request_body = body::GrantsPut, responses((status = 200, body = body::Person), (status = "default", body = body::Problem)))]
pub(crate) async fn set_grants(call: Call) -> Answer {
    let given: body::GrantsPut = call.body()?;
    let wanted = grants(&given.grants)?;
    let name = call.param("name");
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            latches::take(&mut tx, Latch::Access).await?;
            let p = people::get(&mut tx, name).await?.ok_or_else(Problem::not_found)?;
            people::set_grants(&mut tx, name, &wanted).await?;
            keep_an_admin(&mut tx).await?;
            let view = person_view(&mut tx, p).await?;
            let payload = value!({ "person": name, "grants": &view.grants });
            events::append(&mut tx, call.event(Aggregate::Access, format!("person/{name}"), "person.granted", payload)).await?;
            call.keep(&mut tx, StatusCode::OK, &view).await?;
            (StatusCode::OK, value!(view))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

#[utoipa::path(post, path = "/api/v1/tokens", tag = "access", request_body = body::TokenNew, responses((status = 201, body = body::TokenMade), (status = "default", body = body::Problem)))]
pub(crate) async fn make_token(call: Call) -> Answer {
    let given: body::TokenNew = call.body()?;
    let mut wanted = Vec::new();
    for s in &given.scopes {
        wanted.push(known("scopes", s, &Permission::ALL, |p| p.as_str())?);
    }
    if given.expires_at.is_some_and(|e| e <= now()) {
        return Err(Problem::invalid("`expires_at` has passed already").into());
    }
    let done: Result<_, Fail> = transact!(call.store(), tx => {
        if let Once::Again(status, v) = call.once(&mut tx).await? {
            (status, v)
        } else {
            if people::get(&mut tx, &given.person).await?.is_none() {
                return Err(Problem::unprocessable(format!("there is no person {:?}; make them first", given.person), vec![]).into());
            }
            let fresh = auth::mint("wl");
            let token = tokens::Token {
                id: TokenId(fresh.id),
                hash: fresh.hash.clone(),
                person: given.person.clone(),
                label: given.label.clone(),
                scopes: wanted.clone(),
                project: given.project.clone(),
                created_at: now(),
                expires_at: given.expires_at,
                revoked_at: None,
            };
            tokens::insert(&mut tx, &token).await?;
            let payload = value!({ "token": fresh.id, "person": &given.person, "label": &given.label, "scopes": scopes(&wanted), "project": &given.project });
            events::append(&mut tx, call.event(Aggregate::Access, format!("token/{}", fresh.id), "token.made", payload)).await?;
            let view = body::TokenMade { id: fresh.id, token: fresh.text, person: given.person.clone(), expires_at: given.expires_at };
            call.keep(&mut tx, StatusCode::CREATED, &view).await?;
            (StatusCode::CREATED, value!(view))
        }
    });
    let (status, v) = done?;
    json(status, &v)
}

#[utoipa::path(get, path = "/api/v1/tokens", tag = "access", params(("person" = Option<String>, Query,), ("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::Token>), (status = "default", body = body::Problem)))]
pub(crate) async fn list_tokens(call: Call) -> Answer {
    call.only(&["person", "limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let before: Option<TokenId> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let rows = tokens::list(&mut tx, call.ask("person"), before, limit + 1).await?;
    ok(&page(
        rows,
        limit,
        |t| t.id,
        |t| body::Token {
            id: t.id.0,
            person: t.person,
            label: t.label,
            scopes: scopes(&t.scopes),
            project: t.project,
            created_at: t.created_at,
            expires_at: t.expires_at,
            revoked_at: t.revoked_at,
        },
    ))
}

#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "access", params(("id" = uuid::Uuid, Path,)), responses((status = 204), (status = "default", body = body::Problem)))]
pub(crate) async fn revoke_token(call: Call) -> Answer {
    let id = TokenId(call.uuid("id")?);
    let done: Result<(), Fail> = transact!(call.store(), tx => {
        latches::take(&mut tx, Latch::Access).await?;
        if tokens::get(&mut tx, id).await?.is_none() {
            return Err(Problem::not_found().into());
        }
        if tokens::revoke(&mut tx, id, now()).await? {
            events::append(&mut tx, call.event(Aggregate::Access, format!("token/{id}"), "token.revoked", value!({ "token": id }))).await?;
        }
    });
    done?;
    Ok(HttpResponse::NoContent().finish())
}

const SCOPES: &str = "host.<name>, environment.<project>.<name>, project.<name>, group.<name>, channel or ssh";

/// The scope as it is stored; `Err` names those there are.
fn scope_of<'c>(call: &'c Call, name: &str) -> Result<&'c str, Problem> {
    let scope = call.param("scope");
    let parts: Vec<&str> = scope.split('/').collect();
    let good = match parts.as_slice() {
        ["channel" | "ssh"] => true,
        ["host" | "project" | "group", n] => is_name(n),
        ["environment", p, e] => is_name(p) && is_name(e),
        _ => false,
    };
    if !good {
        return Err(Problem::invalid(format!(
            "there is no scope {:?} for secrets; there are {SCOPES}",
            scope.replace('/', ".")
        )));
    }
    if !is_name(name) {
        return Err(Problem::invalid(format!("a secret's name must match [a-z0-9][a-z0-9_-]{{0,62}}, got {name:?}")));
    }
    Ok(scope)
}

#[utoipa::path(put, path = "/api/v1/secrets/{scope}/{name}", tag = "access", params(("scope" = String, Path, description = "`host.<name>`, `environment.<project>.<name>`, `project.<name>`, `group.<name>` or `channel`"), ("name" = String, Path,)), request_body = body::SecretPut, responses((status = 200, body = body::SecretName), (status = "default", body = body::Problem)))]
pub(crate) async fn put_secret(call: Call) -> Answer {
    let given: body::SecretPut = call.body()?;
    let name = call.param("name");
    let scope = scope_of(&call, name)?;
    let sealed = match &given.vault {
        None if given.value.is_empty() => return Err(Problem::invalid("`value` is empty").into()),
        None => {
            // What is used in a step is masked in its output; what cannot be, is no secret there.
            if !matches!(scope, "channel" | "ssh") {
                mask::check(given.value.as_bytes()).map_err(|e| Problem::invalid(e.to_string()))?;
            }
            let sealed = call.state.ctx.sealer.seal(scope, name, given.value.as_bytes());
            sealed.map_err(|e| Fail::Internal(e.to_string()))?
        }
        Some(_) if !given.value.is_empty() => {
            return Err(Problem::invalid("give `value` or `vault`, not both").into());
        }
        Some(v) if matches!(scope, "channel" | "ssh") => {
            return Err(Problem::invalid(format!("a secret of {scope} is kept here, not in Vault ({v})")).into());
        }
        Some(v) => {
            v.parse::<Pointer>().map_err(|e| Problem::invalid(e.to_string()))?;
            if call.state.ctx.settings.vault.address.is_none() {
                let text = "Vault is not set up: set `vault.address` and `vault.token_file`";
                return Err(Problem::conflict("no_vault", text).into());
            }
            vec![]
        }
    };
    let (who, at) = (call.who()?.actor.person.clone(), now());
    let done: Result<(), Fail> = transact!(call.store(), tx => {
        match &given.vault {
            None => secrets::put(&mut tx, scope, name, &sealed, &who, at).await?,
            Some(v) => secrets::put_pointer(&mut tx, scope, name, v, &who, at).await?,
        }
        let payload = value!({ "scope": scope, "name": name, "vault": given.vault });
        events::append(&mut tx, call.event(Aggregate::Access, format!("secret/{scope}/{name}"), "secret.saved", payload)).await?;
    });
    done?;
    ok(&body::SecretName {
        scope: scope.replace('/', "."),
        name: name.into(),
        updated_at: at,
        updated_by: who,
        vault: given.vault,
    })
}

#[utoipa::path(delete, path = "/api/v1/secrets/{scope}/{name}", tag = "access", params(("scope" = String, Path,), ("name" = String, Path,)), responses((status = 204), (status = "default", body = body::Problem)))]
pub(crate) async fn delete_secret(call: Call) -> Answer {
    let name = call.param("name");
    let scope = scope_of(&call, name)?;
    let done: Result<(), Fail> = transact!(call.store(), tx => {
        if !secrets::remove(&mut tx, scope, name).await? {
            return Err(Problem::not_found().into());
        }
        let payload = value!({ "scope": scope, "name": name });
        events::append(&mut tx, call.event(Aggregate::Access, format!("secret/{scope}/{name}"), "secret.removed", payload)).await?;
    });
    done?;
    Ok(HttpResponse::NoContent().finish())
}

/// Whether the caller administers what the scope belongs to.
async fn may_admin(call: &Call, tx: &mut Tx, scope: &str) -> Result<bool, Fail> {
    match scope.split_once('/') {
        Some(("project", p)) => call.may(tx, Permission::Admin, Some(p)).await,
        Some(("environment", e)) => call.may(tx, Permission::Admin, e.split('/').next()).await,
        Some(("group", group)) => Ok(call.who()?.actor.may(Permission::Admin, Target::Project { name: "", group })),
        _ => call.may(tx, Permission::Admin, None).await,
    }
}

#[utoipa::path(get, path = "/api/v1/secrets", tag = "access", params(("limit" = Option<u32>, Query,), ("cursor" = Option<String>, Query,)), responses((status = 200, body = body::Page<body::SecretName>), (status = "default", body = body::Problem)))]
pub(crate) async fn list_secrets(call: Call) -> Answer {
    call.only(&["limit", "cursor"])?;
    let (limit, cursor) = call.page()?;
    let after: Option<(String, String)> = cursor.map(crate::page::decode).transpose()?;
    let mut tx = call.store().read().await?;
    let mut rows = Vec::new();
    for s in secrets::names(&mut tx).await? {
        let late = after.as_ref().is_none_or(|(scope, name)| (s.scope.as_str(), s.name.as_str()) > (scope, name));
        if late && may_admin(&call, &mut tx, &s.scope).await? {
            rows.push(s);
        }
    }
    ok(&page(
        rows,
        limit,
        |s| (s.scope.clone(), s.name.clone()),
        |s| body::SecretName {
            scope: s.scope.replace('/', "."),
            name: s.name,
            updated_at: s.updated_at,
            updated_by: s.updated_by,
            vault: s.vault,
        },
    ))
}
