//! Plugins that are programs: one run per request, only ever of a file with the digest that the release froze.

use super::wire::{Answer, Request, Silence};
use crate::{
    program::{End, MAX_OUTPUT, PrivateDir, Program},
    shared::Shared,
    steplog::StepLog,
};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Asks the program at `path` below the plugins directory.
pub(super) async fn ask(
    shared: &Shared,
    path: &str,
    digest: &str,
    request: &Request<'_>,
    log: &StepLog,
    halt: impl Future<Output = ()>,
) -> Result<Answer, Silence> {
    let never = |reason: String| Silence::NotAsked { reason, soon: false };
    let settings = &shared.ctx.settings;
    let Some(plugins) = &settings.executor.plugins_dir else {
        return Err(never(
            "this executor runs no plugin programs: set `executor.plugins_dir` to where they are".into(),
        ));
    };
    let input = serde_json::to_string(request).map_err(|e| never(format!("the request cannot be written: {e}")))?;
    let dir = PrivateDir::new(&settings.state_dir).map_err(|e| never(format!("no private directory: {e}")))?;
    let from = plugins.join(path);
    // The copy is what is checked and what is run: nobody but this account can change it in between.
    let program = dir.copy(&from, "plugin").await.map_err(|e| never(format!("cannot read {}: {e}", from.display())))?;
    let found = digest_of(&program).await.map_err(|e| never(format!("cannot read {}: {e}", from.display())))?;
    if found != digest {
        let text = format!(
            "the program {path} has digest {found}, but the release was made with {digest}: put the right file back, or apply \
             a new version of the plugin and make a new release"
        );
        return Err(never(text));
    }
    let program = Program { program, args: vec![], env: vec![], dir: &dir, input, log_output: false };
    let ran = program.run(log, halt).await.map_err(|e| never(format!("cannot be started: {e}")))?;
    if ran.output.len() > MAX_OUTPUT {
        return Err(Silence::Broke(format!("its answer is larger than {MAX_OUTPUT} bytes")));
    }
    match (ran.end, Answer::read(&ran.output)) {
        (End::Stopped, _) => Err(Silence::Halted),
        (_, Ok(answer)) => Ok(answer),
        (End::Exited(0), Err(why)) => Err(Silence::Broke(why)),
        (End::Exited(code), Err(why)) => Err(Silence::Broke(format!("it ended with code {code}; {why}"))),
        (End::Killed, Err(why)) => Err(Silence::Broke(format!("it was killed; {why}"))),
    }
}

async fn digest_of(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    crate::central::digest_file(path, &mut hash).await?;
    Ok(format!("sha256:{}", hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>()))
}
