//! The pure core of Windlass: the words of the model and the functions that decide.
//!
//! Nothing here knows a database, a broker, a clock or randomness: time and ids come in as arguments, decisions go
//! out as values. Production, property tests and model checks drive the same functions.

pub mod access;
pub mod approval;
pub mod artifact;
pub mod bundle;
pub mod catalog;
pub mod deployment;
pub mod diagnosis;
pub mod event;
pub mod expression;
pub mod flow;
pub mod ids;
pub mod mask;
pub mod merkle;
pub mod naming;
pub mod plan;
pub mod platform;
pub mod plugin;
pub mod promotion;
pub mod reference;
pub mod release;
pub mod secret;
pub mod selector;
pub mod span;
pub mod targets;
pub mod task;
pub mod traffic;
pub mod values;
pub mod wave;
pub mod work;
mod yaml;

/// Points in time are UTC everywhere; zones exist only where a person reads or writes a schedule.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
