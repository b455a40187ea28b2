//! People, tokens, secrets, hosts, and what came in and went out.

use super::{
    error::Error,
    http::{Api, encode, query},
    out::{Out, ago},
    view,
};
use crate::cli::{EnrollArgs, NotificationsCommand, PersonCommand, SecretCommand, TokenCommand, TriggersArgs};
use chrono::Utc;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use windlass_contracts::{
    http::{EnrollTokenNew, Grant, GrantsPut, NoBody, Page, Person, PersonPut, SecretPut, TokenNew},
    preview::HostLockBody,
};

/// Every page of a list, as one.
async fn all(api: &Api, path: &str) -> Result<Value, Error> {
    let mut page: Value = api.get(&query(path, &[("limit", Some("200"))])).await?;
    while let Some(next) = view::at(&page, "next").and_then(Value::as_str).map(str::to_owned) {
        let mut more: Value = api.get(&query(path, &[("limit", Some("200")), ("cursor", Some(&next))])).await?;
        let mut items = page["items"].take().as_array_mut().map(std::mem::take).unwrap_or_default();
        items.extend(more["items"].take().as_array_mut().map(std::mem::take).unwrap_or_default());
        page = json!({ "items": items, "next": more["next"] });
    }
    Ok(page)
}

pub(crate) async fn hosts(api: &Api, out: Out) -> Result<(), Error> {
    let page: Value = all(api, "/hosts").await?;
    if out.json {
        return out.json(&page);
    }
    let now = Utc::now();
    let rows = view::items(&page).iter().map(|h| {
        let seen = view::text(h, "agent/last_seen_at").parse().map(|t| ago(t, now)).unwrap_or_else(|_| "never".into());
        let labels = view::at(h, "labels").and_then(Value::as_object).map(|l| {
            l.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
        });
        vec![
            view::text(h, "name"),
            view::text(h, "address"),
            view::text(h, "state"),
            seen,
            view::text(h, "agent/version"),
            view::text(h, "current"),
            format!("{}/{}", view::text(h, "tasks"), view::text(h, "max_tasks")),
            view::text(h, "lock/reason"),
            labels.unwrap_or_default(),
        ]
    });
    out.table(
        &["HOST", "ADDRESS", "AGENT", "SEEN", "VERSION", "RELEASE", "TASKS", "LOCKED", "LABELS"],
        rows.collect(),
        "no hosts: windlass apply -f",
    )
}

pub(crate) async fn lock_host(host: &str, reason: String, api: &Api, out: Out) -> Result<(), Error> {
    let answer: Value = api.post(&format!("/hosts/{}/lock", encode(host)), &HostLockBody { reason }).await?;
    if out.json { out.json(&answer) } else { out.line(format!("host {host} is locked: it takes no new tasks")) }
}

pub(crate) async fn unlock_host(host: &str, api: &Api, out: Out) -> Result<(), Error> {
    let answer: Value = api.post(&format!("/hosts/{}/unlock", encode(host)), &NoBody::default()).await?;
    if out.json { out.json(&answer) } else { out.line(format!("host {host} takes tasks again")) }
}

pub(crate) async fn enroll(args: &EnrollArgs, api: &Api, out: Out) -> Result<(), Error> {
    let answer: Value =
        api.post("/enroll-tokens", &EnrollTokenNew { host: args.host.clone(), replace: args.replace }).await?;
    let token = view::text(&answer, "token");
    if out.json {
        return out.json(&answer);
    }
    if args.quiet {
        return out.line(token);
    }
    out.line(format!("one-time token for {}, good until {}:", args.host, view::time(&answer, "expires_at")))?;
    out.line(format!("  {token}"))?;
    out.line(format!("on {}, as root:", args.host))?;
    out.line(format!(
        "  windlass-agent enroll --server {} --token-file - --state /var/lib/windlass-agent",
        api.server()
    ))?;
    out.line("  windlass-agent run --state /var/lib/windlass-agent --root /srv")
}

