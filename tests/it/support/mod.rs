//! What several test modules use.

pub mod cpu;
pub mod goldens;
pub mod requantize;
