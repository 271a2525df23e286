//! Response bodies.

use serde::Serialize;

/// The whole response of a chat completion.
#[derive(Serialize)]
pub struct ChatCompletion<'a> {
    /// `chatcmpl-…`.
    pub id: &'a str,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// In index order.
    pub choices: Vec<Choice>,
    /// Token counts.
    pub usage: Usage,
}

/// One of the `n` answers.
#[derive(Serialize)]
pub struct Choice {
    /// Which.
    pub index: u32,
    /// The answer.
    pub message: Message,
    /// `null` is written.
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Serialize)]
pub struct Message {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always written, always `null`.
    pub refusal: Option<String>,
}

/// One event of a stream.
#[derive(Serialize)]
pub struct Chunk<'a> {
    /// The same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// The same in all chunks.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// One, or none in the usage chunk.
    pub choices: Vec<ChunkChoice>,
    /// Absent, `null`, or the counts in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A piece of one answer.
#[derive(Serialize)]
pub struct ChunkChoice {
    /// Which answer.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// `null` is written.
    pub logprobs: Option<Logprobs>,
    /// `null` until the last chunk of this answer.
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds.
#[derive(Default, Serialize)]
pub struct Delta {
    /// In the first chunk of an answer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// `null` in the first chunk, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Option<String>>,
}

/// Log-probabilities of an answer or of a chunk.
#[derive(Serialize)]
pub struct Logprobs {
    /// One a token.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// Log-probability of a generated token and its alternatives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Text of the token; what is not UTF-8 in it is replaced.
    pub token: String,
    /// Natural logarithm, never infinite.
    pub logprob: f32,
    /// Exact bytes.
    pub bytes: Vec<u8>,
    /// Best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Text of the token.
    pub token: String,
    /// Natural logarithm, never infinite.
    pub logprob: f32,
    /// Exact bytes.
    pub bytes: Vec<u8>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    /// Found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0.
    pub audio_tokens: usize,
}

/// What the answers were made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompletionDetails {
    /// Always 0.
    pub reasoning_tokens: usize,
    /// Always 0.
    pub audio_tokens: usize,
    /// Always 0.
    pub accepted_prediction_tokens: usize,
    /// Always 0.
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

/// An entry of `/v1/models`.
#[derive(Serialize)]
pub struct Model<'a> {
    /// The name.
    pub id: &'a str,
    /// `model`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Always `lima`.
    pub owned_by: &'static str,
    /// What was loaded.
    pub root: &'a str,
    /// Of an adapter, the model it is for; `null` is written.
    pub parent: Option<&'a str>,
    /// Context length, tokens.
    pub max_model_len: usize,
}

/// A list of models.
#[derive(Serialize)]
pub struct ModelList<'a> {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<Model<'a>>,
}
