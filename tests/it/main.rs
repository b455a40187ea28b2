//! End to end, on real servers: the journeys, crashes, races, bad input, and the rules of the house that run as tests.

mod audit;
mod browser;
mod bundle;
mod crash;
mod graph;
mod hostile;
mod journey;
mod library;
mod package;
mod plugins;
mod race;
mod secrets;
mod ssh;
mod targets;
mod tidy;
mod world;
