//! The executor against real databases, a real NATS server, and agents that follow a script.

mod agent;
mod ansible;
mod central;
mod gate;
mod hostile;
mod logs;
mod plugins;
mod secrets;
mod waves;
mod world;
