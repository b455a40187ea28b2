//! Every route, once: what it asks for and who answers. The OpenAPI document is made from the same handlers, and a test holds
//! the two against each other.

mod access;
mod artifacts;
mod bundles;
mod catalog;
mod deployments;
mod diagnosis;
mod fleet;
mod history;
mod hooks;
mod marks;
mod ops;
pub(crate) mod plans;
mod plugins;
mod promotions;
mod sources;
mod streams;
mod verbs;

use crate::{
    problem::Problem,
    table::{Access, On, Table},
};
use actix_web::http::Method;
use std::sync::LazyLock;
use utoipa::OpenApi;
use windlass_domain::access::Permission;

/// One of the known words, or a refusal that names them.
pub(crate) fn known<T: Copy>(
    field: &str,
    given: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, Problem> {
    let names = || all.iter().map(|t| name(*t)).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|t| name(*t) == given);
    found.ok_or_else(|| Problem::invalid(format!("`{field}` must be one of {}, got {given:?}", names())))
}

/// The route table.
pub(crate) fn table() -> Table {
    use Access::{CallbackToken, EnrollToken, Local, May, Public, Signature, Token};
    use Permission::{Admin, Approve, Audit, Define, Operate, Override, Trigger, View};
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let mut t = Table::default();
    let mut add = RouteAdder(&mut t);
    add.to(&get, "/healthz", Public, ops::healthz);
    add.to(&get, "/readyz", Public, ops::readyz);
    add.to(&get, "/metrics", Local(View), ops::metrics);
    add.to(&get, "/api/v1/openapi.json", Public, ops::openapi);
    add.to(&get, "/api/v1/schemas/flow.json", Public, ops::flow_schema);
    add.to(&post, "/hooks/cdevents/{project}", Signature, hooks::cdevents_hook);
    add.to(&post, "/hooks/github/{project}", Signature, hooks::github_hook);
    add.to(&post, "/hooks/generic/{project}", Signature, hooks::generic_hook);
    add.to(&post, "/hooks/git/{project}", Signature, sources::hook);
    add.to(&post, "/api/v1/enroll", EnrollToken, fleet::enroll);
    add.to(&post, "/api/v1/plugin-callbacks/{token}", CallbackToken, plugins::callback);

    add.to(&get, "/api/v1/me", Token, access::me);
    add.to(&post, "/api/v1/people", May(Admin, On::Global), access::put_person);
    add.to(&get, "/api/v1/people", May(Admin, On::Global), access::list_people);
    add.to(&post, "/api/v1/people/{name}/grants", May(Admin, On::Global), access::set_grants);
    add.to(&post, "/api/v1/tokens", May(Admin, On::Global), access::make_token);
    add.to(&get, "/api/v1/tokens", May(Admin, On::Global), access::list_tokens);
    add.to(&delete, "/api/v1/tokens/{id}", May(Admin, On::Global), access::revoke_token);
    add.to(&put, "/api/v1/secrets/{scope}/{name}", May(Admin, On::Secret), access::put_secret);
    add.to(&delete, "/api/v1/secrets/{scope}/{name}", May(Admin, On::Secret), access::delete_secret);
    add.to(&get, "/api/v1/secrets", May(Admin, On::Rows), access::list_secrets);

    add.to(&post, "/api/v1/apply", May(Define, On::Rows), catalog::apply);
    add.to(&get, "/api/v1/catalog/{kind}", May(View, On::Rows), catalog::list);
    // Before the route whose key could swallow it.
    add.to(&get, "/api/v1/catalog/{kind}/{key}/revisions", May(View, On::Catalog), catalog::revisions);
    add.to(&get, "/api/v1/catalog/{kind}/{key}/diff", May(View, On::Catalog), history::diff);
    add.to(&post, "/api/v1/catalog/{kind}/{key}/revert", May(Define, On::Catalog), history::revert);
    add.to(&get, "/api/v1/catalog/{kind}/{key}", May(View, On::Catalog), catalog::get);
    add.to(&put, "/api/v1/catalog/{kind}/{key}", May(Define, On::Catalog), catalog::put);
    add.to(&delete, "/api/v1/catalog/{kind}/{key}", May(Define, On::Catalog), catalog::remove);
    add.to(&get, "/api/v1/plugins", May(View, On::Rows), plugins::list);

    add.to(&post, "/api/v1/projects/{project}/artifacts", May(Trigger, On::Project), artifacts::register);
    add.to(&get, "/api/v1/projects/{project}/artifacts", May(View, On::Project), artifacts::list);
    add.to(&get, "/api/v1/projects/{project}/artifacts/{version}", May(View, On::Project), artifacts::get);
    add.to(&get, "/api/v1/triggers", May(View, On::Rows), ops::triggers);

    add.to(&post, "/api/v1/projects/{project}/deployments", May(Trigger, On::Project), deployments::request);
    add.to(&post, "/api/v1/projects/{project}/plan", May(Trigger, On::Project), plans::preview);
    add.to(&get, "/api/v1/projects/{project}/environments/{environment}/form", May(View, On::Project), plans::form);
    add.to(
        &get,
        "/api/v1/projects/{project}/environments/{environment}/values",
        May(View, On::Project),
        plans::explain,
    );
    let hold = "/api/v1/projects/{project}/environments/{environment}/hold";
    add.to(&get, hold, May(View, On::Project), marks::hold_state);
    add.to(&put, hold, May(Operate, On::Project), marks::hold);
    add.to(&delete, hold, May(Operate, On::Project), marks::release);
    add.to(&get, "/api/v1/projects/{project}/marks", May(View, On::Project), marks::list);
    add.to(&post, "/api/v1/projects/{project}/marks", May(Operate, On::Project), marks::set);
    add.to(&delete, "/api/v1/projects/{project}/marks", May(Operate, On::Project), marks::remove);
    add.to(&get, "/api/v1/drift", May(View, On::Rows), plans::drift);
    add.to(&get, "/api/v1/deployments", May(View, On::Rows), deployments::list);
    add.to(&get, "/api/v1/deployments/{id}", May(View, On::Deployment), deployments::get);
    add.to(&get, "/api/v1/deployments/{id}/plan", May(View, On::Deployment), deployments::plan);
    add.to(&get, "/api/v1/deployments/{id}/tasks", May(View, On::Deployment), deployments::tasks);
    add.to(&get, "/api/v1/deployments/{id}/approvals", May(View, On::Deployment), deployments::approvals);
    add.to(&get, "/api/v1/deployments/{id}/events", May(View, On::Deployment), streams::follow_events);
    add.to(&get, "/api/v1/deployments/{id}/logs", May(View, On::Deployment), streams::follow_logs);
    add.to(&get, "/api/v1/deployments/{id}/diagnosis", May(View, On::Deployment), diagnosis::diagnose);
    add.to(&post, "/api/v1/deployments/{id}/repair", May(Operate, On::Deployment), diagnosis::repair);
    add.to(&get, "/api/v1/commands/{id}", May(View, On::Command), deployments::command);
    add.to(&get, "/api/v1/queue", May(View, On::Rows), ops::queue);
    add.to(&post, "/api/v1/deployments/{id}/approve", May(Approve, On::Deployment), verbs::approve);
    add.to(&post, "/api/v1/deployments/{id}/reject", May(Approve, On::Deployment), verbs::reject);
    add.to(&post, "/api/v1/deployments/{id}/cancel", May(Trigger, On::Deployment), verbs::cancel);
    add.to(&post, "/api/v1/deployments/{id}/pause", May(Operate, On::Deployment), verbs::pause);
    add.to(&post, "/api/v1/deployments/{id}/resume", May(Operate, On::Deployment), verbs::resume);
    add.to(&post, "/api/v1/deployments/{id}/confirm", May(Operate, On::Deployment), verbs::confirm);
    add.to(&post, "/api/v1/deployments/{id}/choose", May(Operate, On::Deployment), verbs::choose);
    add.to(&post, "/api/v1/deployments/{id}/accept", May(Trigger, On::Deployment), verbs::accept);
    add.to(&post, "/api/v1/deployments/{id}/claim", May(Operate, On::Deployment), verbs::claim);
    add.to(&post, "/api/v1/deployments/{id}/unclaim", May(Operate, On::Deployment), verbs::unclaim);
    add.to(&post, "/api/v1/deployments/{id}/retry", May(Operate, On::Deployment), verbs::retry);
    add.to(&post, "/api/v1/deployments/{id}/skip", May(Operate, On::Deployment), verbs::skip);
    add.to(&post, "/api/v1/deployments/{id}/ignore", May(Operate, On::Deployment), verbs::ignore);
    add.to(&post, "/api/v1/deployments/{id}/exclude", May(Operate, On::Deployment), verbs::exclude);
    add.to(&post, "/api/v1/deployments/{id}/abort", May(Operate, On::Deployment), verbs::abort);
    add.to(&post, "/api/v1/deployments/{id}/rollback", May(Operate, On::Deployment), verbs::rollback);
    add.to(&post, "/api/v1/deployments/{id}/stop", May(Operate, On::Deployment), verbs::stop);
    add.to(&post, "/api/v1/deployments/{id}/fail", May(Override, On::Deployment), verbs::fail);
    add.to(&post, "/api/v1/deployments/{id}/succeed", May(Override, On::Deployment), verbs::succeed);
    add.to(&post, "/api/v1/deployments/{id}/override", May(Override, On::Deployment), verbs::override_hosts);

    add.to(&get, "/api/v1/projects/{project}/promotions", May(View, On::Project), promotions::board);
    add.to(&post, "/api/v1/projects/{project}/promotions", May(Trigger, On::Project), promotions::promote);
    add.to(&get, "/api/v1/projects/{project}/source", May(View, On::Project), sources::status);
    add.to(&post, "/api/v1/projects/{project}/source/refresh", May(Define, On::Project), sources::refresh);
    add.to(&post, "/api/v1/bundles", May(Trigger, On::Rows), bundles::create);
    add.to(&get, "/api/v1/bundles", May(View, On::Rows), bundles::list);
    add.to(&get, "/api/v1/bundles/{id}", May(View, On::Bundle), bundles::get);
    add.to(&post, "/api/v1/bundles/{id}/approve", May(Approve, On::Bundle), bundles::approve);
    add.to(&post, "/api/v1/bundles/{id}/reject", May(Approve, On::Bundle), bundles::reject);
    add.to(&post, "/api/v1/bundles/{id}/cancel", May(Trigger, On::Bundle), bundles::cancel);
    add.to(&post, "/api/v1/bundles/{id}/pause", May(Operate, On::Bundle), bundles::pause);
    add.to(&post, "/api/v1/bundles/{id}/resume", May(Operate, On::Bundle), bundles::resume);
    add.to(&post, "/api/v1/bundles/{id}/retry", May(Operate, On::Bundle), bundles::retry);
    add.to(&post, "/api/v1/bundles/{id}/skip", May(Operate, On::Bundle), bundles::skip);
    add.to(&post, "/api/v1/bundles/{id}/rollback", May(Operate, On::Bundle), bundles::rollback);

    add.to(&get, "/api/v1/hosts", May(View, On::Global), fleet::list);
    add.to(&post, "/api/v1/hosts/{name}/lock", May(Operate, On::Global), fleet::lock);
    add.to(&post, "/api/v1/hosts/{name}/unlock", May(Operate, On::Global), fleet::unlock);
    add.to(&post, "/api/v1/enroll-tokens", May(Admin, On::Global), fleet::make_token);
    add.to(&post, "/api/v1/agents/{id}/revoke", May(Admin, On::Global), fleet::revoke);
    add.to(&get, "/api/v1/notifications", May(View, On::Rows), ops::list_notifications);
    add.to(&post, "/api/v1/notifications/{id}/retry", May(Admin, On::Global), ops::retry_notification);
    add.to(&get, "/api/v1/audit/checkpoint", May(Audit, On::Global), ops::checkpoint);
    add.to(&get, "/api/v1/audit/export", May(Audit, On::Global), ops::audit_export);
    add.to(&get, "/api/v1/audit/key", May(Audit, On::Global), ops::audit_key);
    add.to(&get, "/api/v1/doctor", May(Admin, On::Global), ops::doctor);
    t
}

