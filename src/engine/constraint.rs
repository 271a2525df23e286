//! What a sequence may generate: a mask of allowed tokens at each step.

use std::fmt;

use super::types::TokenId;

/// A state machine over tokens, of one sequence. It is moved by accepted tokens alone, so preemption and
/// recomputation leave it as it is.
pub trait Matcher: Send + Sync + fmt::Debug {
    /// A copy for another sequence, which then goes its own way.
    fn fork(&self) -> Box<dyn Matcher>;

    /// Writes which tokens may come next: bit `i % 32` of word `i / 32`. Where the text is complete, the tokens
    /// that end it are among them.
    ///
    /// # Errors
    /// One clause that says why nothing can be allowed.
    fn mask(&mut self, mask: &mut Vec<u32>) -> Result<(), String>;

    /// Takes a token that the mask allowed and that does not end the sequence.
    ///
    /// # Errors
    /// One clause that says why it cannot.
    fn accept(&mut self, token: TokenId) -> Result<(), String>;
}

impl Clone for Box<dyn Matcher> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// A sequence's matcher and its mask for the next token.
#[derive(Debug)]
pub(super) struct Guide {
    matcher: Box<dyn Matcher>,
    mask: Vec<u32>,
    /// Whether `mask` is that of the matcher's state.
    ready: bool,
    stuck: Option<String>,
}

impl Guide {
    pub fn new(matcher: Box<dyn Matcher>) -> Self {
        Self { matcher, mask: Vec::new(), ready: false, stuck: None }
    }

    /// Works out the mask, once for each token. Where nothing is allowed it is empty, which fails the row.
    pub fn prepare(&mut self) {
        if std::mem::replace(&mut self.ready, true) {
            return;
        }
        let result = self.matcher.mask(&mut self.mask);
        let nothing = || self.mask.iter().all(|word| *word == 0);
        self.stuck = match result {
            Ok(()) if nothing() => Some("no token can follow".into()),
            Ok(()) => None,
            Err(reason) => Some(reason),
        };
        if self.stuck.is_some() {
            self.mask.clear();
        }
    }

    /// Whether the mask is worked out.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Allowed tokens, after [`prepare`](Self::prepare).
    pub fn mask(&self) -> &[u32] {
        debug_assert!(self.ready, "the mask is prepared before sampling");
        &self.mask
    }

    /// Why no token is allowed.
    pub fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    /// Takes an accepted token.
    pub fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.ready = false;
        self.matcher.accept(token)
    }
}

/// A mask to be worked out. It depends on its own sequence's tokens alone, so tasks may run in any order and on any
/// threads.
#[derive(Debug)]
pub struct MaskTask<'a>(pub(super) &'a mut Guide);

impl MaskTask<'_> {
    /// Works it out; once is enough.
    pub fn run(&mut self) {
        self.0.prepare();
    }
}
