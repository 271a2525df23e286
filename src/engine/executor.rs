//! The seam between the engine and a model on some device.
//!
//! A step is [`Executor::forward`], [`Executor::sample`], [`Executor::collect`]. Only `collect` may
//! wait for the device, so a deep executor ([`Executor::depth`] > 1) has the next step enqueued
//! before the last one is collected. Steps execute in the order they were enqueued: a block freed
//! while a step is in flight may be handed to a later step at once.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use super::adapters::AdapterWeights;
use super::constraint::MaskTask;
use super::types::{AdapterSlot, BlockId, Pooling, SamplingParams, SeqId, TokenId};

/// Where a row's token ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// `StepInput::tokens[range]`.
    Host(Range<usize>),
    /// One token: the one sampled by row `row` of the previous step, not yet collected.
    PreviousStep {
        /// Index into the previous step's `rows`.
        row: usize,
    },
}

/// What a row's forward pass is for, apart from [`Row::score`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing more (a prefill chunk that is not the last).
    None,
    /// Logits of the last `last` positions, one sampled token each. The row's last `last - 1` tokens are drafts:
    /// tokens are returned up to the first that is not the draft that follows, 1 to `last` of them.
    Sample {
        /// Number of trailing positions to sample from.
        last: usize,
    },
    /// The final hidden states, after the norm, pooled. For a mean the executor keeps the sum of a
    /// sequence's rows so far: they come in order, the first from position 0.
    Pool {
        /// How.
        pooling: Pooling,
        /// Whether this row is the last of the sequence and returns the vector.
        last: bool,
    },
}

/// Scoring of tokens that are known: the logits after a row's token say how likely the next one was.
///
/// The row that scores a token is the one before it, so no logits outlive a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// Index in the row of the first position whose next token is scored.
    pub first: usize,
    /// `StepInput::targets[range]`: the tokens that follow positions `first..`.
    pub targets: Range<usize>,
    /// Most likely tokens to report with each.
    pub top: u32,
}

/// One sequence's part of a step: `len` consecutive positions from `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sequence.
    pub seq: SeqId,
    /// Its token ids in this step.
    pub tokens: TokenSource,
    /// Absolute position of the first token: everything before is in the cache.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// `StepInput::blocks[range]` is the block table, covering positions `0..start + len`.
    pub blocks: Range<usize>,
    /// What to return.
    pub want: Want,
    /// Tokens of the prompt to score as well.
    pub score: Option<Score>,
    /// LoRA adapter.
    pub adapter: Option<AdapterSlot>,
}

/// Everything a forward pass reads. Reused between steps, so it allocates only while it grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInput {
    /// Increases by one each step.
    pub step: u64,
    /// The rows, in scheduling order.
    pub rows: Vec<Row>,
    /// Token ids of all `Host` rows, and maybe some of none.
    pub tokens: Vec<TokenId>,
    /// Tokens to score of all rows with a [`Score`].
    pub targets: Vec<TokenId>,
    /// Block tables of all rows, and maybe some of none.
    pub blocks: Vec<BlockId>,
    /// Sequences that ended or were preempted since the last step: state kept for them may go.
    pub released: Vec<SeqId>,
}

impl StepInput {
    /// Number of token positions in the step.
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(|r| r.len).sum()
    }

    /// The block table of a row.
    pub fn block_table(&self, row: &Row) -> &[BlockId] {
        &self.blocks[row.blocks.clone()]
    }

    /// Empties it, keeping the allocations.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.tokens.clear();
        self.targets.clear();
        self.blocks.clear();
        self.released.clear();
    }
}

