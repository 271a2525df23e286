//! How many tokens a request took.

use serde::Serialize;
use utoipa::ToSchema;

/// Token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt, once whatever `n`.
    pub prompt_tokens: usize,
    /// Of all answers together.
    pub completion_tokens: usize,
    /// The sum.
    pub total_tokens: usize,
    /// Of the prompt.
    pub prompt_tokens_details: PromptDetails,
    /// Of the answers.
    pub completion_tokens_details: CompletionDetails,
}

/// What the prompt was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    pub audio_tokens: usize,
}

/// What the answers were made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionDetails {
    /// Always 0.
    #[schema(maximum = 0)]
    pub reasoning_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    pub audio_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    pub accepted_prediction_tokens: usize,
    /// Always 0.
    #[schema(maximum = 0)]
    pub rejected_prediction_tokens: usize,
}

impl Usage {
    /// Adds up.
    pub fn new(prompt: usize, cached: usize, completion: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached, audio_tokens: 0 },
            completion_tokens_details: CompletionDetails::default(),
        }
    }
}