pub(crate) async fn token(command: &TokenCommand, api: &Api, out: Out) -> Result<(), Error> {
    match command {
        TokenCommand::Create { person, label, scopes, project, days, quiet } => {
            let expires = days.map(|d| Utc::now() + chrono::Duration::days(i64::from(d)));
            let body = TokenNew {
                person: person.clone(),
                label: label.clone(),
                scopes: scopes.clone(),
                project: project.clone(),
                expires_at: expires,
            };
            let answer: Value = api.post("/tokens", &body).await?;
            if out.json {
                return out.json(&answer);
            }
            let token = view::text(&answer, "token");
            if *quiet {
                return out.line(token);
            }
            out.line(format!("token {} of {person}; it is shown only now:", view::text(&answer, "id")))?;
            out.line(format!("  {token}"))
        }
        TokenCommand::List => {
            let page: Value = all(api, "/tokens").await?;
            if out.json {
                return out.json(&page);
            }
            let rows = view::items(&page).iter().map(|t| {
                let state = if view::text(t, "revoked_at").is_empty() { "" } else { "revoked" };
                vec![
                    view::text(t, "id"),
                    view::text(t, "person"),
                    view::text(t, "label"),
                    view::joined(t, "scopes"),
                    view::text(t, "project"),
                    view::time(t, "expires_at"),
                    state.into(),
                ]
            });
            out.table(&["ID", "PERSON", "LABEL", "SCOPES", "PROJECT", "EXPIRES", ""], rows.collect(), "no tokens")
        }
        TokenCommand::Revoke { id } => {
            api.delete(&format!("/tokens/{id}")).await?;
            done(out, format!("token {id} is revoked"))
        }
    }
}

fn done(out: Out, text: String) -> Result<(), Error> {
    if out.json { out.json(&json!({ "done": true })) } else { out.line(text) }
}

pub(crate) async fn person(command: &PersonCommand, api: &Api, out: Out) -> Result<(), Error> {
    match command {
        PersonCommand::Create { name, display } => {
            let display = display.clone().unwrap_or_default();
            let body = PersonPut { name: name.clone(), display, disabled: false, grants: None };
            let answer: Value = api.post("/people", &body).await?;
            if out.json {
                out.json(&answer)
            } else {
                out.line(format!("{name} exists; give a role with: windlass person grant {name} ROLE"))
            }
        }
        PersonCommand::Grant { name, role, group } => {
            // The api replaces all grants of a person: keep those that are there.
            let people: Page<Person> =
                serde_json::from_value(all(api, "/people").await?).unwrap_or(Page { items: vec![], next: None });
            let mut grants = people.items.into_iter().find(|p| p.name == *name).map(|p| p.grants).unwrap_or_default();
            let wanted = Grant { project_group: group.clone(), role: role.clone() };
            if !grants.contains(&wanted) {
                grants.push(wanted);
            }
            let body = GrantsPut { grants };
            let answer: Value = api.post(&format!("/people/{}/grants", encode(name)), &body).await?;
            if out.json { out.json(&answer) } else { out.line(format!("{name} is {role} on project group {group}")) }
        }
        PersonCommand::List => {
            let page: Value = all(api, "/people").await?;
            if out.json {
                return out.json(&page);
            }
            let rows = view::items(&page).iter().map(|p| {
                let grants = view::list(p, "grants");
                let grants =
                    grants.iter().map(|g| format!("{} on {}", view::text(g, "role"), view::text(g, "project_group")));
                vec![view::text(p, "name"), view::text(p, "display"), grants.collect::<Vec<_>>().join(", ")]
            });
            out.table(&["NAME", "DISPLAY", "ROLES"], rows.collect(), "nobody")
        }
    }
}

pub(crate) async fn secret(command: &SecretCommand, api: &Api, out: Out) -> Result<(), Error> {
    match command {
        SecretCommand::Set { name, from, vault } => {
            let (scope, short) = secret_place(name)?;
            let value = match (vault, from) {
                (Some(_), _) => String::new(),
                (None, Some(path)) => std::fs::read_to_string(path).map_err(|source| Error::File {
                    path: path.clone(),
                    what: "the value cannot be read",
                    source,
                })?,
                (None, None) => from_stdin(name)?,
            };
            let body = SecretPut { value: value.trim_end_matches(['\n', '\r']).to_owned(), vault: vault.clone() };
            let _: Value = api.put(&format!("/secrets/{}/{}", encode(&scope), encode(short)), &body).await?;
            done(out, format!("secret {name} is stored"))
        }
        SecretCommand::Remove { name } => {
            let (scope, short) = secret_place(name)?;
            api.delete(&format!("/secrets/{}/{}", encode(&scope), encode(short))).await?;
            done(out, format!("secret {name} is removed"))
        }
        SecretCommand::List => {
            let page: Value = all(api, "/secrets").await?;
            if out.json {
                return out.json(&page);
            }
            let rows = view::items(&page).iter().map(|s| {
                let (scope, name) = (view::text(s, "scope").replace('.', "/"), view::text(s, "name"));
                let scope = scope.trim_start_matches("project/").trim_start_matches("environment/").to_owned();
                let place = match view::text(s, "vault") {
                    v if v.is_empty() => "sealed here".to_owned(),
                    v => format!("vault {v}"),
                };
                vec![format!("{scope}/{name}"), place, view::time(s, "updated_at"), view::text(s, "updated_by")]
            });
            out.table(&["SECRET", "KEPT", "SAVED", "BY"], rows.collect(), "no secrets")
        }
    }
}

