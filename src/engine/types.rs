//! Identifiers and the parameters of a request, shared by every layer above the model.

use std::fmt;
use std::sync::Arc;

use super::adapters::AdapterLease;
use super::constraint::Matcher;

/// A token id of the model's vocabulary.
pub type TokenId = u32;

/// A sequence inside the engine; unique for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u64);

/// A block of the paged KV pool: [`BLOCK_SIZE`] token positions in every layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// A loaded LoRA adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterSlot {
    /// Where the executor keeps it; used again after an unload.
    pub index: u32,
    /// Which load put it there; never used again, so that cached blocks of a predecessor are not found.
    pub generation: u64,
}

/// Tokens per block of the KV pool.
pub const BLOCK_SIZE: usize = 32;

impl fmt::Debug for SeqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

/// How to choose the next token. Validated where it is built (`http`), trusted below.
///
/// Order of application, on every backend: bias → penalties → mask and min_tokens → temperature → top-k → top-p →
/// min-p → draw. Ties go to the lowest id.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Smallest prefix of the sorted distribution with at least this mass; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// Tokens below `min_p` times the most likely one are dropped; 0 is off.
    pub min_p: f32,
    /// Over prompt and output, `l < 0 ? l * p : l / p` once a token; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from every token that was generated.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Key of the counter-based generator, with `choice` and the token's position.
    pub seed: u64,
    /// Index of this choice among the `n` of a request.
    pub choice: u32,
    /// Stop after this many generated tokens; 0 generates nothing, for a prompt that is only scored.
    pub max_tokens: u32,
    /// `stop_token_ids` cannot be sampled before this many tokens were generated, unless nothing else can.
    pub min_tokens: u32,
    /// Tokens that end the sequence: the model's end-of-sequence tokens, unless `ignore_eos`, and
    /// those asked for. The token itself is reported.
    pub stop_token_ids: Vec<TokenId>,
    /// Log-probabilities of this many most likely tokens with each sampled one; `None`: none at
    /// all; `Some(0)`: of the sampled token only. Taken from the raw logits.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    /// Greedy, 16 tokens, everything else off.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether the sampler needs the tokens already seen.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// How a sequence's final hidden states become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean over all tokens.
    Mean,
    /// That of the last token.
    Last,
}

/// What a sequence is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Tokens, as [`SamplingParams`] says.
    Generate {
        /// Log-probabilities of the prompt's tokens too, each with this many most likely ones.
        prompt_logprobs: Option<u32>,
    },
    /// One vector; nothing is sampled.
    Embed(Pooling),
}

impl Default for Task {
    /// Tokens alone.
    fn default() -> Self {
        Self::Generate { prompt_logprobs: None }
    }
}

/// One sequence to compute. A request with `n` choices is `n` of these.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt token ids; not empty.
    pub prompt: Arc<[TokenId]>,
    /// What is wanted.
    pub task: Task,
    /// How to sample and when to stop.
    pub params: Arc<SamplingParams>,
    /// Lower runs first; 0 is ordinary.
    pub priority: i32,
    /// Separates prefix-cache entries that must not be shared.
    pub cache_salt: Option<Arc<str>>,
    /// Adapter to apply; `None` is the base model.
    pub adapter: Option<AdapterLease>,
    /// What may be generated, in its first state; `None` is anything.
    pub constraint: Option<Box<dyn Matcher>>,
}

impl Request {
    /// Ordinary generation by the base model.
    pub fn generate(prompt: impl Into<Arc<[TokenId]>>, params: SamplingParams) -> Self {
        let (prompt, params) = (prompt.into(), Arc::new(params));
        Self { prompt, task: Task::default(), params, priority: 0, cache_salt: None, adapter: None, constraint: None }
    }

    /// Tokens to generate at most.
    pub fn max_new_tokens(&self) -> usize {
        match self.task {
            Task::Generate { .. } => self.params.max_tokens as usize,
            Task::Embed(_) => 0,
        }
    }

    /// Tokens the context must have room for: the prompt, and one more if any is generated.
    pub fn least_len(&self) -> usize {
        self.prompt.len() + self.max_new_tokens().min(1)
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled (it is the last token reported).
    Stop,
    /// `max_tokens`, or the model's context length, was reached. Also the end of what generates nothing.
    Length,
}
