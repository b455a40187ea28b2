//! What crosses a process boundary, as plain serde types: the event envelope, subjects, agent frames, HTTP bodies.
//! Shapes only ever grow; `tests/golden.rs` holds bytes of every version that was ever sent and proves they still read.

pub mod audit;
pub mod bundles;
pub mod command;
pub mod envelope;
pub mod frames;
pub mod http;
pub mod preview;
pub mod sealed;
pub mod stdio;
pub mod subjects;