/// Sampling of one row with [`Want::Sample`].
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    /// Index into the step's `rows`.
    pub row: usize,
    /// The sequence.
    pub seq: SeqId,
    /// Parameters.
    pub params: &'a Arc<SamplingParams>,
    /// Prompt and output tokens the host knows. Where the row's token is
    /// [`TokenSource::PreviousStep`] the executor itself adds that token.
    pub history: &'a [TokenId],
    /// What the row guesses to follow `history`. The token after some of it is sampled as if these were known.
    pub drafts: &'a [TokenId],
    /// How many of `history` are prompt.
    pub num_prompt: usize,
    /// Absolute position of the first token to sample: the random generator's counter.
    pub position: usize,
    /// Allowed tokens, bit `i % 32` of word `i / 32`; `None` allows all.
    pub mask: Option<&'a [u32]>,
}

/// The rows to sample after a forward pass, in row order.
#[derive(Clone, Debug, Default)]
pub struct SampleInput<'a> {
    /// One for each row with [`Want::Sample`].
    pub rows: Vec<SampleRow<'a>>,
}

/// A step in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Its log-probability under the raw logits; 0 if `SamplingParams::logprobs` is `None`.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, if asked for, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// A token that was given, not sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: TokenId,
    /// Its log-probability under the raw logits; -inf is possible.
    pub logprob: f32,
    /// Its place among all tokens by (logit descending, id ascending), from 1.
    pub rank: u32,
    /// The most likely tokens and their log-probabilities, as many as asked for, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// A row's result. A bad row fails its sequence alone.
#[derive(Clone, Debug, PartialEq)]
pub enum RowOut {
    /// The row wanted nothing.
    None,
    /// Sampled tokens in position order, as [`Want::Sample`] says.
    Tokens(SmallVec<[Sampled; 1]>),
    /// The pooled state, of a row that is the last to be pooled.
    Pooled(Vec<f32>),
    /// The row failed (for example its logits were not finite).
    Failed(String),
}

/// What a step returned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One result for each row of the step, in its order.
    pub rows: Vec<RowOut>,
    /// For each row with a [`Score`] that did not fail, in order: its index, and one entry for each
    /// target.
    pub scores: Vec<(usize, Vec<Scored>)>,
}

/// A failed step: fails the sequences in it, not the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);

/// A model on a device.
pub trait Executor: Send {
    /// Steps that may be in flight: 1 answers synchronously.
    fn depth(&self) -> usize {
        1
    }

    /// Tokens that a step may sample, drafts included; one a sequence in any case.
    fn max_sampled(&self) -> usize {
        usize::MAX
    }

    /// LoRA adapters that may be loaded at once.
    fn max_adapters(&self) -> usize {
        0
    }

    /// Takes an adapter into a slot below [`max_adapters`](Self::max_adapters): steps from now on may name it.
    fn load_adapter(&mut self, _slot: AdapterSlot, _weights: Arc<AdapterWeights>) -> Result<(), ExecutorError> {
        Err(ExecutorError("this executor has no LoRA adapters".into()))
    }

    /// Forgets an adapter: later steps do not name it. Steps in flight may; they were enqueued before. A slot that
    /// is empty or holds another generation stays as it is.
    fn unload_adapter(&mut self, _slot: AdapterSlot) {}

    /// Adapters that are loaded, and their bytes.
    fn adapters(&self) -> (usize, usize) {
        (0, 0)
    }

    /// Why no step can succeed any more, if that is so: the engine then fails all it has and ends.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Enqueues the forward pass, up to logits. After an error nothing of the step is in flight.
    fn forward(&mut self, step: &StepInput) -> Result<(), ExecutorError>;

    /// Runs each of these tasks once, on the threads that it has to spare: after [`forward`](Self::forward), so that
    /// what has only been enqueued goes on meanwhile. One after the other unless it knows better.
    fn make_masks(&mut self, tasks: &mut [MaskTask<'_>]) {
        tasks.iter_mut().for_each(MaskTask::run);
    }

    /// Enqueues sampling for the step just forwarded. Called once a step, even with no rows.
    fn sample(&mut self, request: &SampleInput<'_>) -> Result<Ticket, ExecutorError>;

    /// Waits for a step. Tickets are collected in order.
    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError>;
}
