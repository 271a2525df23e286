//! The executor of a real model: batches, sampling, memory.

pub mod adapters;
pub mod executor;
pub mod load;
pub mod memory;
pub mod sampler;
pub mod tensor;

pub use executor::CpuExecutor;
pub use load::{Loaded, RunnerError, RunnerOptions, load};
pub use tensor::{RankExecutors, Standing, TensorParallel};
