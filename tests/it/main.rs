//! End to end, on real servers: the journeys, crashes, races, bad input, and the rules of the house that run as tests.

mod audit;
mod broker;
mod browser;
mod bundle;
mod crash;
mod first;
mod graph;
mod hostile;
mod interventions;
mod jobs;
mod journey;
mod lab;
mod library;
mod package;
mod plugins;
mod probes;
mod race;
mod reopen;
mod rogue;
mod rollout;
mod secrets;
mod ssh;
mod targets;
mod tidy;
mod traffic;
mod world;
