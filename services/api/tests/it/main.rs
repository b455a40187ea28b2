//! The api against real databases and a real broker. No scheduler runs: where an outcome is needed, the test writes it.

mod catalog;
mod fleet;
mod hooks;
mod hostile;
mod matrix;
mod ordered;
mod plans;
mod plugins;
mod races;
mod secrets;
mod sources;
mod streams;
mod world;
