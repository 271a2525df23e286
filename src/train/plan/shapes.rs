//! Shapes to plan training for.

use crate::engine::TokenId;
use crate::model::config::LlamaConfig;
use crate::model::lora::Projection;
pub use crate::model::shapes::{NAMES, ShapeError, matrices, parameters, shape};
use crate::train::model::vocabulary::Vocabulary;

/// The shape of what is trained: with a row for the new end-of-turn token in embedding and head, filled up to a multiple
/// of 64.
pub fn with_new_token(config: LlamaConfig, new: Option<TokenId>) -> LlamaConfig {
    LlamaConfig { vocab_size: Vocabulary::new(config.vocab_size, new).rows, ..config }
}

/// Parameters of the factors of adapters of a rank, on all linear layers.
pub fn adapters(config: &LlamaConfig, rank: usize) -> u64 {
    let factors = |shape: [usize; 2]| (rank * (shape[0] + shape[1])) as u64;
    let layer: u64 = Projection::ALL.iter().map(|p| factors(p.shape(config).into())).sum();
    layer * config.num_layers as u64
}
