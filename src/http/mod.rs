//! The OpenAI-compatible API over HTTP: wire types become validated requests, events of the engine
//! become responses, and every refusal is the same error object.

pub mod adapters;
mod anthropic;
mod auth;
mod body;
mod chat;
mod choice;
mod common;
mod completions;
mod embeddings;
pub mod error;
mod fields;
mod generation;
mod intake;
mod listener;
mod messages;
pub mod metrics;
mod models;
mod pieces;
mod prepare;
mod probes;
mod prompts;
pub mod request;
mod responses;
mod router;
mod server;
pub mod state;
mod stream;
mod structured;
mod target;
mod template;
mod tokenize;
mod tools;
mod translation;
mod vocabulary;
mod wire;

pub use adapters::{AdapterLoader, Adapters};
pub use auth::Auth;
pub use common::Sampling;
pub use error::ApiError;
pub use router::router;
pub use server::serve;
pub use state::{App, Limits, LoadProgress, ModelParts, ServedModel};
pub use tools::ToolFormat;
