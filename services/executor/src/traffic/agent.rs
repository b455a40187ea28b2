//! Load balancers on a host with an agent: nginx and commands. What is done for one member in one direction is a task of
//! its own on that host, a leaf of the plan like any other.

use super::{Fault, Job, TELL, Way};
use crate::{
    error::Stop,
    wave::side::{self, Heeds, Side},
};
use windlass_domain::{
    plan::segment,
    task::{ReportedOutcome, StepOutcome},
    traffic::PlanTraffic,
};

impl Job {
    /// Its end, or why it never began; `Err` when this executor has nothing more to say about the work.
    pub(super) async fn on_agent(&self, lb: u32, t: &PlanTraffic, way: Way) -> Result<Result<(), Fault>, Stop> {
        let segment = segment::traffic(lb, self.host, way == Way::Attach);
        let (Some(on), Some(segment)) = (segment::agent_host(&t.kind), segment) else {
            return Ok(Err(Fault::Refused("the plan has no task for it".into())));
        };
        let side = Side {
            step: self.step.clone(),
            segment,
            hosts: vec![on.to_owned()],
            outputs: serde_json::Map::new(),
            heeds: match way {
                Way::Drain => Heeds::Work,
                // Clean-up: neither a pause nor an abort keeps a host off.
                Way::Attach => Heeds::Nothing,
            },
        };
        let work = async {
            // Those ahead of us have their own deadlines, so the wait for a place has one.
            let _place = match way {
                Way::Drain => self.shared.turns.drain_on(on).await,
                Way::Attach => None,
            };
            side::one(&self.shared, &self.claim, &self.plan, side).await
        };
        tokio::pin!(work);
        let ended = loop {
            tokio::select! {
                ended = &mut work => break ended?,
                () = tokio::time::sleep(TELL) => {
                    self.says.waits(&format!("the task of load balancer `{}` on host {on}", t.name));
                }
            }
        };
        let report = match ended {
            Ok(report) => report,
            Err(why) => return Ok(Err(Fault::Broken(format!("on host {on}: {why}")))),
        };
        if report.outcome == ReportedOutcome::Succeeded {
            return Ok(Ok(()));
        }
        let failed = report.steps.iter().find(|s| s.outcome != StepOutcome::Succeeded);
        let why = failed.map(|s| s.message.clone()).filter(|m| !m.is_empty()).unwrap_or_else(|| "it failed".into());
        Ok(Err(Fault::Refused(format!("on host {on}: {why}"))))
    }
}
