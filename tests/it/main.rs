//! Integration tests, one binary: each more would link the world again.

// A test may panic.
#![allow(clippy::unwrap_used)]

mod cpu;
mod goldens;
mod graph;
mod load;
mod sampler;
mod support;
