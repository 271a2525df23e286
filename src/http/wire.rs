//! Response bodies.

use serde::{Serialize, Serializer};

use crate::engine::TokenId;

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
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
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
    /// The text; `null` if there are only calls.
    pub content: Option<String>,
    /// Always written, always `null`.
    pub refusal: Option<String>,
    /// Functions called, if any are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A function called.
#[derive(Serialize)]
pub struct ToolCall {
    /// `call_…`.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Which, and how.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Serialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
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
    /// Part of a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What a chunk adds to a call.
#[derive(Serialize)]
pub struct ToolCallDelta {
    /// Which of the answer's calls.
    pub index: u32,
    /// In a call's first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in a call's first chunk only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// What a chunk adds to a function call.
#[derive(Serialize)]
pub struct FunctionDelta {
    /// In a call's first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    pub arguments: String,
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

/// The whole response of a completion.
#[derive(Serialize)]
pub struct Completion<'a> {
    /// `cmpl-…`.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// Model name as asked for.
    pub model: &'a str,
    /// Prompt by prompt.
    pub choices: Vec<CompletionChoice>,
    /// Absent in a stream unless asked for, then `null`, or the counts in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One text, or a piece of it.
#[derive(Serialize)]
pub struct CompletionChoice {
    /// Prompt × n + choice.
    pub index: u32,
    /// The text.
    pub text: String,
    /// `null` is written.
    pub logprobs: Option<LegacyLogprobs>,
    /// `null` until the last chunk.
    pub finish_reason: Option<&'static str>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// Log-probabilities as completions have them: four arrays, an entry a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LegacyLogprobs {
    /// Names.
    pub tokens: Vec<String>,
    /// `null` for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens and the one at hand; `null` for the first token of a prompt.
    pub top_logprobs: Vec<Option<TopMap>>,
    /// Characters of the text before the token.
    pub text_offset: Vec<usize>,
}

/// Names of tokens and their log-probabilities, an object in this order. Not a `serde_json::Map`: its numbers are
/// f64, and the same f32 would be written in two ways.
#[derive(Clone, Debug, PartialEq)]
pub struct TopMap(pub Vec<(String, f32)>);

impl Serialize for TopMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}

/// Log-probabilities of a prompt as vLLM writes them: `null` for the first token, then objects by token id.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs(pub Vec<Option<Vec<(TokenId, PromptLogprob)>>>);

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Entries<'a>(&'a [(TokenId, PromptLogprob)]);
        impl Serialize for Entries<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(id, entry)| (id, entry)))
            }
        }
        serializer.collect_seq(self.0.iter().map(|entry| entry.as_deref().map(Entries)))
    }
}

/// How likely a token of a prompt was, or could have been.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// Natural logarithm, never infinite.
    pub logprob: f32,
    /// Place among all tokens, from 1.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}

/// The response with embeddings.
#[derive(Serialize)]
pub struct EmbeddingList<'a> {
    /// `list`.
    pub object: &'static str,
    /// In the order of the inputs.
    pub data: Vec<Embedding>,
    /// Model name as asked for.
    pub model: &'a str,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Serialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Which input's.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, written as numbers or as the base64 of little-endian F32.
#[derive(Serialize)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Token counts of embeddings.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EmbeddingUsage {
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

/// The response of `/tokenize`.
#[derive(Serialize)]
pub struct Tokenized {
    /// Number of tokens.
    pub count: usize,
    /// Context length, tokens.
    pub max_model_len: usize,
    /// Ids.
    pub tokens: Vec<TokenId>,
    /// As the vocabulary spells them; `null` unless asked for.
    pub token_strs: Option<Vec<String>>,
}

/// The response of `/detokenize`.
#[derive(Serialize)]
pub struct Detokenized {
    /// The text.
    pub prompt: String,
}
