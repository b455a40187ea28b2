//! The api against real databases and a real broker. No scheduler runs: where an outcome is needed, the test writes it.

mod catalog;
mod fleet;
mod hooks;
mod hostile;
mod matrix;
mod races;
mod streams;
mod world;
