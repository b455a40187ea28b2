//! Frames from the control plane: checked, then handed to `dispatch`.

use super::{Agent, AgentError, Retry, io_error};
use crate::{dispatch::Input, files};
use windlass_contracts::frames::{
    self, Down, DownBody, MAX_CHALLENGE, NotTaken, Offer, RefuseCode, SealedSecrets, UpBody,
};
use windlass_domain::ids::TaskId;

impl Agent {
    pub(super) async fn down(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let (me, instance) = (self.identity.agent_id, self.journal.instance());
        let frame: Down = match frames::open_down(bytes, &self.executor, me, instance) {
            Ok(f) => f,
            Err(e) => {
                tracing::warn!(error = %e, "a frame is ignored");
                if matches!(e, NotTaken::OtherInstance(Some(_))) {
                    self.hello.get_or_insert(Retry::new(self.started.elapsed()));
                }
                return Ok(());
            }
        };
        match frame.body {
            DownBody::Offer(offer) => self.offer(offer).await,
            DownBody::Grant { task, nonce, epoch, lease_s, secrets } => {
                let fresh_nonce = files::random_hex(16);
                // A grant without the secrets the task needs counts as one of another ACCEPT: it starts nothing, and the
                // answer is the ACCEPT, with its key.
                let nonce = if self.unseal(task, &nonce, secrets.as_ref()) { nonce } else { String::new() };
                self.input(Input::Grant { task, nonce, epoch, lease_s, fresh_nonce }).await
            }
            DownBody::Fence { task, work, epoch } => self.input(Input::Fence { task, work, epoch }).await,
            DownBody::ResultAck { task } => self.input(Input::ResultAck { task }).await,
            DownBody::LogAck { task, seq, window } => {
                let now = self.mono();
                if let Some(l) = self.live.get_mut(&task) {
                    l.log.acked(seq, window, now);
                }
                Ok(())
            }
            DownBody::HelloAck { instance } => {
                if instance == self.journal.instance() {
                    self.hello = None;
                    self.asked.clear();
                }
                Ok(())
            }
            DownBody::WhoAreYou { challenge } => {
                // One who asks without a challenge does not take back another's.
                if let Some(c) = challenge.filter(|c| c.len() <= MAX_CHALLENGE) {
                    self.asked = c;
                }
                self.hello = Some(Retry::new(self.mono()));
                Ok(())
            }
        }
    }

    /// Takes the secrets of a grant; `false` when the task needs others, or other ones.
    fn unseal(&mut self, task: TaskId, nonce: &str, sealed: Option<&SealedSecrets>) -> bool {
        if !self.dispatch.is_accepted(task) {
            return true;
        }
        let names = self.dispatch.spec(task).map(crate::secrets::names).unwrap_or_default();
        if names.is_empty() {
            return true;
        }
        let opened = match sealed {
            None => return false,
            Some(s) => self.keyring.open(task, nonce, s, &names),
        };
        if let Err(error) = &opened {
            tracing::warn!(%task, %error, "a grant brought no secrets that open");
        }
        opened.is_ok()
    }

    pub(super) async fn offer(&mut self, offer: Box<Offer>) -> Result<(), AgentError> {
        if !self.dispatch.knows(offer.task) {
            let free = files::free_bytes(&self.state).map_err(io_error("ask for the free space of", &self.state))?;
            if free < self.settings.reserve_bytes {
                let detail = format!(
                    "{free} bytes are free in {}, the agent keeps {} in reserve; free some space",
                    self.state.display(),
                    self.settings.reserve_bytes
                );
                let code = RefuseCode::NoResources;
                self.link.send(UpBody::Refuse { task: offer.task, code, detail }).await;
                return Ok(());
            }
        }
        self.input(Input::Offer { offer, nonce: files::random_hex(16) }).await
    }
}
