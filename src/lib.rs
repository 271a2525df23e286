//! `lima`: an inference server for LLaMA models, from weights to an OpenAI-compatible endpoint.
//!
//! The order of dependencies is `bin → http → engine → (Executor) ← runner → model → ops`; see
//! ARCHITECTURE.md.

pub mod chat;
pub mod config;
pub mod engine;
pub mod eval;
pub mod http;
pub mod hub;
pub mod model;
pub mod ops;
pub mod parallel;
pub mod plan;
pub mod plot;
pub mod runner;
pub mod serve;
pub mod text;
pub mod train;
pub mod units;
