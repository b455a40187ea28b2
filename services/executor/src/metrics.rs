//! What the executor counts.

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};
use windlass_runtime::Health;

#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Open tasks by state, as of the last poll.
    pub(crate) tasks: IntGaugeVec,
    pub(crate) settled: IntCounterVec,
    /// From the offer's commit to the agent's ACCEPT, and from there to its STARTED.
    pub(crate) dispatch: HistogramVec,
    pub(crate) claims: IntGaugeVec,
    pub(crate) takeovers: IntCounterVec,
    /// Frames that were not believed, by why.
    pub(crate) refused: IntCounterVec,
    pub(crate) frames: IntCounterVec,
    pub(crate) log_bytes: IntCounterVec,
    pub(crate) agents: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn new(health: &Health) -> Metrics {
        Metrics {
            tasks: health.gauge("windlass_tasks_open", "Open tasks by state", &["state"]),
            settled: health.counter("windlass_tasks_settled_total", "Tasks that reached a settled state", &["state"]),
            dispatch: health.histogram(
                "windlass_dispatch_seconds",
                "Time a task spent in a phase of dispatch",
                &["phase"],
            ),
            claims: health.gauge("windlass_work_claims", "Works this executor drives", &["kind"]),
            takeovers: health.counter(
                "windlass_work_takeovers_total",
                "Works taken over from another executor",
                &["kind"],
            ),
            refused: health.counter("windlass_agent_frames_refused_total", "Frames of agents not believed", &["why"]),
            frames: health.counter("windlass_agent_frames_total", "Frames of agents taken", &["kind"]),
            log_bytes: health.counter("windlass_log_bytes_total", "Log bytes stored", &["what"]),
            agents: health.gauge("windlass_agents", "Enrolled agents by how long ago they were heard", &["state"]),
        }
    }
}
