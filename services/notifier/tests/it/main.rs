//! The notifier against real far ends: local HTTP and SMTP servers, both databases, and NATS.

mod failures;
mod guard;
mod http;
mod mail;
mod providers;
mod races;
mod service;
mod smtp;
mod world;
