//! Stop strings in a stream of text.

use std::sync::Arc;

use super::detokenizer::Detokenizer;
use super::tokenizer::Tokenizer;
use crate::engine::TokenId;

/// What one push to a [`StopMatcher`] gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that may be shown: no part of it can belong to a stop string.
    pub text: String,
    /// Index of the stop string that ended the text.
    pub stopped: Option<usize>,
}

/// Ends a text before the first stop string in it, without ever showing part of one.
///
/// The stop string that is complete first ends the text; of several complete at the same character,
/// the longest, then the one listed first. So the result does not depend on how the text is cut up.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    /// The longest end of the text that may begin a stop string.
    withheld: String,
    stopped: Option<usize>,
}

/// A Knuth-Morris-Pratt automaton.
#[derive(Clone, Debug)]
struct Stop {
    index: usize,
    bytes: Box<[u8]>,
    /// `failure[i]`: length of the longest proper prefix that also ends `bytes[..=i]`.
    failure: Box<[usize]>,
    /// How many bytes of the stop string end the text so far.
    matched: usize,
}

impl Stop {
    fn new(index: usize, text: String) -> Self {
        let bytes = text.into_bytes().into_boxed_slice();
        let mut failure = vec![0; bytes.len()].into_boxed_slice();
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = failure[k - 1];
            }
            k += usize::from(bytes[i] == bytes[k]);
            failure[i] = k;
        }
        Self { index, bytes, failure, matched: 0 }
    }

    /// Takes one byte; whether the stop string is now complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && byte != self.bytes[self.matched] {
            self.matched = self.failure[self.matched - 1];
        }
        self.matched += usize::from(byte == self.bytes[self.matched]);
        self.matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for `stops`; empty ones never match.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().enumerate().filter(|(_, s)| !s.is_empty()).map(|(i, s)| Stop::new(i, s));
        Self { stops: stops.collect(), withheld: String::new(), stopped: None }
    }

    /// Adds text. After a stop everything is ignored, and reported as stopped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome { text: String::new(), stopped: self.stopped };
        }
        let mut shown = std::mem::take(&mut self.withheld);
        let before = shown.len();
        shown.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut complete: Option<(usize, usize)> = None;
            for stop in &mut self.stops {
                if stop.advance(byte) && complete.is_none_or(|(len, _)| stop.bytes.len() > len) {
                    complete = Some((stop.bytes.len(), stop.index));
                }
            }
            if let Some((len, index)) = complete {
                shown.truncate(before + i + 1 - len);
                self.stopped = Some(index);
                return StopOutcome { text: shown, stopped: self.stopped };
            }
        }
        // A match starts with the first byte of a character, so this is a character boundary.
        let withhold = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        self.withheld = shown.split_off(shown.len() - withhold);
        StopOutcome { text: shown, stopped: None }
    }

    /// Ends the text: what was withheld and turned out to be no stop string.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|s| s.matched = 0);
        std::mem::take(&mut self.withheld)
    }
}

/// What one token gave.
pub type Piece = StopOutcome;

/// Text of a sequence from its token ids, up to the first stop string.
#[derive(Debug)]
pub struct TextStream {
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    /// Tokens whose text is not searched.
    unsearched: u32,
}

impl TextStream {
    /// Starts a text that ends before any of `stops`.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool, stops: Vec<String>) -> Self {
        let (detokenizer, matcher) = (Detokenizer::new(tokenizer, skip_special), StopMatcher::new(stops));
        Self { detokenizer, matcher, unsearched: 0 }
    }

    /// Stop strings count only in what comes after the first `min_tokens` tokens.
    pub fn stopping_after(mut self, min_tokens: u32) -> Self {
        self.unsearched = min_tokens;
        self
    }

    /// Continues a text that ends in these tokens: a character that they left incomplete is completed by
    /// what follows, which keeps its leading space. Their own text is not part of the result.
    pub fn continuing(mut self, before: &[TokenId]) -> Self {
        // A character has at most four bytes; a token that stands for text has one at least.
        let texts = before.iter().enumerate().rev().filter(|(_, id)| !self.detokenizer.is_silent(**id));
        let from = texts.take(4).last().map_or(before.len(), |(i, _)| i);
        for &id in &before[from..] {
            self.detokenizer.push(id);
        }
        self
    }

    /// Whether no text has come yet, so that a space in front is dropped where the tokenizer adds one.
    pub fn at_start(&self) -> bool {
        self.detokenizer.at_start()
    }

    /// Adds a token.
    pub fn push(&mut self, id: TokenId) -> Piece {
        let text = self.detokenizer.push(id);
        if self.unsearched > 0 {
            self.unsearched -= 1;
            return Piece { text, stopped: None };
        }
        self.matcher.push(&text)
    }

    /// Ends the text: whatever was withheld. An incomplete character at the end becomes U+FFFD.
    pub fn finish(&mut self) -> Piece {
        let mut piece = self.matcher.push(&self.detokenizer.finish());
        piece.text.push_str(&self.matcher.finish());
        piece
    }
}
