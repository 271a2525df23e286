//! Training data: reading it, rendering it, and the tokenizer that comes with the result.

mod data;
mod python;
mod render;
