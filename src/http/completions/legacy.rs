//! Log-probabilities as four arrays, aligned with the text.

use std::sync::Arc;

use crate::engine::{Scored, TokenId};
use crate::http::vocabulary::{Shown, Vocabulary, clamp};
use crate::http::wire::{LegacyLogprobs, TopMap};
use crate::text::Detokenizer;

/// A prompt as it is echoed.
pub struct Echo {
    /// Its text, up to the last complete character.
    pub text: String,
    /// Its tokens.
    pub tokens: Arc<[TokenId]>,
    /// What each token has of the text.
    pieces: Vec<Vec<u8>>,
}

impl Echo {
    /// The text that was sent is echoed `verbatim`; tokens are decoded.
    pub fn new(vocabulary: &Vocabulary, verbatim: Option<&str>, tokens: Arc<[TokenId]>) -> Self {
        let mut pieces = Vec::with_capacity(tokens.len());
        let Some(text) = verbatim else {
            let mut detokenizer = Detokenizer::new(Arc::clone(&vocabulary.tokenizer), vocabulary.skip_special);
            let mut text = String::new();
            for &id in &*tokens {
                let bytes = vocabulary.bytes(id);
                let piece = if detokenizer.at_start() { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes };
                pieces.push(piece.to_vec());
                text += &detokenizer.push(id);
            }
            return Self { text, tokens, pieces };
        };
        // A special token has its spelling where the text spells it, and nothing where it was put in front. A
        // tokenizer may add a space to a word.
        let mut rest = text.as_bytes();
        for &id in &*tokens {
            let bytes = match vocabulary.tokenizer.is_special(id) {
                true => vocabulary.tokenizer.token_str(id).unwrap_or_default().as_bytes(),
                false => vocabulary.tokenizer.token_bytes(id),
            };
            let trimmed = bytes.strip_prefix(b" ").unwrap_or(bytes);
            let piece = match (rest.starts_with(bytes), rest.starts_with(trimmed)) {
                (true, _) => bytes,
                (false, true) => trimmed,
                (false, false) if vocabulary.tokenizer.is_special(id) => &[],
                (false, false) => &rest[..bytes.len().min(rest.len())],
            };
            rest = &rest[piece.len()..];
            pieces.push(piece.to_vec());
        }
        Self { text: text.to_owned(), tokens, pieces }
    }
}

/// Writes the arrays of one answer.
pub struct Legacy {
    vocabulary: Vocabulary,
    top: u32,
    offsets: Offsets,
}

impl Legacy {
    /// With at most `top` alternatives to each token.
    pub fn new(vocabulary: Vocabulary, top: u32) -> Self {
        Self { vocabulary, top, offsets: Offsets::default() }
    }

    /// The arrays of an echoed prompt, scored from its second token on.
    pub fn prompt(&mut self, echo: &Echo, scores: &[Scored]) -> LegacyLogprobs {
        let mut arrays = LegacyLogprobs::default();
        let scores = std::iter::once(None).chain(scores.iter().map(Some));
        for ((&id, piece), scored) in echo.tokens.iter().zip(&echo.pieces).zip(scores) {
            self.push(&mut arrays, id, piece, scored.map(|s| (s.logprob, &*s.top)));
        }
        arrays
    }

    /// Appends tokens of the answer.
    pub fn answer(&mut self, arrays: &mut LegacyLogprobs, tokens: Vec<Shown>) {
        for Shown { sampled, bytes } in tokens {
            self.push(arrays, sampled.token, &bytes, Some((sampled.logprob, &sampled.top)));
        }
    }

    fn push(
        &mut self,
        arrays: &mut LegacyLogprobs,
        id: TokenId,
        bytes: &[u8],
        score: Option<(f32, &[(TokenId, f32)])>,
    ) {
        arrays.tokens.push(self.vocabulary.legacy_name(id));
        arrays.text_offset.push(self.offsets.advance(bytes));
        arrays.token_logprobs.push(score.map(|(logprob, _)| clamp(logprob)));
        arrays.top_logprobs.push(score.map(|(logprob, top)| {
            let mut best: Vec<(String, f32)> = Vec::new();
            let own = (!top.iter().take(self.top as usize).any(|(t, _)| *t == id)).then_some((id, logprob));
            // Names are keys: of two tokens with one name the more likely stays.
            for (token, logprob) in top.iter().take(self.top as usize).copied().chain(own) {
                let name = self.vocabulary.legacy_name(token);
                if !best.iter().any(|(known, _)| *known == name) {
                    best.push((name, clamp(logprob)));
                }
            }
            TopMap(best)
        }));
    }
}

/// Counts characters. A token's offset is the number of characters that are complete before it: a token that
/// ends a character has the offset of the one that began it.
#[derive(Default)]
struct Offsets {
    characters: usize,
    /// Bytes of a character that is not complete.
    tail: Vec<u8>,
}

impl Offsets {
    /// Adds a token's bytes; returns its offset.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let offset = self.characters;
        self.tail.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.tail[done..]) {
                Ok(text) => {
                    self.characters += text.chars().count();
                    done = self.tail.len();
                    break;
                }
                Err(e) => {
                    let valid = std::str::from_utf8(&self.tail[done..done + e.valid_up_to()]);
                    self.characters += valid.map_or(0, |text| text.chars().count());
                    done += e.valid_up_to();
                    // An invalid sequence is one replacement character.
                    let Some(invalid) = e.error_len() else { break };
                    self.characters += 1;
                    done += invalid;
                }
            }
        }
        self.tail.drain(..done);
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::Offsets;

    #[test]
    fn offsets_count_complete_characters() {
        let mut offsets = Offsets::default();
        let parts: [&[u8]; 8] = [b"a", b"\xc3", b"\xb6", b"\xf0\x9f", b"\x98\x80b", b"", b"\xff", b"c"];
        let got: Vec<_> = parts.iter().map(|bytes| offsets.advance(bytes)).collect();
        assert_eq!(got, [0, 1, 1, 2, 2, 4, 4, 5]);
    }
}
