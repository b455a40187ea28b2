//! The executor against real databases, a real NATS server, and agents that follow a script.

mod agent;
mod central;
mod hostile;
mod logs;
mod waves;
mod world;
