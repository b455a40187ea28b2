//! Plugins that are NATS services: one request, one reply, on subjects that follow from name, version and verb.

use super::wire::{Answer, Request, Silence};
use crate::shared::Shared;
use std::time::Duration;
use windlass_contracts::subjects;
use windlass_domain::plugin::Plugin;

/// Longest wait for one reply: a service with more to do answers `running`.
const REPLY: Duration = Duration::from_secs(60);

pub(super) async fn ask(
    shared: &Shared,
    plugin: &Plugin,
    request: &Request<'_>,
    left: Duration,
    halt: impl Future<Output = ()>,
) -> Result<Answer, Silence> {
    let body = serde_json::to_vec(request)
        .map_err(|e| Silence::NotAsked { reason: format!("the request cannot be written: {e}"), soon: false })?;
    let subject = subjects::plugin(&plugin.name, &plugin.version, request.verb.as_str());
    let wait = REPLY.min(left);
    let message = async_nats::Request::new().payload(body.into()).timeout(Some(wait));
    let reply = tokio::select! {
        reply = shared.ctx.bus.client().send_request(subject.clone(), message) => reply,
        () = halt => return Err(Silence::Halted),
    };
    use async_nats::RequestErrorKind as Kind;
    match reply {
        Ok(m) if m.payload.len() > crate::program::MAX_OUTPUT => Err(Silence::Broke("its answer is too large".into())),
        Ok(m) => match m.headers.as_ref().and_then(|h| h.get("Nats-Service-Error")) {
            Some(error) => {
                Err(Silence::Broke(crate::agents::cut(format!("the service answered with an error: {error}"), 500)))
            }
            None => Answer::read(&m.payload).map_err(Silence::Broke),
        },
        Err(e) if e.kind() == Kind::NoResponders => {
            Err(Silence::NotAsked { reason: format!("no service listens on {subject}"), soon: true })
        }
        Err(e) if e.kind() == Kind::TimedOut => {
            Err(Silence::Unknown(format!("the service did not answer within {} s", wait.as_secs())))
        }
        Err(e) => Err(Silence::Unknown(format!("the request was not answered: {e}"))),
    }
}
