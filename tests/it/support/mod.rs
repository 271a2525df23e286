//! What several test modules use.

pub mod cpu;
pub mod description;
pub mod engine;
pub mod family;
pub mod goldens;
pub mod requantize;
pub mod server;
