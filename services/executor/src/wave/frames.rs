//! The frames a wave sends: once when a transaction has committed, then again from state, with growing pauses, until the next
//! state is reached.

use super::Wave;
use crate::{directory::QUARANTINE, dispatch::Frame};
use tokio::time::{Duration, Instant};
use windlass_bus::wake::Backoff;
use windlass_contracts::frames::{DownBody, GRANT_LEASE_S, Offer};
use windlass_domain::{ids::TaskId, task::TaskState, work::Desired};
use windlass_store::tasks::StoredTask;

/// When a task's frame is due again.
#[derive(Debug)]
pub(super) struct Timer {
    frame: Frame,
    pub(super) at: Instant,
    pub(super) pause: Backoff,
}

impl Wave {
    /// The frame a task waits for the answer of.
    fn wanted(&self, row: &StoredTask) -> Option<Frame> {
        let t = &row.task;
        match (t.state, self.desired) {
            (TaskState::Granted | TaskState::Unknown, Desired::Abort) => Some(Frame::Fence),
            (TaskState::Granted | TaskState::Unknown, _) if t.stop.is_some() => Some(Frame::Fence),
            // In a pause nothing that waits is helped on its way, not even a grant that got lost.
            (TaskState::Offered, Desired::Run) => Some(Frame::Offer),
            (TaskState::Granted, Desired::Run) if t.started_at.is_none() && t.steps.is_empty() => Some(Frame::Grant),
            _ => None,
        }
    }

    /// `at_once`: nothing was sent for this state yet.
    pub(super) fn set_timer(&mut self, id: TaskId, at_once: bool) {
        let wanted = self.board.tasks.get(&id).and_then(|row| self.wanted(row));
        match (wanted, self.timers.get(&id)) {
            (None, _) => drop(self.timers.remove(&id)),
            (Some(frame), Some(t)) if t.frame == frame => {}
            (Some(frame), _) => {
                let s = &self.shared.ctx.settings.executor;
                let mut pause = Backoff::new(s.resend_first_s.get(), s.resend_max_s.get());
                let at = Instant::now() + if at_once { Duration::ZERO } else { pause.next() };
                self.timers.insert(id, Timer { frame, at, pause });
            }
        }
    }

    pub(super) async fn send_due(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for (id, t) in &mut self.timers {
            if t.at <= now {
                t.at = now + t.pause.next();
                due.push((*id, t.frame));
            }
        }
        for (id, frame) in due {
            self.send(id, frame).await;
        }
    }

    pub(super) async fn send(&self, id: TaskId, frame: Frame) {
        let Some(row) = self.board.tasks.get(&id) else { return };
        let t = &row.task;
        let Some(agent) = t.agent else { return };
        self.shared.ssh.ask(&t.host);
        let seen = self.shared.directory.seen(agent);
        let session = seen.filter(|s| !s.instance.starts_with(QUARANTINE)).map(|s| s.instance);
        match frame {
            Frame::Offer => match session {
                Some(instance) => self.offer(row, instance).await,
                None => self.shared.send(agent, None, DownBody::WhoAreYou { challenge: None }).await,
            },
            Frame::Grant => {
                let Some(g) = t.granted.clone() else { return };
                // An agent takes a grant only soon after its ACCEPT; the offer, repeated, makes it accept again.
                let stale =
                    t.granted_at.is_some_and(|at| (chrono::Utc::now() - at).num_seconds() >= i64::from(GRANT_LEASE_S));
                if stale {
                    self.offer(row, g.instance.clone()).await;
                }
                let secrets = self.grants.sealed(id, &g.nonce).cloned();
                if secrets.is_none() && !self.needs(&t.host).is_empty() {
                    // Another executor sealed them: the agent says ACCEPT again, with the key they are to be sealed to.
                    if !stale {
                        self.offer(row, g.instance).await;
                    }
                    return;
                }
                let body = DownBody::Grant {
                    secrets,
                    task: id,
                    nonce: g.nonce,
                    epoch: self.lease.epoch,
                    lease_s: GRANT_LEASE_S,
                };
                self.shared.send(agent, Some(g.instance), body).await;
            }
            Frame::Fence => {
                let body = DownBody::Fence { task: id, work: self.claim.work.id, epoch: self.lease.epoch };
                self.shared.send(agent, None, body).await;
            }
            Frame::ResultAck => self.shared.send(agent, session, DownBody::ResultAck { task: id }).await,
        }
    }

    async fn offer(&self, row: &StoredTask, instance: String) {
        let (Ok(view), Some(agent)) = (&self.plan, row.task.agent) else { return };
        let Some(made) = self.made(view, &row.task.host) else { return };
        let (spec, proof) = (*made).clone();
        let timeout = self.shared.ctx.settings.executor.offer_timeout_s.get();
        let work = &self.claim.work;
        let offer = Offer {
            outputs: self.outputs(&row.task.host),
            task: row.task.id,
            work: work.id,
            deployment: work.deployment,
            attempt: row.task.attempt,
            epoch: self.lease.epoch,
            fence: work.fence,
            start_at: row.task.start_at,
            spec,
            proof,
            approvals: view.approvals.clone(),
            not_after: self.offered_since(&row.task) + timeout,
            trace: self.trace.clone(),
        };
        self.shared.send(agent, Some(instance), DownBody::Offer(Box::new(offer))).await;
    }
}
