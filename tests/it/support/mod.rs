//! What several test modules use.

pub mod cpu;
pub mod description;
pub mod engine;
pub mod family;
pub mod goldens;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod requantize;
pub mod server;
