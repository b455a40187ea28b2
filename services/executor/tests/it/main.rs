//! The executor against real databases, a real NATS server, and agents that follow a script.

mod agent;
mod ansible;
mod central;
mod gate;
mod hold;
mod hostile;
mod logs;
mod plugins;
mod probes;
mod replay;
mod rogue;
mod secrets;
mod stagger;
mod tampered;
mod traffic;
mod waves;
mod world;
