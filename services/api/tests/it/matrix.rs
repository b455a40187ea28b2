//! Every route of the table, as every kind of caller, on what is theirs, what is others', and what does not exist.

use crate::world::{World, answer};
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;
use windlass_api::{Access, On};
use windlass_contracts::command::{Command, Verb};
use windlass_domain::access::{Permission, Role};
use windlass_store::commands;
use windlass_testkit::databases;

/// A caller: what the oracle knows of the rights, apart from the code under test.
struct Caller {
    name: String,
    token: String,
    /// On which group, in which role.
    role: Option<(&'static str, Role)>,
    scope: Option<Permission>,
    works: bool,
}

impl Caller {
    fn has(&self, p: Permission, group: &str) -> bool {
        let Some((on, role)) = self.role else { return false };
        let scoped = self.scope.is_none_or(|s| s == p);
        // The table of rights, written down a second time.
        let allowed = match p {
            Permission::View => true,
            Permission::Trigger => matches!(role, Role::Developer | Role::Operator | Role::Admin),
            Permission::Approve => matches!(role, Role::Approver | Role::Admin),
            Permission::Operate | Permission::Override => matches!(role, Role::Operator | Role::Admin),
            Permission::Define | Permission::Admin | Permission::Audit => role == Role::Admin,
        };
        self.works && scoped && allowed && (on == "*" || on == group)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Own,
    Other,
    Nobody,
}

#[derive(Debug, PartialEq)]
enum Wanted {
    Status(u16),
    /// It gets past the decision: anything but 401 and 403, and 404 only where nothing is.
    Passed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_lets_in_who_it_should_not() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let mut deployments = BTreeMap::new();
        let mut stored = BTreeMap::new();
        let mut bundles = BTreeMap::new();
        for (of, project) in [(Of::Own, "shop"), (Of::Other, "bank")] {
            let d = w.deployment(project, "beta").await;
            let c = Command {
                id: Uuid::now_v7().into(),
                project: project.into(),
                environment: None,
                deployment: Some(d.id),
                actor: "person:x".into(),
                verb: Verb::Resume,
                created_at: chrono::Utc::now(),
                trace: None,
            };
            let mut tx = w.ctx.store.write().await.expect("begins");
            commands::insert(&mut tx, &c).await.expect("stores");
            tx.commit().await.expect("commits");
            deployments.insert(of, d.id.to_string());
            stored.insert(of, c.id.to_string());
            bundles.insert(of, w.bundle(&[project]).await.0.id.to_string());
        }
        let mut callers = Vec::new();
        for role in Role::ALL {
            for group in ["retail", "*"] {
                let name = format!("{}-{}", role.as_str(), if group == "*" { "all" } else { group });
                let token = w.person(&name, &[(group, role.as_str())]).await;
                callers.push(Caller { name, token, role: Some((group, role)), scope: None, works: true });
            }
        }
        let token = w.token(json!({ "person": "admin-all", "scopes": ["view"] })).await;
        callers.push(Caller {
            name: "scoped".into(),
            token,
            role: Some(("*", Role::Admin)),
            scope: Some(Permission::View),
            works: true,
        });
        let token = w.person("nobody", &[]).await;
        callers.push(Caller { name: "nobody".into(), token, role: None, scope: None, works: true });
        for (name, token) in [("anonymous", String::new()), ("liar", "wl_0_0".into())] {
            callers.push(Caller { name: name.into(), token, role: None, scope: None, works: false });
        }

