//! Sequences, scheduling, the block pool and the engine thread. No tensors, no candle: the model is
//! behind [`Executor`].

pub mod executor;
pub mod types;

pub use executor::{
    Executor, ExecutorError, Row, RowOut, SampleInput, SampleRow, Sampled, StepInput, StepOutput, Ticket, TokenSource,
    Want,
};
pub use types::{AdapterSlot, BLOCK_SIZE, BlockId, FinishReason, Request, SamplingParams, SeqId, TokenId};
