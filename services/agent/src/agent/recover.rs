//! What became of a task: read from its directory, after a restart and when its runner has ended.

use super::{Agent, AgentError, Retry, io_error};
use crate::{
    dispatch::{Found, Input, empty_report},
    logs::LogStream,
    taskdir::{StepLine, TaskDir},
};
use windlass_domain::{
    ids::TaskId,
    task::{ReportedOutcome, TaskReport},
};

impl Agent {
    /// After a start: what became of the tasks that an earlier process had started, and logs still on their way.
    pub(super) async fn recover(&mut self) -> Result<(), AgentError> {
        for (task, boot) in self.dispatch.running() {
            let found = self.look(task, boot == self.boot_id)?;
            tracing::info!(%task, ?found, "found a task of an earlier agent process");
            self.input(Input::Looked { task, found }).await?;
        }
        for (task, _) in self.dispatch.unacked() {
            self.results.insert(task, Retry::new(self.mono()));
        }
        let tasks = self.state.join("tasks");
        let Ok(dir) = std::fs::read_dir(&tasks) else { return Ok(()) };
        for task in dir.flatten().filter_map(|e| e.file_name().to_string_lossy().parse::<TaskId>().ok()) {
            if self.live.contains_key(&task) {
                continue;
            }
            match self.dispatch.report(task).map(|r| r.log_frames) {
                Some(frames) => self.watch_log(task, Some(frames))?,
                None if !self.dispatch.knows(task) => {
                    TaskDir::of(&self.state, task).remove().map_err(io_error("remove", &tasks))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// What the task's directory says. Nothing is guessed: without proof of either it is Gone.
    pub(super) fn look(&self, task: TaskId, same_boot: bool) -> Result<Found, AgentError> {
        let dir = TaskDir::of(&self.state, task);
        // Not to know whether it lives is no reason to say that it does not: the agent ends and its supervisor tries again.
        let alive = dir.is_locked().map_err(io_error("look at the runner's lock in", dir.path()))?;
        if alive {
            return Ok(Found::Alive);
        }
        match dir.exit() {
            Ok(Some(report)) => return Ok(Found::Exit(Box::new(self.completed(task, &dir, report)))),
            Ok(None) => {}
            Err(e) => tracing::error!(%task, error = %e, "the runner's report cannot be read"),
        }
        if same_boot && dir.path().is_dir() && !dir.has_begun() {
            return Ok(Found::NotBegun);
        }
        let said = std::fs::read_to_string(dir.path().join("runner.err")).unwrap_or_default();
        tracing::warn!(%task, same_boot, runner = said.trim_end(), "a runner is gone without a report");
        let mut report = empty_report(ReportedOutcome::Interrupted);
        let lines = dir.read_steps(&mut 0).unwrap_or_default();
        report.steps.extend(lines.into_iter().filter_map(|l| match l {
            StepLine::End(r) => Some(r),
            StepLine::Begin { .. } => None,
        }));
        Ok(Found::Gone(Box::new(self.completed(task, &dir, report))))
    }

    /// With the counters of the log as it will be sent.
    pub(super) fn completed(&self, task: TaskId, dir: &TaskDir, mut report: TaskReport) -> TaskReport {
        let totals = match self.live.get(&task) {
            Some(l) => l.log.totals(),
            None => LogStream::open(task, dir.clone(), self.mono()).and_then(|l| l.totals()),
        };
        match totals {
            Ok(t) => {
                report.log_bytes = report.log_bytes.max(t.seen);
                report.log_dropped = t.dropped + (report.log_bytes - t.seen);
                report.log_frames = t.frames;
            }
            Err(e) => tracing::error!(%task, error = %e, "the task's log cannot be read"),
        }
        report
    }
}
