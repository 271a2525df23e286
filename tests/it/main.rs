//! Integration tests, one binary: each more would link the world again.

mod cpu;
mod goldens;
mod graph;
mod load;
mod sampler;
mod support;
