//! Every subject, stream and consumer name, in one place. Tokens come from ids and checked names, so none can hold a dot,
//! a wildcard or a space.

use windlass_domain::ids::{AgentId, DeploymentId};

/// Streams of the services account. Topology is additive: a stream is created or extended, never deleted.
pub const STREAM_EVENTS: &str = "WINDLASS_EVT";
pub const STREAM_COMMANDS: &str = "WINDLASS_CMD";
pub const STREAM_WORK: &str = "WINDLASS_WORK";
pub const STREAM_IN: &str = "WINDLASS_IN";
pub const STREAM_DEAD: &str = "WINDLASS_DLQ";

pub const ALL_EVENTS: &str = "windlass.evt.>";
pub const ALL_COMMANDS: &str = "windlass.cmd.>";
pub const ALL_WORK: &str = "windlass.work.>";
pub const ALL_IN: &str = "windlass.in.>";
pub const ALL_DEAD: &str = "windlass.dlq.>";

// What a service may say or hear of one kind, for its rights at the broker.
pub const EVERY_COMMAND: &str = "windlass.cmd.deployment.*";
pub const EVERY_OUTCOME: &str = "windlass.outcome.*";
pub const EVERY_POOL: &str = "windlass.work.*";
pub const EVERY_LOG: &str = "windlass.log.*";
pub const EVERY_PLUGIN: &str = "windlass.plugin.>";

/// `windlass.evt.<aggregate>.<id>.<what>`; ids other than UUIDs and names have their dots and slashes replaced.
pub fn event(aggregate: &str, id: &str, what: &str) -> String {
    format!("windlass.evt.{aggregate}.{}.{}", token(id), token(what))
}
/// All events of one deployment.
pub fn deployment_events(id: DeploymentId) -> String {
    format!("windlass.evt.deployment.{id}.>")
}
/// `windlass.cmd.deployment.<verb>`: wakes the scheduler; the body is the command's id.
pub fn command(verb: &str) -> String {
    format!("windlass.cmd.deployment.{}", token(verb))
}
/// Answer wake-up for a waiting api: core NATS, body is the command's id.
pub fn command_outcome(id: uuid::Uuid) -> String {
    format!("windlass.outcome.{id}")
}
/// Works of a pool: wakes executors; the body is the work's id.
pub fn work(pool: &str) -> String {
    format!("windlass.work.{}", token(pool))
}
/// A work changed (settled, or settled anew): wakes the scheduler. Core NATS, body is the deployment's id.
pub const WORK_SETTLED: &str = "windlass.settled";
/// New log chunks of a deployment: core NATS, body empty; readers look in the database.
pub fn log(deployment: DeploymentId) -> String {
    format!("windlass.log.{deployment}")
}
/// Requests to a plugin that is a NATS service: request and reply in the services account.
pub fn plugin(name: &str, version: &str, verb: &str) -> String {
    format!("windlass.plugin.{}.{}.{}", token(name), token(version), token(verb))
}
pub fn dead(service: &str) -> String {
    format!("windlass.dlq.{}", token(service))
}

/// Frames to an agent (agents account, core NATS).
pub fn agent_down(agent: AgentId) -> String {
    format!("dn.{agent}.cmd")
}
/// Task frames from an agent: ACCEPT, STARTED, STEP, RESULT ...
pub fn agent_up(agent: AgentId) -> String {
    format!("up.{agent}.msg")
}
/// HELLO and heartbeats.
pub fn agent_hello(agent: AgentId) -> String {
    format!("up.{agent}.hb")
}
/// Log frames, apart so that a RESULT never waits behind them.
pub fn agent_log(agent: AgentId) -> String {
    format!("up.{agent}.log")
}
pub const ALL_AGENT_UP: &str = "up.*.msg";
pub const ALL_AGENT_HELLO: &str = "up.*.hb";
pub const ALL_AGENT_LOG: &str = "up.*.log";
/// Queue group in which executors share HELLO and heartbeats.
pub const EXECUTORS: &str = "executors";

/// The agent id of an `up.<agent>.<kind>` subject.
pub fn agent_of(subject: &str) -> Option<AgentId> {
    subject.split('.').nth(1)?.parse().ok()
}

fn token(s: &str) -> String {
    s.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_can_widen_a_subject() {
        assert_eq!(event("catalog", "shop/beta", "catalog.saved"), "windlass.evt.catalog.shop_beta.catalog_saved");
        assert_eq!(work("a.b>*"), "windlass.work.a_b__");
        let id: AgentId = uuid::Uuid::nil().into();
        assert_eq!(agent_of(&agent_up(id)), Some(id));
        assert_eq!(agent_of("up"), None);
    }
}
