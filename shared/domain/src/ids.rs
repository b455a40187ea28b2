//! Typed identifiers. All are UUID version 7 (time-ordered) unless said otherwise; the caller mints them, because the
//! core has no clock and no randomness.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { self.0.fmt(f) }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{}({})", stringify!($name), self.0) }
        }
        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> { Uuid::parse_str(s).map($name) }
        }
        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self { $name(id) }
        }
        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid { id.0 }
        }
    )+};
}

id! {
    /// An immutable built thing.
    ArtifactId,
    /// A versioned decision to ship an artifact.
    ReleaseId,
    /// One application of a release to one environment.
    DeploymentId,
    /// A wave or central step handed to the executors.
    WorkId,
    /// One attempt of an ordered list of host-local steps on one host.
    TaskId,
    /// One state change, as published and audited.
    EventId,
    /// One accepted request.
    CommandId,
    /// Several releases as one.
    BundleId,
    /// The identity an agent got when it was enrolled; never reused.
    AgentId,
    /// One message to one channel; the dedupe key the far side sees.
    NotificationId,
    /// A bearer token's public half.
    TokenId,
}
