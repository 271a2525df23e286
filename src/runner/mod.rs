//! The executor of a real model.

pub mod sampler;