struct RouteAdder<'a>(&'a mut Table);

impl RouteAdder<'_> {
    fn to<F, Fut>(&mut self, method: &Method, path: &'static str, access: Access, handler: F)
    where
        F: Fn(crate::call::Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = crate::call::Answer> + 'static,
    {
        self.0.add(method.clone(), path, access, handler);
    }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Windlass", description = "The HTTP API of the Windlass release orchestrator."),
    paths(
        ops::healthz,
        ops::readyz,
        ops::metrics,
        ops::openapi,
        ops::flow_schema,
        hooks::cdevents_hook,
        hooks::github_hook,
        hooks::generic_hook,
        fleet::enroll,
        plugins::callback,
        access::me,
        access::put_person,
        access::list_people,
        access::set_grants,
        access::make_token,
        access::list_tokens,
        access::revoke_token,
        access::put_secret,
        access::delete_secret,
        access::list_secrets,
        catalog::apply,
        catalog::list,
        catalog::revisions,
        history::diff,
        history::revert,
        catalog::get,
        catalog::put,
        catalog::remove,
        plugins::list,
        artifacts::register,
        artifacts::list,
        artifacts::get,
        ops::triggers,
        plans::preview,
        plans::form,
        plans::explain,
        marks::hold_state,
        marks::hold,
        marks::release,
        marks::list,
        marks::set,
        marks::remove,
        plans::drift,
        deployments::request,
        deployments::list,
        deployments::get,
        deployments::plan,
        deployments::tasks,
        deployments::approvals,
        streams::follow_events,
        streams::follow_logs,
        diagnosis::diagnose,
        diagnosis::repair,
        deployments::command,
        ops::queue,
        verbs::approve,
        verbs::reject,
        verbs::cancel,
        verbs::pause,
        verbs::resume,
        verbs::confirm,
        verbs::choose,
        verbs::accept,
        verbs::claim,
        verbs::unclaim,
        verbs::retry,
        verbs::skip,
        verbs::ignore,
        verbs::exclude,
        verbs::abort,
        verbs::rollback,
        verbs::stop,
        verbs::fail,
        verbs::succeed,
        verbs::override_hosts,
        sources::status,
        sources::refresh,
        sources::hook,
        promotions::board,
        promotions::promote,
        bundles::create,
        bundles::list,
        bundles::get,
        bundles::approve,
        bundles::reject,
        bundles::cancel,
        bundles::pause,
        bundles::resume,
        bundles::retry,
        bundles::skip,
        bundles::rollback,
        fleet::list,
        fleet::lock,
        fleet::unlock,
        fleet::make_token,
        fleet::revoke,
        ops::list_notifications,
        ops::retry_notification,
        ops::checkpoint,
        ops::audit_export,
        ops::audit_key,
        ops::doctor,
    )
)]
struct Document;

