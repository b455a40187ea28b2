//! NATS: the connection, the topology, doorbells, the ONE consumer loop, the reconciler's wake-ups, the relay, and the
//! identities of the server's accounts and users. Messages wake; the database decides.

pub mod connect;
pub mod consume;
pub mod context;
pub mod doorbell;
pub mod identity;
mod jwt;
pub mod permissions;
pub mod relay;
pub mod server;
pub mod topology;
pub mod wake;

pub use connect::{BusOptions, ConnectError, LinkState};
pub use consume::{ConsumerSpec, Outcome, consume};
pub use context::{Context, ContextError};
pub use doorbell::{Bus, Message, Subscription};
pub use identity::{Identities, IdentityError};
pub use relay::relay;
pub use server::{EmbeddedServer, ServerError, ServerOptions};
pub use topology::TopologyError;
pub use wake::{Wake, run_reconciler};
