//! Tests against a real nats-server and both databases.

mod consuming;
mod embedded;
mod identities;
mod permissions;
mod reconciling;
mod relaying;
mod support;
mod tls;
