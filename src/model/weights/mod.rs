//! Checkpoints on disk: memory-mapped GGUF and safetensors behind one view with Hugging Face's
//! tensor names and row order. Nothing is ever unpickled.

pub mod checkpoint;
pub mod error;
pub mod gguf;
pub mod gguf_vocab;
mod index;
mod json;
pub mod mapped;
pub mod names;
mod refused;
pub mod safetensors;
pub mod shard;
pub mod slice;
mod split;
pub mod view;

pub use checkpoint::{Checkpoint, Source};
pub use error::LoadError;
pub use names::expected_tensors;
pub use slice::{Blocks, Slice};
pub use split::part_names;
pub use view::TensorView;
