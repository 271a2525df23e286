//! Text from token ids, as they come.

use std::sync::Arc;

use super::tokenizer::Tokenizer;
use crate::engine::TokenId;

/// Turns ids into text one at a time. The pieces joined are `String::from_utf8_lossy` of all bytes
/// (less SentencePiece's leading space).
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    at_start: bool,
    /// Bytes of a character that is not complete: at most three.
    tail: Vec<u8>,
}

impl Detokenizer {
    /// Starts a text. Special tokens are left out if `skip_special`, else spelled.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let at_start = tokenizer.strips_leading_space();
        Self { tokenizer, skip_special, at_start, tail: Vec::new() }
    }

    /// Whether no text has come yet, so that a space in front is dropped where the tokenizer adds one.
    pub fn at_start(&self) -> bool {
        self.at_start
    }

    /// Adds a token and gives the characters that it completes.
    pub fn push(&mut self, id: TokenId) -> String {
        let tokenizer = Arc::clone(&self.tokenizer);
        let mut bytes = match tokenizer.token_str(id) {
            Some(spelling) if !self.skip_special && tokenizer.is_special(id) => spelling.as_bytes(),
            _ => tokenizer.token_bytes(id),
        };
        if self.at_start && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.at_start = bytes.is_empty() && tokenizer.strips_leading_spaces();
        }
        self.tail.extend_from_slice(bytes);
        let (text, done) = decode(&self.tail);
        self.tail.drain(..done);
        text
    }

    /// Whether a token adds no text.
    pub(super) fn is_silent(&self, id: TokenId) -> bool {
        let spelled = !self.skip_special && self.tokenizer.is_special(id);
        !spelled && self.tokenizer.token_bytes(id).is_empty()
    }

    /// Ends the text: what is left of a character that never became complete.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.tail).into_owned();
        self.tail.clear();
        text
    }
}

/// Decodes all but an incomplete character at the end; also the number of bytes decoded.
fn decode(bytes: &[u8]) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(rest) => {
                text.push_str(rest);
                return (text, bytes.len());
            }
            Err(e) => {
                let valid = &bytes[done..done + e.valid_up_to()];
                text.push_str(&String::from_utf8_lossy(valid));
                done += valid.len();
                match e.error_len() {
                    Some(invalid) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        done += invalid;
                    }
                    None => return (text, done),
                }
            }
        }
    }
}
