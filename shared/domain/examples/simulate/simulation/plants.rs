//! Safeguards that can be taken out, to see that the simulator notices.

/// One safeguard each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A deployment is saved whatever version was read.
    NoVersionCheck,
    /// The lock is taken whoever holds it, and no index stands behind it.
    NoLock,
    /// The lock is freed though hosts are unknown.
    LockFreedWithUnknown,
    /// An executor writes though another took its work over.
    NoEpochCheck,
    /// Grants do not look at what is wanted of the work.
    AbortNotSeen,
    HoldNotSeen,
    StopNotSeen,
    /// An override does not look whether the host has spoken, nor what a host says whether it was overridden.
    OverrideInTheDark,
    /// A silent host counts as never started.
    SilenceIsNotStarted,
    /// What any journal of a host says is believed.
    AnyInstance,
    /// The agent starts before it writes down that it will.
    NoIntent,
    /// The agent takes any nonce.
    AnyNonce,
    /// The agent starts an attempt beside an older one.
    OlderAttemptsRunOn,
    /// A request that is repeated is stored anew.
    NoIdempotency,
    /// A consumer takes its row off before its effect.
    RowBeforeEffect,
    /// Nobody polls: doorbells are all there is.
    NoPolling,
    /// Failures do not count against the budget of a work.
    NoBudget,
}
use Plant::*;

impl Plant {
    pub(crate) const ALL: [Plant; 17] = [
        NoVersionCheck,
        NoLock,
        LockFreedWithUnknown,
        NoEpochCheck,
        AbortNotSeen,
        HoldNotSeen,
        StopNotSeen,
        OverrideInTheDark,
        SilenceIsNotStarted,
        AnyInstance,
        NoIntent,
        AnyNonce,
        OlderAttemptsRunOn,
        NoIdempotency,
        RowBeforeEffect,
        NoPolling,
        NoBudget,
    ];

    pub(crate) fn of(name: &str) -> Option<Plant> {
        Plant::ALL.into_iter().find(|p| format!("{p:?}") == name)
    }
}
