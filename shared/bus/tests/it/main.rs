//! Tests against a real nats-server and both databases.

mod consuming;
mod embedded;
mod identities;
mod reconciling;
mod relaying;
mod support;
