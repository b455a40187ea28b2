//! From the catalog and the secrets to where a connection goes, afresh for each connection.

use super::{Fault, connect::Target};
use crate::shared::Shared;
use russh::keys::{PrivateKey, PublicKey, decode_secret_key};
use std::sync::Arc;
use windlass_domain::catalog::{Host, Ssh};
use windlass_store::secrets;

/// More hosts than this in a row are a mistake.
const MAX_JUMPS: usize = 4;

pub(super) async fn target(shared: &Shared, host: &Host) -> Result<Target, Fault> {
    let mut way: Vec<Arc<Host>> = vec![Arc::new(host.clone())];
    while let Some(name) = way.last().and_then(|h| h.ssh.as_ref()).and_then(|s| s.jump.clone()) {
        let known = shared.ssh.host(&name).filter(|_| way.len() <= MAX_JUMPS && way.iter().all(|h| h.name != name));
        way.push(known.ok_or(Fault::NoJump { jump: name })?);
    }
    let mut through = None;
    for h in way.iter().rev() {
        let Some(ssh) = h.ssh.as_deref() else { return Err(Fault::NoJump { jump: h.name.clone() }) };
        if let Some(why) = shared.ssh.no_account(&h.name) {
            return Err(Fault::NoAccount { host: h.name.clone(), why });
        }
        through = Some(Box::new(Target {
            host: h.name.clone(),
            address: ssh.address.clone().unwrap_or_else(|| h.address.clone()),
            port: ssh.port,
            account: ssh.account.clone(),
            key: Arc::new(private_key(shared, &h.name, ssh).await?),
            pinned: pinned(&h.name, &ssh.host_key)?,
            jump: through.take(),
        }));
    }
    through.map(|t| *t).ok_or_else(|| Fault::NoJump { jump: host.name.clone() })
}

async fn private_key(shared: &Shared, host: &str, ssh: &Ssh) -> Result<PrivateKey, Fault> {
    let Some(name) = &ssh.key else { return Err(Fault::NoKey { host: host.to_owned(), name: "key".into() }) };
    let mut tx = shared.ctx.store.read().await?;
    for scope in ssh.key_scopes(host) {
        let Some(sealed) = secrets::sealed(&mut tx, &scope, name).await? else { continue };
        let open = shared.ctx.sealer.open(&scope, name, &sealed);
        let text = open.map_err(|source| Fault::Sealed { name: name.clone(), source })?;
        let bad = || Fault::BadKey { name: name.clone() };
        let text = String::from_utf8(text).map_err(|_| bad())?;
        return decode_secret_key(&text, None).map_err(|_| bad());
    }
    Err(Fault::NoKey { host: host.to_owned(), name: name.clone() })
}

fn pinned(host: &str, text: &str) -> Result<Vec<PublicKey>, Fault> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines
        .map(|l| {
            PublicKey::from_openssh(l)
                .map_err(|_| Fault::BadPin { host: host.to_owned(), line: l.chars().take(60).collect() })
        })
        .collect()
}