/// The scope as the API writes it, and the name.
fn secret_place(name: &str) -> Result<(String, &str), Error> {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [scope @ ("channel" | "ssh"), n] => Ok(((*scope).to_owned(), n)),
        [scope @ ("host" | "group"), of, n] => Ok((format!("{scope}.{of}"), n)),
        [project, n] => Ok((format!("project.{project}"), n)),
        [project, environment, n] => Ok((format!("environment.{project}.{environment}"), n)),
        _ => Err(Error::Usage(format!(
            "write `<project>/<name>`, `<project>/<environment>/<name>`, `host/<host>/<name>`, `group/<group>/<name>` or \
             `channel/<name>`, not {name:?}"
        ))),
    }
}

fn from_stdin(name: &str) -> Result<String, Error> {
    if std::io::stdin().is_terminal() {
        eprintln!("value of {name}, then Ctrl-D:");
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(|source| Error::File {
        path: "-".into(),
        what: "the value cannot be read from standard input",
        source,
    })?;
    if text.trim().is_empty() { Err(Error::Usage("the value is empty".into())) } else { Ok(text) }
}

pub(crate) async fn triggers(args: &TriggersArgs, api: &Api, out: Out) -> Result<(), Error> {
    let limit = args.limit.to_string();
    let page: Value =
        api.get(&query("/triggers", &[("project", args.project.as_deref()), ("limit", Some(&limit))])).await?;
    if out.json {
        return out.json(&page);
    }
    let rows = view::items(&page).iter().map(|t| {
        vec![
            view::time(t, "received_at"),
            view::text(t, "project"),
            view::text(t, "source"),
            view::text(t, "outcome"),
            view::text(t, "kind"),
            view::text(t, "reason"),
        ]
    });
    out.table(&["RECEIVED", "PROJECT", "SOURCE", "OUTCOME", "KIND", "WHY"], rows.collect(), "nothing came in")
}

pub(crate) async fn queue(api: &Api, out: Out) -> Result<(), Error> {
    let answer: Value = api.get("/queue").await?;
    if out.json {
        return out.json(&answer);
    }
    let rows = view::list(&answer, "locks").iter().map(|l| {
        let one = |d: &Value| format!("{} {}", view::text(d, "version"), view::text(d, "id"));
        let holder = view::at(l, "holder").filter(|h| h.is_object()).map(one).unwrap_or_default();
        let waiting = view::list(l, "waiting").iter().map(one).collect::<Vec<_>>().join(", ");
        vec![
            format!("{}/{}", view::text(l, "project"), view::text(l, "environment")),
            holder,
            view::time(l, "taken_at"),
            waiting,
        ]
    });
    out.table(&["WHERE", "HELD BY", "SINCE", "WAITING"], rows.collect(), "no locks are held, nobody waits")
}

pub(crate) async fn notifications(command: &NotificationsCommand, api: &Api, out: Out) -> Result<(), Error> {
    match command {
        NotificationsCommand::List { state, limit } => {
            let limit = limit.to_string();
            let path = query("/notifications", &[("state", state.as_deref()), ("limit", Some(&limit))]);
            let page: Value = api.get(&path).await?;
            if out.json {
                return out.json(&page);
            }
            let rows = view::items(&page).iter().map(|n| {
                vec![
                    view::text(n, "id"),
                    view::time(n, "created_at"),
                    view::text(n, "channel"),
                    view::text(n, "state"),
                    view::text(n, "attempts"),
                    view::text(n, "last_error"),
                ]
            });
            out.table(&["ID", "CREATED", "CHANNEL", "STATE", "TRIES", "LAST ERROR"], rows.collect(), "no notifications")
        }
        NotificationsCommand::Retry { id } => {
            let _: Value = api.post(&format!("/notifications/{id}/retry"), &json!({})).await?;
            done(out, format!("notification {id} is sent again"))
        }
    }
}
