//! Integration tests, one binary: each more would link the world again.

// A test may panic.
#![allow(clippy::unwrap_used)]

mod allocation;
mod architecture;
mod chat;
mod config;
mod constraints;
mod cpu;
mod determinism;
mod e2e;
mod engine_constraints;
mod engine_counts;
mod engine_faults;
mod engine_property;
mod engine_threads;
mod engine_trace;
mod eval;
mod fairness;
mod families;
mod formats;
mod goldens;
mod graph;
mod http;
mod kernels;
mod load;
mod load_tool;
mod lora;
mod plan;
mod sampler;
mod sampler_goldens;
mod sampler_statistics;
mod scores;
mod speculation;
mod support;
mod tensor_parallel;
mod text;
mod text_corpus;
mod text_stop;
mod train;
