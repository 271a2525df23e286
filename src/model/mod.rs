//! A model's shape and weights, from files to tensors.

pub mod config;
pub mod llama;
pub mod rope;
pub mod weights;
