//! The api against real databases and a real broker. No scheduler runs: where an outcome is needed, the test writes it.

mod catalog;
mod diagnosis;
mod fleet;
mod full;
mod held;
mod hooks;
mod hostile;
mod injection;
mod matrix;
mod ordered;
mod plans;
mod plugins;
mod races;
mod revoked;
mod secrets;
mod sources;
mod stepping;
mod streams;
mod thief;
mod world;
