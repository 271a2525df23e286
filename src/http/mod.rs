//! The OpenAI-compatible API over HTTP: wire types become validated requests, events of the engine
//! become responses, and every refusal is the same error object.

pub mod adapters;
mod auth;
mod body;
mod caller;
mod chat;
mod choice;
mod common;
mod completions;
mod connections;
mod drain;
mod embeddings;
pub mod error;
mod fields;
mod generation;
mod intake;
mod listener;
mod messages;
pub mod metrics;
mod models;
mod page;
mod prepare;
mod probes;
mod prompts;
pub mod request;
mod router;
mod server;
pub mod state;
mod stream;
mod structured;
mod target;
mod tenant;
mod tls;
mod tokenize;
mod tools;
mod vocabulary;
mod wire;

pub use adapters::{AdapterLoader, Adapters};
pub use auth::Auth;
pub use common::Sampling;
pub use error::ApiError;
pub use router::router;
pub use server::{serve, serve_metrics};
pub use state::{App, Limits, LoadProgress, ModelParts, ServedModel, Settings};
pub use tls::Tls;
pub use tools::ToolFormat;
