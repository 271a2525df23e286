//! A model's shape and weights, from files to tensors, and its forward pass.

pub mod config;
pub mod llama;
pub mod lora;
pub mod rope;
pub mod shapes;
pub mod weights;
