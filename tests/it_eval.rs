//! local
#![allow(clippy::unwrap_used)]
#[path = "it/eval/mod.rs"]
mod eval;
#[path = "it/architecture.rs"]
mod architecture;
