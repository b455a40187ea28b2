//! The client: talks HTTP to an api, never to the database.

mod admin;
mod audit;
mod catalog;
mod config;
mod deploy;
mod diagnosis;
mod doctor;
mod error;
mod flow;
mod follow;
mod http;
mod ordered;
mod out;
mod plan;
mod sse;
mod ssh;
mod step_in;
mod text;
mod view;

pub(crate) use self::{
    config::{FILE as CLIENT_FILE, Target},
    error::{Error, chain},
    http::{Api, encode},
};

use crate::cli::{Command, Connection, DoctorCommand, FlowCommand, HostsCommand};
use out::Out;

/// Runs a client command.
pub(crate) async fn run(command: Command, connection: &Connection) -> Result<(), Error> {
    let out = Out::new(connection.json);
    let api = || Target::find(connection).and_then(Api::new);
    match command {
        Command::Apply(a) => catalog::apply(&a, &api()?, out).await,
        Command::Get(a) => catalog::get(&a, &api()?, out).await,
        Command::Release(a) => catalog::release(&a, &api()?, out).await,
        Command::Deploy(a) => deploy::deploy(a, &api()?, out).await,
        Command::Status(a) => deploy::status(a, &api()?, out).await,
        Command::Plan(a) => plan::plan(a, &api()?, out).await,
        Command::Explain(a) => plan::explain(&a, &api()?, out).await,
        Command::Drift(a) => plan::drift(&a, &api()?, out).await,
        Command::Approve(a) => deploy::decide(a, "approve", &api()?, out).await,
        Command::Reject(a) => deploy::decide(a, "reject", &api()?, out).await,
        Command::Logs(a) => deploy::logs(a, &api()?, out).await,
        Command::Cancel(a) => deploy::with_reason(a, "cancel", &api()?, out).await,
        Command::Pause(a) => deploy::with_reason(a, "pause", &api()?, out).await,
        Command::Abort(a) => deploy::with_reason(a, "abort", &api()?, out).await,
        Command::Resume(a) => deploy::resume(a, &api()?, out).await,
        Command::Confirm(a) => deploy::confirm(a, &api()?, out).await,
        Command::Choose(a) => deploy::choose(a, &api()?, out).await,
        Command::Accept(a) => deploy::accept(a, &api()?, out).await,
        Command::Claim(a) => step_in::claim(a, &api()?, out).await,
        Command::Unclaim(a) => step_in::unclaim(a, &api()?, out).await,
        Command::Retry(a) => step_in::retry(a, &api()?, out).await,
        Command::Stop(a) => deploy::with_hosts_and_reason(a, "stop", &api()?, out).await,
        Command::Fail(a) => step_in::fail(a, &api()?, out).await,
        Command::Succeed(a) => step_in::succeed(a, &api()?, out).await,
        Command::Skip(a) => deploy::with_hosts(a, "skip", &api()?, out).await,
        Command::Ignore(a) => deploy::with_hosts_and_reason(a, "ignore", &api()?, out).await,
        Command::Exclude(a) => deploy::with_hosts_and_reason(a, "exclude", &api()?, out).await,
        Command::Override(a) => deploy::with_hosts_and_reason(a, "override", &api()?, out).await,
        Command::Rollback(a) => step_in::rollback(a, &api()?, out).await,
        Command::Hold(c) => step_in::hold(c, &api()?, out).await,
        Command::Veto(a) => step_in::mark("veto", a, &api()?, out).await,
        Command::Unveto(a) => step_in::unmark("veto", a, &api()?, out).await,
        Command::Pin(a) => step_in::mark("pin", a, &api()?, out).await,
        Command::Unpin(a) => step_in::unmark("pin", a, &api()?, out).await,
        Command::Marks(a) => step_in::marks(&a, &api()?, out).await,
        Command::Hosts { command: None } => admin::hosts(&api()?, out).await,
        Command::Hosts { command: Some(HostsCommand::Lock { host, reason }) } => {
            admin::lock_host(&host, reason, &api()?, out).await
        }
        Command::Hosts { command: Some(HostsCommand::Unlock { host }) } => {
            admin::unlock_host(&host, &api()?, out).await
        }
        Command::Hosts { command: Some(HostsCommand::ScanKey(a)) } => ssh::scan_key(&a, api(), out).await,
        Command::Enroll(a) => admin::enroll(&a, &api()?, out).await,
        Command::Audit(c) => audit::run(c, api, out).await,
        Command::Token(c) => admin::token(&c, &api()?, out).await,
        Command::Person(c) => admin::person(&c, &api()?, out).await,
        Command::Secret(c) => admin::secret(&c, &api()?, out).await,
        Command::Triggers(a) => admin::triggers(&a, &api()?, out).await,
        Command::Queue => admin::queue(&api()?, out).await,
        Command::Notifications(c) => admin::notifications(&c, &api()?, out).await,
        Command::Doctor(a) => match a.command {
            Some(DoctorCommand::Run(a)) => diagnosis::run(a, &api()?, out).await,
            None => doctor::run(&a.state.state, connection, out).await,
        },
        Command::Promote(a) => ordered::promote(a, &api()?, out).await,
        Command::Bundle(c) => ordered::bundle(c, &api()?, out).await,
        Command::Flow(FlowCommand::Check(a)) => flow::check(&a, out),
        Command::Flow(FlowCommand::Schema) => flow::schema(out),
        Command::Flow(FlowCommand::History(a)) => ordered::history(&a, &api()?, out).await,
        Command::Flow(FlowCommand::Diff(a)) => ordered::diff(&a, &api()?, out).await,
        Command::Flow(FlowCommand::Revert(a)) => ordered::revert(&a, &api()?, out).await,
        Command::Source(c) => ordered::source(&c, &api()?, out).await,
        Command::Openapi => out.json(&api()?.get("/openapi.json").await?),
        Command::Up(_)
        | Command::Down(_)
        | Command::Init(_)
        | Command::Restored(_)
        | Command::Api(_)
        | Command::Scheduler(_)
        | Command::Executor(_)
        | Command::Notifier(_)
        | Command::Auditor(_)
        | Command::Completions { .. } => Err(Error::Usage("not a client command".into())),
    }
}
