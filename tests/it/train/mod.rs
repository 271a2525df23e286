//! Training data: reading it, rendering it, the tokenizer that comes with the result; losses and gradients.

mod adapters;
mod data;
mod numerics;
mod python;
mod render;
