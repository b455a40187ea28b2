//! Probes: the looks at a wave while it bakes.

use crate::{error::Stop, shared::Shared};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_domain::work::ProbeWork;
use windlass_store::works::Claim;

/// Looks until a probe fails, the time is over, the work is aborted, or the claim is lost.
pub(crate) async fn drive(
    shared: Arc<Shared>,
    claim: Claim,
    probe: ProbeWork,
    bell: Arc<Notify>,
    stop: CancellationToken,
) -> Result<(), Stop> {
    let _ = (shared, claim, probe, bell);
    stop.cancelled().await;
    Err(Stop::Shutdown)
}
