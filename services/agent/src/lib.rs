//! `windlass-agent`: does the work on one host.
//!
//! The agent process speaks to the control plane, decides (`dispatch`) and keeps its promises (`journal`). A runner process
//! a task does the work (`runner`, `actions`) and outlives the agent. They meet in the task's directory (`taskdir`).

pub mod actions;
pub mod agent;
pub mod dispatch;
pub mod enroll;
pub mod facts;
pub mod files;
pub mod identity;
pub mod journal;
mod link;
pub mod logs;
pub mod runner;
mod secrets;
pub mod settings;
pub mod spool;
pub mod stdio;
pub mod taskdir;
