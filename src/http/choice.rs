//! One of the `n` answers while it is generated: events of the engine become text, log-probabilities
//! and a finish reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::error::ApiError;
use super::metrics::Timing;
use super::state::ServedModel;
use super::vocabulary::{Shown, Vocabulary, clamp};
use crate::engine::{EngineError, Event, EventStream, FinishReason, Sampled, Scored, TokenId};
use crate::text::{Piece, TextStream};

/// What an event adds to an answer; all empty for most events of a withheld text.
#[derive(Debug, Default, PartialEq)]
pub struct Added {
    /// Text that is final.
    pub text: String,
    /// The tokens of that text, if log-probabilities are asked for.
    pub tokens: Vec<Shown>,
    /// Scores of the prompt's next tokens, if asked for.
    pub prompt: Vec<Scored>,
    /// Why it ended, with the last piece.
    pub finish_reason: Option<&'static str>,
    /// Which of the stop strings ended it, if one did.
    pub stop: Option<usize>,
}

/// An answer being generated.
pub struct Choice {
    model: Arc<ServedModel>,
    /// `None` once it has ended.
    events: Option<EventStream>,
    text: TextStream,
    vocabulary: Vocabulary,
    stop_token_ids: Vec<TokenId>,
    wants_logprobs: bool,
    /// Whether the token that ends the answer is one of its tokens: it is in completions, and not in chats.
    lists_end: bool,
    /// Tokens whose text is withheld.
    pending: VecDeque<Shown>,
    /// Bytes of the tokens that left `pending`.
    released: usize,
    /// Bytes of text returned.
    returned: usize,
    timing: Timing,
    cached_tokens: usize,
    sum_logprob: f64,
    /// Why it ended, if it ended well.
    reason: Option<&'static str>,
}

impl Choice {
    /// An answer read from `events`.
    pub fn new(
        model: Arc<ServedModel>,
        events: EventStream,
        text: TextStream,
        vocabulary: Vocabulary,
        stop_token_ids: Vec<TokenId>,
        wants_logprobs: bool,
        lists_end: bool,
        timing: Timing,
    ) -> Self {
        Self {
            model,
            events: Some(events),
            text,
            vocabulary,
            stop_token_ids,
            wants_logprobs,
            lists_end,
            pending: VecDeque::new(),
            released: 0,
            returned: 0,
            timing,
            cached_tokens: 0,
            sum_logprob: 0.0,
            reason: None,
        }
    }

    /// Whether the engine has taken it up.
    pub fn is_begun(&self) -> bool {
        self.timing.is_scheduled()
    }

    /// When things happened to it.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Why it ended; `abort` if it has not, or badly.
    pub fn reason(&self) -> &'static str {
        self.reason.unwrap_or("abort")
    }

    /// Ends it here, as if its limit of tokens were reached.
    pub fn cut(&mut self) -> Added {
        let mut added = Added::default();
        let rest = self.text.finish();
        if !self.shown(rest, &mut added) {
            while !self.pending.is_empty() {
                self.release(&mut added);
            }
            self.finish(&mut added, "length");
        }
        added
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

    /// Mean log-probability of its tokens, where they have any; 0 without tokens.
    pub fn mean_logprob(&self) -> f64 {
        self.sum_logprob / self.tokens().max(1) as f64
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
            Event::PromptLogprobs(scores) => added.prompt = scores,
            // Comes where vectors are asked for only.
            Event::Pooled(_) => {}
            Event::Token(sampled) => {
                self.timing.token(self.model.metrics());
                self.sum_logprob += f64::from(clamp(sampled.logprob));
                // A stop token ends the sequence and has no text.
                if !self.stop_token_ids.contains(&sampled.token) {
                    self.push(sampled, &mut added);
                } else if self.wants_logprobs && self.lists_end {
                    self.pending.push_back(Shown { bytes: Vec::new(), sampled });
                }
            }
            Event::Finished(reason) => {
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
                let error = engine_error(error);
                self.timing.failed(self.model.metrics(), error.code());
                return Err(error);
            }
        }
        Ok(added)
    }

    /// Adds a token's text.
    fn push(&mut self, sampled: Sampled, added: &mut Added) {
        if self.wants_logprobs {
            let mut bytes = self.vocabulary.bytes(sampled.token);
            if self.text.at_start() {
                // The dummy space in front of a text is not part of it.
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
            self.pending.push_back(Shown { bytes: bytes.to_vec(), sampled: sampled.clone() });
        }
        let piece = self.text.push(sampled.token);
        self.shown(piece, added);
    }

    /// Adds a piece and the log-probabilities of what it shows. True if a stop string ended the answer.
    fn shown(&mut self, piece: Piece, added: &mut Added) -> bool {
        let stopped = piece.stopped.is_some();
        added.stop = piece.stopped;
        self.returned += piece.text.len();
        added.text += &piece.text;
        while let Some(bytes) = self.pending.front().map(|shown| shown.bytes.len())
            && self.released + bytes <= self.returned
            && !(stopped && self.released >= self.returned)
        {
            self.release(added);
        }
        if stopped {
            // The token in which the stop string begins counts as far as its bytes are visible.
            let visible = self.returned.saturating_sub(self.released);
            if let Some(mut shown) = self.pending.pop_front().filter(|_| visible > 0) {
                shown.bytes.truncate(visible);
                added.tokens.push(shown);
            }
            self.finish(added, "stop");
        }
        stopped
    }

    fn release(&mut self, added: &mut Added) {
        if let Some(shown) = self.pending.pop_front() {
            self.released += shown.bytes.len();
            added.tokens.push(shown);
        }
    }

    /// Dropping the events aborts the sequence, if it is not over.
    fn finish(&mut self, added: &mut Added, reason: &'static str) {
        self.events = None;
        added.finish_reason = Some(reason);
        self.reason = Some(reason);
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

/// What a client is told of a failure in the engine.
pub fn engine_error(error: EngineError) -> ApiError {
    match error {
        EngineError::Aborted => ApiError::DrainDeadline,
        EngineError::Stopped => ApiError::EngineStopped,
        EngineError::Constraint(reason) => ApiError::Constraint(reason),
        EngineError::Step(_) | EngineError::Row(_) => {
            tracing::error!("{error}");
            ApiError::Engine
        }
    }
}
