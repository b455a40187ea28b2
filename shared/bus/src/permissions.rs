//! What each service may say and hear on NATS: least privilege, one identity each, so that a service in wrong hands can wake
//! others in vain but neither read what is not its own nor empty a stream. The database decides; this only narrows the doorbell.

use windlass_contracts::subjects;

/// The subjects of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
    /// May answer what it was asked, once for each question.
    pub(crate) respond: bool,
}

/// Identities in the services account besides `services`, which is allowed all and meant for one process that runs everything.
pub const SERVICES: [&str; 5] = ["api", "scheduler", "executor", "notifier", "auditor"];
/// A program that serves plugins, and one that sends and hears events from outside.
pub const OTHERS: [&str; 2] = ["plugins", "events"];

const STREAMS: [&str; 5] = [
    subjects::STREAM_EVENTS,
    subjects::STREAM_COMMANDS,
    subjects::STREAM_WORK,
    subjects::STREAM_IN,
    subjects::STREAM_DEAD,
];

/// Where an identity's answers go: nobody else can listen there.
pub(crate) fn inbox_prefix(name: &str) -> String {
    format!("_INBOX_{name}")
}

/// `None` for a name that is no identity.
pub(crate) fn of(name: &str) -> Option<Permissions> {
    let mut publish: Vec<String> = Vec::new();
    let mut subscribe = vec![format!("{}.>", inbox_prefix(name))];
    let mut respond = false;
    let mut say = |all: &[&str]| publish.extend(all.iter().map(|s| (*s).to_owned()));
    match name {
        "api" => {
            say(&[subjects::EVERY_COMMAND, subjects::EVERY_POOL, subjects::WORK_SETTLED]);
            say(&consumer(subjects::STREAM_IN, "api-intake").iter().map(String::as_str).collect::<Vec<_>>());
            subscribe.extend([subjects::EVERY_OUTCOME, subjects::EVERY_LOG, subjects::ALL_EVENTS].map(str::to_owned));
        }
        "scheduler" => {
            say(&[subjects::EVERY_POOL, subjects::EVERY_OUTCOME, subjects::EVERY_COMMAND]);
            say(&consumer(subjects::STREAM_COMMANDS, "scheduler").iter().map(String::as_str).collect::<Vec<_>>());
            subscribe.push(subjects::WORK_SETTLED.to_owned());
        }
        "executor" => {
            say(&[subjects::EVERY_POOL, subjects::EVERY_LOG, subjects::WORK_SETTLED, subjects::EVERY_PLUGIN]);
            subscribe.push(subjects::EVERY_POOL.to_owned());
        }
        "notifier" => {
            say(&consumer(subjects::STREAM_EVENTS, "notifier").iter().map(String::as_str).collect::<Vec<_>>());
        }
        "auditor" => subscribe.push(subjects::ALL_EVENTS.to_owned()),
        "plugins" => {
            subscribe.push(subjects::EVERY_PLUGIN.to_owned());
            respond = true;
        }
        "events" => {
            say(&[subjects::ALL_IN]);
            subscribe.push(subjects::ALL_EVENTS.to_owned());
        }
        _ => return None,
    }
    if SERVICES.contains(&name) {
        // Every process relays what it committed, and makes streams that a broker lost. None deletes or empties one.
        publish.push(subjects::ALL_EVENTS.to_owned());
        publish.push(subjects::dead(name));
        for verb in ["INFO", "CREATE", "UPDATE"] {
            publish.extend(STREAMS.iter().map(|s| format!("$JS.API.STREAM.{verb}.{s}")));
        }
    }
    Some(Permissions { publish, subscribe, respond })
}

/// What its one durable consumer needs: making it, asking it for messages, settling them.
fn consumer(stream: &str, durable: &str) -> Vec<String> {
    vec![
        format!("$JS.API.CONSUMER.CREATE.{stream}.{durable}"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.{durable}.>"),
        format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}"),
        format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"),
        format!("$JS.ACK.{stream}.{durable}.>"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_empty_a_stream_or_hear_everything() {
        for name in SERVICES.into_iter().chain(OTHERS) {
            let p = of(name).expect("an identity");
            for s in &p.publish {
                assert!(!s.contains("DELETE") && !s.contains("PURGE") && s != ">" && s != "$JS.API.>", "{name}: {s}");
            }
            for s in &p.subscribe {
                assert!(s != ">" && s != "_INBOX.>" && !s.starts_with('$'), "{name}: {s}");
            }
        }
        assert_eq!(of("somebody"), None);
    }
}
