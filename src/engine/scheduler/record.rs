//! Steps in flight.

use std::ops::Range;

use crate::engine::types::SeqId;

/// A row of a step in flight.
#[derive(Debug)]
pub(super) struct RowRecord {
    pub(super) slot: usize,
    pub(super) seq: SeqId,
    pub(super) epoch: u32,
    /// Positions computed after it, without drafts.
    pub(super) end: usize,
    /// Drafts beyond these positions.
    pub(super) drafts: usize,
    pub(super) returns: Returns,
    /// Tokens of the prompt, by index, whose scores it returns.
    pub(super) scores: Range<usize>,
}

/// What the scheduler waits for in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returns {
    /// Nothing: more of the sequence's tokens are to be computed.
    Nothing,
    /// A token.
    Token,
    /// The pooled state, and with it the end.
    Pooled,
    /// Nothing, and with it the end of a sequence that generates nothing.
    End,
}

#[derive(Debug, Default)]
pub(super) struct StepRecord {
    pub(super) step: u64,
    /// Whether it is a step of decoding alone, whose time says what drafts cost.
    pub(super) decodes: bool,
    pub(super) rows: Vec<RowRecord>,
}
