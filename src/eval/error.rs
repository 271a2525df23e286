//! What can go wrong in an evaluation.

use std::path::{Path, PathBuf};

use crate::chat::ChatError;

/// Why an evaluation has no result; one sentence that names the thing.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file or a directory.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of a file.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A server that cannot be used at all.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Some calls found no answer. What was answered is kept.
    #[error("{failed} of {total} found no answer ({first}); what is done is kept, and the same command goes on")]
    Unfinished {
        /// How many.
        failed: usize,
        /// Of how many.
        total: usize,
        /// Why the first of them has none.
        first: String,
    },
    /// A command that cannot be followed.
    #[error("{0}")]
    Usage(String),
}

impl EvalError {
    /// For `map_err` of what is done with a file.
    pub(super) fn at<E: ToString>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, reason: error.to_string() }
    }
}