/// The OpenAPI document. Each operation says what it asks for in `x-access`, and its security accordingly.
pub(crate) fn openapi() -> serde_json::Value {
    let mut doc = serde_json::to_value(Document::openapi()).unwrap_or_default();
    for r in table().0 {
        let op = &mut doc["paths"][r.path][r.method.as_str().to_lowercase()];
        if op.is_object() {
            op["x-access"] = format!("{:?}", r.access).into();
            if matches!(r.access, Access::Token | Access::May(..) | Access::Local(_)) {
                op["security"] = serde_json::json!([{ "token": [] }]);
            }
        }
    }
    doc["components"]["securitySchemes"] = serde_json::json!({ "token": { "type": "http", "scheme": "bearer" } });
    doc
}

pub(crate) fn openapi_text() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| serde_json::to_string_pretty(&openapi()).unwrap_or_default() + "\n");
    &TEXT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_and_the_document_name_the_same_routes() {
        let routes: BTreeSet<String> = table().0.iter().map(|r| format!("{} {}", r.method, r.path)).collect();
        assert_eq!(routes.len(), table().0.len(), "a route stands twice in the table");
        let doc = serde_json::to_value(Document::openapi()).expect("json");
        let paths = doc["paths"].as_object().expect("paths");
        let documented: BTreeSet<String> = paths
            .iter()
            .flat_map(|(p, ops)| {
                ops.as_object().expect("operations").keys().map(move |m| format!("{} {p}", m.to_uppercase()))
            })
            .collect();
        assert_eq!(routes, documented);
    }

    /// The document is reviewed as a file. `UPDATE=1 cargo test -p windlass-api openapi` writes it anew.
    #[test]
    fn the_openapi_file_is_what_the_handlers_say() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, openapi_text()).expect("writes");
        }
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            file == openapi_text(),
            "{} is not what the handlers say; run this test with UPDATE=1 and review it",
            path.display()
        );
    }
}
