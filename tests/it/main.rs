//! Integration tests: one binary, a module for each subject.

// A test may panic.
#![allow(clippy::unwrap_used)]

mod config;
mod engine_faults;
mod engine_property;
mod engine_threads;
mod engine_trace;
mod http;
mod text;
mod text_stop;
