//! Tokens as answers show them.

use std::sync::Arc;

use super::wire::{PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob};
use crate::engine::{Sampled, Scored, TokenId};
use crate::text::Tokenizer;

/// A token of an answer and the bytes of it that are in the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The token and its alternatives.
    pub sampled: Sampled,
    /// Fewer than the token has where a stop string begins inside.
    pub bytes: Vec<u8>,
}

/// Names of tokens, as one request wants them.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether special tokens stand for no text.
    pub skip_special: bool,
    /// Whether tokens are named `token_id:…`.
    pub as_ids: bool,
}

impl Vocabulary {
    /// What a token adds to the text.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        match self.tokenizer.token_str(id) {
            Some(spelling) if !self.skip_special && self.tokenizer.is_special(id) => spelling.as_bytes(),
            _ => self.tokenizer.token_bytes(id),
        }
    }

    /// The text of a token, what is not UTF-8 in it replaced; a special token has its name.
    pub fn text(&self, id: TokenId) -> String {
        match self.tokenizer.token_bytes(id) {
            [] => self.tokenizer.token_str(id).unwrap_or_default().to_owned(),
            bytes => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// The name of a token in log-probabilities of chats.
    fn chat_name(&self, id: TokenId) -> String {
        if self.as_ids { format!("token_id:{id}") } else { self.text(id) }
    }

    /// The name of a token in log-probabilities of completions, where names are keys: `bytes:\xe2\x80` for
    /// what is not UTF-8.
    pub fn legacy_name(&self, id: TokenId) -> String {
        let bytes = self.tokenizer.token_bytes(id);
        match std::str::from_utf8(bytes) {
            _ if self.as_ids => format!("token_id:{id}"),
            Ok("") => self.text(id),
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
        }
    }

    /// An entry of a chat's log-probabilities.
    pub fn token_logprob(&self, shown: Shown) -> TokenLogprob {
        let top = |&(id, logprob): &(TokenId, f32)| TopLogprob {
            token: self.chat_name(id),
            logprob: clamp(logprob),
            bytes: self.tokenizer.token_bytes(id).to_vec(),
        };
        let Shown { sampled, bytes } = shown;
        TokenLogprob {
            token: self.chat_name(sampled.token),
            logprob: clamp(sampled.logprob),
            bytes,
            top_logprobs: sampled.top.iter().map(top).collect(),
        }
    }

    /// The log-probabilities of a prompt, `null` for its first token; at most `top` alternatives.
    pub fn prompt_logprobs(&self, scores: &[Scored], top: u32) -> PromptLogprobs {
        let entry =
            |id, logprob, rank| (id, PromptLogprob { logprob: clamp(logprob), rank, decoded_token: self.text(id) });
        let one = |scored: &Scored| {
            let best = scored.top.iter().take(top as usize).zip(1..);
            let mut entries: Vec<_> = best.map(|(&(id, logprob), rank)| entry(id, logprob, rank)).collect();
            if !entries.iter().any(|(id, _)| *id == scored.token) {
                entries.insert(0, entry(scored.token, scored.logprob, scored.rank));
            }
            Some(entries)
        };
        PromptLogprobs(std::iter::once(None).chain(scores.iter().map(one)).collect())
    }
}

/// The API's stand-in for "very unlikely" keeps JSON free of infinities.
pub fn clamp(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}
