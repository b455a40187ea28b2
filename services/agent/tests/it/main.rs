//! The agent as hosts run it: the real binary, real processes, a real NATS server, and a scripted control plane.

mod approvals;
mod archives;
mod archives_many;
mod control;
mod frames;
mod injection;
mod lb;
mod life;
mod steps;
mod stop;
