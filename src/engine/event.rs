//! What the engine tells the reader of a sequence.

use super::executor::{Sampled, Scored};
use super::types::{FinishReason, SeqId};

/// One step in the life of an accepted request. The last is always exactly one `Finished` or
/// `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Admitted for the first time.
    Scheduled {
        /// Prompt tokens whose computation the prefix cache spared.
        cached_tokens: usize,
    },
    /// Log-probabilities of the next tokens of the prompt, in order from its second on (nothing
    /// precedes the first). All of them come before the first token that is generated.
    PromptLogprobs(Vec<Scored>),
    /// The pooled hidden state.
    Pooled(Vec<f32>),
    /// A token was generated; a stop token is reported too.
    Token(Sampled),
    /// Generation is complete.
    Finished(FinishReason),
    /// Generation ended early.
    Failed(EngineError),
}

impl Event {
    /// Whether nothing follows.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::Failed(_))
    }
}

/// Why an accepted request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The step the sequence was in failed.
    #[error("the model step failed: {0}")]
    Step(String),
    /// The sequence's own row failed.
    #[error("the model could not continue this sequence: {0}")]
    Row(String),
    /// The sequence's constraint allows no token.
    #[error("the constraint cannot be met: {0}")]
    Constraint(String),
    /// The engine was told to end everything.
    #[error("the request was aborted because the server is shutting down")]
    Aborted,
    /// The engine thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// An event and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub struct SeqEvent {
    /// The sequence.
    pub seq: SeqId,
    /// Its place in the scheduler's table, free for another after a terminal event.
    pub slot: usize,
    /// What happened.
    pub event: Event,
}
