//! One of the `n` answers while it is generated: events of the engine become text, log-probabilities
//! and a finish reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::error::ApiError;
use super::metrics::Timing;
use super::state::ServedModel;
use super::wire::{TokenLogprob, TopLogprob};
use crate::engine::{EngineError, Event, EventStream, FinishReason, Sampled, TokenId};
use crate::text::{Piece, TextStream, Tokenizer};

/// What an event adds to an answer; all empty for most events of a withheld text.
#[derive(Debug, Default, PartialEq)]
pub struct Added {
    /// Text that is final.
    pub text: String,
    /// Of the tokens of that text, if asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended, with the last piece.
    pub finish_reason: Option<&'static str>,
}

/// An answer being generated.
pub struct Choice {
    model: Arc<ServedModel>,
    /// `None` once it has ended.
    events: Option<EventStream>,
    text: TextStream,
    stop_token_ids: Vec<TokenId>,
    /// A stop token, until it is known whether it ended the sequence.
    held: Option<Sampled>,
    wants_logprobs: bool,
    /// Log-probabilities of tokens whose text is withheld, with the raw bytes each has.
    pending: VecDeque<(TokenLogprob, usize)>,
    /// Raw bytes of the tokens that left `pending`.
    released: usize,
    /// Bytes of text returned.
    returned: usize,
    timing: Timing,
    cached_tokens: usize,
}

impl Choice {
    /// An answer read from `events`.
    pub fn new(
        model: Arc<ServedModel>,
        events: EventStream,
        text: TextStream,
        stop_token_ids: Vec<TokenId>,
        wants_logprobs: bool,
        timing: Timing,
    ) -> Self {
        Self {
            model,
            events: Some(events),
            text,
            stop_token_ids,
            held: None,
            wants_logprobs,
            pending: VecDeque::new(),
            released: 0,
            returned: 0,
            timing,
            cached_tokens: 0,
        }
    }

    /// Whether nothing follows.
    pub fn is_finished(&self) -> bool {
        self.events.is_none()
    }

    /// Tokens generated.
    pub fn tokens(&self) -> usize {
        self.timing.tokens()
    }

    /// Prompt tokens that were cached.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    /// What the next event adds; pending for ever once finished.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Added, ApiError>> {
        let Some(events) = &mut self.events else { return Poll::Pending };
        events.poll_recv(context).map(|event| self.apply(event.unwrap_or(Event::Failed(EngineError::Stopped))))
    }

    fn apply(&mut self, event: Event) -> Result<Added, ApiError> {
        let mut added = Added::default();
        match event {
            Event::Scheduled { cached_tokens } => {
                self.cached_tokens = cached_tokens;
                self.timing.scheduled(self.model.metrics());
            }
            Event::Token(sampled) => {
                self.timing.token(self.model.metrics());
                let held = self.held.take();
                let newest = if self.stop_token_ids.contains(&sampled.token) {
                    self.held = Some(sampled);
                    None
                } else {
                    Some(sampled)
                };
                for token in held.into_iter().chain(newest) {
                    if self.push(token, &mut added) {
                        break;
                    }
                }
            }
            Event::Finished(reason) => {
                if let (FinishReason::Length, Some(held)) = (reason, self.held.take())
                    && self.push(held, &mut added)
                {
                    return Ok(added);
                }
                let rest = self.text.finish();
                if self.shown(rest, &mut added) {
                    return Ok(added);
                }
                while !self.pending.is_empty() {
                    self.release(&mut added);
                }
                self.finish(&mut added, if reason == FinishReason::Stop { "stop" } else { "length" });
            }
            Event::Failed(error) => {
                self.events = None;
                return Err(match error {
                    EngineError::Aborted => ApiError::DrainDeadline,
                    EngineError::Stopped => ApiError::EngineStopped,
                    EngineError::Step(_) | EngineError::Row(_) => {
                        tracing::error!("{error}");
                        ApiError::Engine
                    }
                });
            }
        }
        Ok(added)
    }

    /// Adds a token's text. True if a stop string ended the answer.
    fn push(&mut self, sampled: Sampled, added: &mut Added) -> bool {
        if self.wants_logprobs {
            let mut entry = token_logprob(&self.model.tokenizer, &sampled);
            if self.released == 0 && self.pending.is_empty() && self.model.tokenizer.strips_leading_space() {
                // The dummy space in front of a text is not part of it.
                if entry.bytes.first() == Some(&b' ') {
                    entry.bytes.remove(0);
                }
            }
            let bytes = entry.bytes.len();
            self.pending.push_back((entry, bytes));
        }
        let piece = self.text.push(sampled.token);
        self.shown(piece, added)
    }

    /// Adds a piece and the log-probabilities of what it shows. True if a stop string ended the answer.
    fn shown(&mut self, piece: Piece, added: &mut Added) -> bool {
        let stopped = piece.stopped.is_some();
        self.returned += piece.text.len();
        added.text += &piece.text;
        while let Some(&(_, bytes)) = self.pending.front()
            && self.released + bytes <= self.returned
            && !(stopped && self.released >= self.returned)
        {
            self.release(added);
        }
        if stopped {
            // The token in which the stop string begins counts as far as its bytes are visible.
            let visible = self.returned.saturating_sub(self.released);
            if let Some((mut entry, _)) = self.pending.pop_front().filter(|_| visible > 0) {
                entry.bytes.truncate(visible);
                added.logprobs.push(entry);
            }
            self.finish(added, "stop");
        }
        stopped
    }

    fn release(&mut self, added: &mut Added) {
        if let Some((entry, bytes)) = self.pending.pop_front() {
            self.released += bytes;
            added.logprobs.push(entry);
        }
    }

    /// Dropping the events aborts the sequence, if it is not over.
    fn finish(&mut self, added: &mut Added, reason: &'static str) {
        self.events = None;
        added.finish_reason = Some(reason);
        self.timing.finished(self.model.metrics(), reason);
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        if self.events.is_some() {
            self.timing.cancelled(self.model.metrics());
        }
    }
}

fn token_logprob(tokenizer: &Tokenizer, sampled: &Sampled) -> TokenLogprob {
    let top = |&(id, logprob): &(TokenId, f32)| {
        let (token, bytes) = describe(tokenizer, id);
        TopLogprob { token, logprob: clamp(logprob), bytes }
    };
    let (token, bytes) = describe(tokenizer, sampled.token);
    TokenLogprob { token, logprob: clamp(sampled.logprob), bytes, top_logprobs: sampled.top.iter().map(top).collect() }
}

/// The text and bytes of a token; a special token has its name and no bytes.
fn describe(tokenizer: &Tokenizer, id: TokenId) -> (String, Vec<u8>) {
    let bytes = tokenizer.token_bytes(id);
    if bytes.is_empty() {
        return (tokenizer.token_str(id).unwrap_or_default().to_owned(), Vec::new());
    }
    (String::from_utf8_lossy(bytes).into_owned(), bytes.to_vec())
}

/// The API's stand-in for "very unlikely" keeps JSON free of infinities.
fn clamp(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}
