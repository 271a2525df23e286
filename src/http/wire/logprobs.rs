//! Log-probabilities: of answers, as chats and as completions have them, and of prompts.

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::engine::TokenId;
use crate::http::openapi::words;

/// Log-probabilities of an answer or of a chunk.
#[derive(Serialize, ToSchema)]
pub struct Logprobs {
    /// One a token.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    #[schema(required, schema_with = words::null)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// Log-probability of a generated token and its alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Text of the token; what is not UTF-8 in it is replaced.
    pub token: String,
    /// Natural logarithm, never infinite.
    #[schema(minimum = -9999)]
    pub logprob: f32,
    /// Exact bytes. Those of all tokens, joined, are the message.
    pub bytes: Vec<u8>,
    /// Best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative token.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Text of the token.
    pub token: String,
    /// Natural logarithm, never infinite.
    #[schema(minimum = -9999)]
    pub logprob: f32,
    /// Exact bytes.
    pub bytes: Vec<u8>,
}

/// Log-probabilities as completions have them: four arrays, an entry a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct LegacyLogprobs {
    /// Names; what is not UTF-8 is written `bytes:\xNN…`.
    pub tokens: Vec<String>,
    /// `null` for the first token of a prompt.
    #[schema(minimum = -9999)]
    pub token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens and the one at hand; `null` for the first token of a prompt.
    #[schema(value_type = Vec<Option<HashMap<String, f32>>>)]
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
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// Natural logarithm, never infinite.
    #[schema(minimum = -9999)]
    pub logprob: f32,
    /// Place among all tokens, from 1.
    #[schema(minimum = 1)]
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}
