//! What the agent says by itself: HELLO, heartbeats, results and logs, each until it is acknowledged.

use super::{Agent, AgentError, io_error};
use crate::{dispatch::Input, facts};
use std::time::Duration;
use windlass_contracts::frames::{Hello, UpBody};

const HEARTBEAT: Duration = Duration::from_secs(5);
/// A log nobody acknowledges is given up this long after its result was.
const LOG_PATIENCE: Duration = Duration::from_secs(3600);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

impl Agent {
    /// Sends what is due and says how long nothing will be.
    pub(super) async fn tick(&mut self) -> Result<Duration, AgentError> {
        let now = self.mono();
        if now >= self.expire_at {
            self.expire_at = now + EXPIRE_EVERY;
            self.input(Input::Expire).await?;
        }
        if !self.link.is_up() {
            return Ok(Duration::from_millis(500));
        }
        if self.hello.as_mut().is_some_and(|h| h.due(now)) {
            let hello = Hello {
                boot_id: self.boot_id.clone(),
                journal_seq: self.journal.seq(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                open: self.dispatch.open(),
                facts: facts::facts(Some(&self.root)),
                answers: Some(self.asked.clone()),
            };
            self.link.send(UpBody::Hello(hello)).await;
        }
        if now >= self.beat_at {
            self.beat_at = now + HEARTBEAT.mul_f64(rand::random_range(0.8..1.2));
            let running = self.dispatch.running().into_iter().map(|(t, _)| t).collect();
            self.link
                .send(UpBody::Heartbeat {
                    journal_seq: self.journal.seq(),
                    running,
                    current: facts::current(&self.root),
                })
                .await;
        }
        let mut next = self.beat_at.min(self.hello.as_ref().map_or(Duration::MAX, |h| h.at));
        for (task, retry) in &mut self.results {
            if retry.due(now)
                && let Some(report) = self.dispatch.report(*task)
            {
                self.link.send(UpBody::Result { task: *task, report: report.clone() }).await;
            }
            next = next.min(retry.at);
        }
        let mut gone = Vec::new();
        for (task, l) in &mut self.live {
            let due = l.log.due(now, l.frames.is_some()).map_err(io_error("read the log of", l.dir.path()))?;
            for body in due.bodies() {
                self.link.send(body).await;
            }
            next = next.min(l.log.next_retry().unwrap_or(Duration::MAX));
            let settled = self.dispatch.is_settled(*task);
            let since = *l.settled_at.get_or_insert(now);
            if !settled {
                l.settled_at = None;
            } else if l.frames.is_some_and(|n| l.log.is_done(n)) || now.saturating_sub(since) > LOG_PATIENCE {
                gone.push(*task);
            }
        }
        for task in gone {
            if let Some(l) = self.live.remove(&task)
                && let Err(e) = l.dir.remove()
            {
                tracing::warn!(%task, error = %e, "the task's directory cannot be removed");
            }
        }
        Ok(next.saturating_sub(self.mono()).max(Duration::from_millis(1)))
    }
}
