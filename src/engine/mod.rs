//! Sequences, scheduling, the block pool and the engine thread. No tensors, no candle: the model is
//! behind [`Executor`].

pub mod adapters;
pub mod block_pool;
pub mod constraint;
pub mod core;
pub mod event;
pub mod executor;
mod fairness;
pub mod fake;

pub mod handle;
pub mod ngram;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
pub mod stats;
pub mod thread;
pub mod types;

pub use adapters::{AdapterError, AdapterLease, AdapterReservation, AdapterWeights};
pub use block_pool::{BlockPool, BlockTable};
pub use constraint::{MaskTask, Matcher};
pub use core::Core;
pub use event::{EngineError, Event, SeqEvent};
pub use executor::{
    Executor, ExecutorError, Row, RowOut, SampleInput, SampleRow, Sampled, Score, Scored, StepInput, StepOutput,
    Ticket, TokenSource, Want,
};
pub use handle::{EngineConfig, EngineHandle, EventStream, SubmitError};
pub use scheduler::{Counters, Scheduler, SchedulerConfig};
pub use speculation::{DraftCost, Speculation};
pub use stats::{EngineStats, STEP_BUCKETS_MS, STEP_TOKEN_BUCKETS};
pub use thread::{Engine, EngineThread, engine, spawn};
pub use types::{
    AdapterSlot, BLOCK_SIZE, BlockId, FinishReason, Pooling, Request, SamplingParams, SeqId, Task, Tenant, TokenId,
};