        let (mut cells, mut wrong) = (0, Vec::new());
        for route in windlass_api::route_table() {
            for of in [Of::Own, Of::Other, Of::Nobody] {
                let project = match of {
                    Of::Own => "shop",
                    Of::Other => "bank",
                    Of::Nobody => "nope",
                };
                let absent = Uuid::now_v7().to_string();
                let id = match route.access {
                    Access::May(_, On::Deployment) => deployments.get(&of),
                    Access::May(_, On::Command) => stored.get(&of),
                    Access::May(_, On::Bundle) => bundles.get(&of),
                    _ => None,
                };
                let id = id.unwrap_or(&absent);
                let path = route
                    .path
                    .replace("{project}", project)
                    .replace("{id}", id)
                    .replace("{kind}", "project")
                    .replace("{key}", project)
                    .replace("{scope}", &format!("project.{project}"))
                    .replace("{name}", "nothing")
                    .replace("{version}", "0");
                for c in &callers {
                    cells += 1;
                    let wanted = wanted(&route.access, of, c);
                    let r = w.request(route.method.clone().as_str().parse().expect("method"), &path, &c.token);
                    let r = r.header("accept", "application/json").body("").send().await.expect("answers");
                    let status = r.status().as_u16();
                    let live = r.headers().get("content-type").is_some_and(|t| t == "text/event-stream");
                    let good = match wanted {
                        Wanted::Status(s) => status == s,
                        Wanted::Passed => {
                            !matches!(status, 401 | 403 | 500)
                                && (status != 404 || of == Of::Nobody || !by_project(&route.access))
                        }
                    };
                    if !good {
                        wrong.push(format!("{} {path} as {}: {status}, wanted {wanted:?}", route.method, c.name));
                    } else if !live
                        && (200..300).contains(&status)
                        && matches!(route.access, Access::May(_, On::Rows))
                        && c.role.is_some_and(|(g, _)| g == "retail")
                    {
                        let (_, body) = answer(r).await;
                        assert!(!body.to_string().contains("bank"), "{path} shows {} another project: {body}", c.name);
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {cells} cells on {}:\n{}", wrong.len(), w.db, wrong.join("\n"));
        assert!(cells > 2000, "only {cells} cells");
        eprintln!("{cells} cells on {}", w.db);
        w.stop().await;
    }
}

/// Streams, helpers and what others send are routes like all: none of them is beside the table.
#[test]
fn the_matrix_holds_streams_helpers_and_hooks() {
    let table = windlass_api::route_table();
    let has = |path: &str| table.iter().any(|r| r.path.contains(path));
    for path in ["/deployments/{id}/events", "/deployments/{id}/logs", "/form", "/values", "/openapi.json", "/schemas/"]
        .into_iter()
        .chain(["/hooks/", "/plugin-callbacks/", "/enroll", "/metrics", "/audit/export", "/diagnosis", "/doctor"])
    {
        assert!(has(path), "{path}");
    }
    // What asks for nothing at all is little, and written down here a second time.
    let open: Vec<&str> = table.iter().filter(|r| r.access == Access::Public).map(|r| r.path).collect();
    for path in &open {
        let known = ["/healthz", "/readyz", "/api/v1/openapi.json", "/api/v1/schemas/flow.json"].contains(path);
        assert!(known, "{path} is open to everybody");
    }
}

/// Addresses that look like a route and are none, and methods that a route does not have: nobody gets in by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_beside_the_table_lets_anybody_in() {
    let w = World::start(windlass_testkit::Db::sqlite()).await;
    w.fill().await;
    let table = windlass_api::route_table();
    let (mut tried, mut wrong) = (0, Vec::new());
    for route in table.iter().filter(|r| matches!(r.access, Access::May(..) | Access::Token)) {
        let path = route.path.replace("{project}", "shop").replace("{kind}", "project").replace("{key}", "shop");
        let path = path.replace("{id}", &Uuid::nil().to_string()).replace("{name}", "h1").replace("{version}", "1");
        let path = path.replace("{scope}", "project.shop").replace("{environment}", "beta");
        let short = path.trim_start_matches("/api/v1").to_owned();
        let ways = [
            path.clone(),
            format!("{path}/"),
            format!("/{path}"),
            format!("{path}//"),
            format!("{path};x=1"),
            format!("{path}%00"),
            format!("{path}%2f"),
            format!("{path}?token=admin&access_token=x&Authorization=Bearer%20x"),
            path.to_uppercase(),
            path.replace("/api/v1/", "/api/v1/./"),
            path.replace("/api/v1/", "/api/v1/healthz/../"),
            path.replace("/api/v1/", "/api/v1/%2e%2e/v1/"),
            path.replace("/api/v1", "/api"),
            format!("/healthz{short}"),
        ];
        for way in ways {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
                tried += 1;
                let r = w.http.request(method.parse().expect("method"), format!("{}{way}", w.base));
                // As a proxy might say it, and as it might not.
                let r = r.header("x-original-url", "/healthz").header("x-http-method-override", "GET");
                let r = r.header("x-forwarded-for", "127.0.0.1").header("cookie", "token=admin").body("");
                let r = r.send().await.expect("answers");
                // The console answers to what is no address of the api with its page.
                let page = r.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
                if r.status().as_u16() < 400 && !page {
                    wrong.push(format!("{method} {way}: {}", r.status()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{tried} addresses beside the table");
    assert!(tried > 5000, "{tried}");
    w.stop().await;
}

fn by_project(a: &Access) -> bool {
    // A route about a thing in a project may still not find the thing: artifact 0, a plan that is not there.
    matches!(a, Access::May(Permission::Operate | Permission::Override | Permission::Approve, On::Deployment))
}

fn wanted(access: &Access, of: Of, c: &Caller) -> Wanted {
    let group = if of == Of::Own { "retail" } else { "money" };
    match access {
        Access::Public | Access::Local(_) => Wanted::Passed,
        // Nothing is signed, no token is right.
        Access::Signature => Wanted::Status(403),
        Access::EnrollToken => Wanted::Status(400),
        Access::CallbackToken => Wanted::Status(404),
        Access::Token if c.works => Wanted::Passed,
        Access::Token => Wanted::Status(401),
        Access::May(..) if !c.works => Wanted::Status(401),
        Access::May(p, On::Global) if c.has(*p, "") => Wanted::Passed,
        Access::May(_, On::Global) => Wanted::Status(403),
        Access::May(p, On::Rows) if c.has(*p, "retail") => Wanted::Passed,
        Access::May(_, On::Rows) => Wanted::Status(403),
        Access::May(p, _) if of == Of::Nobody => match access {
            // A project that is not there can be made by who may define everywhere; the rest learns nothing.
            Access::May(_, On::Catalog) if c.has(*p, "") => Wanted::Passed,
            Access::May(_, On::Catalog) if c.has(Permission::View, "") => Wanted::Status(403),
            _ => Wanted::Status(404),
        },
        Access::May(p, _) if c.has(*p, group) => Wanted::Passed,
        Access::May(..) if c.has(Permission::View, group) => Wanted::Status(403),
        Access::May(..) => Wanted::Status(404),
    }
}
