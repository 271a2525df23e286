//! All answers of a request while they are generated.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::choice::{Added, Choice};
use super::error::ApiError;
use super::metrics::Timing;
use super::prepare::Prepared;
use super::state::{Active, ServedModel};
use super::wire::Usage;
use crate::engine::SubmitError;
use crate::text::TextStream;

/// The `n` answers of an accepted request. Dropping it aborts what is not finished.
pub struct Generation {
    choices: Vec<Choice>,
    /// Where to look first, so that no choice is read more eagerly than the others.
    next: usize,
    unfinished: usize,
    prompt_tokens: usize,
    _active: Active,
}

impl Generation {
    /// Submits a request.
    pub fn start(
        model: &Arc<ServedModel>,
        prepared: &Prepared,
        arrived: Instant,
        active: Active,
    ) -> Result<Self, ApiError> {
        let chat = &prepared.chat;
        let streams = model.engine.submit(prepared.sequences.clone()).map_err(|e| match e {
            SubmitError::QueueFull { .. } => ApiError::QueueFull,
            SubmitError::TooLong { .. } => ApiError::ContextLength(format!("{e}.")),
            SubmitError::EmptyPrompt => {
                ApiError::value("messages", "invalid_value", "the chat template makes an empty prompt of them")
            }
            SubmitError::ShuttingDown => ApiError::Draining,
            SubmitError::Stopped => ApiError::EngineStopped,
        })?;
        model.metrics().accepted(prepared.prompt.len(), chat.n, prepared.max_tokens);
        let choices: Vec<_> = streams
            .into_iter()
            .zip(&prepared.sequences)
            .map(|(events, sequence)| {
                let text = TextStream::new(Arc::clone(&model.tokenizer), true, chat.stop.clone());
                let stop_token_ids = sequence.params.stop_token_ids.clone();
                let timing = Timing::new(arrived);
                Choice::new(Arc::clone(model), events, text, stop_token_ids, chat.logprobs.is_some(), timing)
            })
            .collect();
        let unfinished = choices.len();
        Ok(Self { choices, next: 0, unfinished, prompt_tokens: prepared.prompt.len(), _active: active })
    }

    /// What happens next and to which answer; `None` when all have finished. An error ends them all.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<(usize, Added), ApiError>> {
        if self.unfinished == 0 {
            return None;
        }
        let result = poll_fn(|context| {
            let n = self.choices.len();
            for index in (0..n).map(|i| (self.next + i) % n) {
                if let Poll::Ready(result) = self.choices[index].poll(context) {
                    self.next = (index + 1) % n;
                    return Poll::Ready(result.map(|added| (index, added)));
                }
            }
            Poll::Pending
        })
        .await;
        match &result {
            Ok((index, _)) if self.choices[*index].is_finished() => self.unfinished -= 1,
            Ok(_) => {}
            Err(_) => self.unfinished = 0,
        }
        Some(result)
    }

    /// Number of answers.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        let completion = self.choices.iter().map(Choice::tokens).sum();
        // The prompt is one; the other choices find it in the cache by design.
        let cached = self.choices.first().map_or(0, Choice::cached_tokens);
        Usage::new(self.prompt_tokens, cached, completion)
    }
}
