//! Frames from the control plane: checked, then handed to `dispatch`.

use super::{Agent, AgentError, Retry, io_error};
use crate::{dispatch::Input, files};
use windlass_contracts::frames::{self, Down, DownBody, Offer, RefuseCode, UpBody};

impl Agent {
    pub(super) async fn down(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let frame: Down = match frames::open(bytes, &self.executor) {
            Ok(f) => f,
            Err(e) => {
                tracing::warn!(error = %e, "a frame is ignored");
                return Ok(());
            }
        };
        if frame.aud != self.identity.agent_id {
            tracing::warn!(aud = %frame.aud, "a frame for another agent is ignored");
            return Ok(());
        }
        let free = matches!(frame.body, DownBody::HelloAck { .. } | DownBody::Fence { .. } | DownBody::WhoAreYou);
        match &frame.instance {
            Some(i) if i != self.journal.instance() => {
                tracing::warn!(instance = i, "a frame for another instance is ignored");
                self.hello.get_or_insert(Retry::new(self.started.elapsed()));
                return Ok(());
            }
            None if !free => return Ok(()),
            _ => {}
        }
        match frame.body {
            DownBody::Offer(offer) => self.offer(offer).await,
            DownBody::Grant { task, nonce, epoch, lease_s, .. } => {
                let fresh_nonce = files::random_hex(16);
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
                }
                Ok(())
            }
            DownBody::WhoAreYou => {
                self.hello = Some(Retry::new(self.mono()));
                Ok(())
            }
        }
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
