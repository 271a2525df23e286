//! Models from files: formats, refusals, damage, and pulling.

// A test may panic.
#![allow(clippy::unwrap_used)]

mod damage;
mod formats;
mod hub;
mod hub_server;
mod pull;
mod refusals;
mod writer;
