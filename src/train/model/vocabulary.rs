//! Rows of the embedding and the head.

use crate::engine::TokenId;

/// A multiple that tensor-parallel ranks can share.
const MULTIPLE: usize = 64;

/// The vocabulary of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::train) struct Vocabulary {
    /// Rows of the matrices.
    pub rows: usize,
    /// Logits from here on are padding's, and masked.
    pub tokens: usize,
    /// The row that begins as the mean of those before it.
    pub new: Option<usize>,
}

impl Vocabulary {
    /// `base` rows, and a token that may be one of them: bases have padding too.
    pub fn new(base: usize, new: Option<TokenId>) -> Self {
        match new.map(|id| id as usize) {
            None => Self { rows: base, tokens: base, new: None },
            Some(id) => Self { rows: base.max(id + 1).next_multiple_of(MULTIPLE), tokens: id + 1, new: Some(id) },
        }
    }
}
