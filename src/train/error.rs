//! Why a run ended before its time.

use std::io;
use std::path::PathBuf;

use super::checkpoint::UnknownFactors;
use super::model::ModelError;
use super::optimizer::OptimizerError;
use super::output::OutputError;
use super::samples::SampleError;
use super::shards::ShardError;
use super::state::StateError;
use crate::model::weights::LoadError;
use crate::parallel::CommError;

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Its directory.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A state of another run.
    #[error("{} holds another run: {what}; give what it was begun with, or another --out", out.display())]
    OtherRun {
        /// The directory.
        out: PathBuf,
        /// What differs.
        what: String,
    },
    /// A process that was told another run than the first.
    #[error("this process's run is not that of rank 0: {0}")]
    Differs(String),
    /// A state that rank 0 has and this process has not.
    #[error("{} is not here, from which rank 0 goes on: --out must be on storage that all nodes share", .0.display())]
    NotShared(PathBuf),
    /// Models that would be written over.
    #[error("{} has models but no state to go on from: give another --out", .0.display())]
    NoState(PathBuf),
    /// A base whose result cannot be described.
    #[error(transparent)]
    Config(#[from] UnknownFactors),
    /// A base with numbers that are not finite.
    #[error(transparent)]
    Base(#[from] LoadError),
    /// Forward or backward.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The update.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// Tensors.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Threads.
    #[error("threads cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// What is shown of the run.
    #[error(transparent)]
    Watch(#[from] io::Error),
    /// Answers.
    #[error("sample answers: {0}")]
    Samples(#[from] SampleError),
    /// Other ranks.
    #[error(transparent)]
    Ranks(#[from] CommError),
    /// What ranks exchange.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// Numbers went wrong; nothing was saved of them.
    #[error("step {step}: {what}; {last}")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// Which number.
        what: String,
        /// What there is to go back to.
        last: String,
    },
    /// Something failed once training had begun.
    #[error("{error}; {last}")]
    During {
        /// The reason.
        error: Box<TrainError>,
        /// What there is to go back to.
        last: String,
    },
}
