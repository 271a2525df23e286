//! All answers of a request while they are generated.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::choice::{Added, Choice};
use super::error::ApiError;
use super::metrics::Timing;
use super::state::{Active, ServedModel};
use super::vocabulary::Vocabulary;
use super::wire::Usage;
use crate::engine::{EventStream, Request, SamplingParams, SubmitError, TokenId};
use crate::text::TextStream;

/// Sequences to submit together, and how their answers are read.
pub struct Submission {
    /// Prompt by prompt, the choices of each side by side; empty once submitted.
    pub sequences: Vec<Request>,
    /// Choices of each prompt; at least 1.
    pub per_prompt: usize,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Whether log-probabilities of the answer's tokens are wanted.
    pub wants_logprobs: bool,
    /// Whether answers continue the text of the prompt, rather than begin their own.
    pub continues: bool,
    /// Names of tokens.
    pub vocabulary: Vocabulary,
}

/// Submits sequences, all or none. `param` is the field that errors name.
pub fn submit(model: &ServedModel, sequences: Vec<Request>, param: &'static str) -> Result<Vec<EventStream>, ApiError> {
    model.engine.submit(sequences).map_err(|e| match e {
        SubmitError::QueueFull { .. } => ApiError::QueueFull,
        SubmitError::TooLong { .. } => ApiError::ContextLength { param: param.into(), message: format!("{e}.") },
        SubmitError::EmptyPrompt => ApiError::value(param, "invalid_value", "it makes an empty prompt"),
        SubmitError::ShuttingDown => ApiError::Draining,
        SubmitError::Stopped => ApiError::EngineStopped,
    })
}

/// The answers of an accepted request. Dropping it aborts what is not finished.
pub struct Generation {
    choices: Vec<Choice>,
    per_prompt: usize,
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
        submission: &mut Submission,
        param: &'static str,
        arrived: Instant,
        active: Active,
    ) -> Result<Self, ApiError> {
        let sequences = std::mem::take(&mut submission.sequences);
        let submission = &*submission;
        let per_prompt = submission.per_prompt;
        let asked: Vec<_> = sequences.iter().map(|s| (Arc::clone(&s.prompt), Arc::clone(&s.params))).collect();
        let streams = submit(model, sequences, param)?;
        let mut prompt_tokens = 0;
        for (prompt, params) in asked.iter().step_by(per_prompt) {
            prompt_tokens += prompt.len();
            model.metrics().accepted(prompt.len(), per_prompt as u32, params.max_tokens);
        }
        let choice = |(events, (prompt, params)): (EventStream, (Arc<[TokenId]>, Arc<SamplingParams>))| {
            let vocabulary = submission.vocabulary.clone();
            let mut text =
                TextStream::new(Arc::clone(&model.tokenizer), vocabulary.skip_special, submission.stop.clone())
                    .stopping_after(params.min_tokens);
            if submission.continues {
                text = text.continuing(&prompt);
            }
            let stop_token_ids = params.stop_token_ids.clone();
            let (wants, timing) = (submission.wants_logprobs, Timing::new(arrived));
            Choice::new(
                Arc::clone(model),
                events,
                text,
                vocabulary,
                stop_token_ids,
                wants,
                submission.continues,
                timing,
            )
        };
        let choices: Vec<_> = streams.into_iter().zip(asked).map(choice).collect();
        let unfinished = choices.len();
        Ok(Self { choices, per_prompt, next: 0, unfinished, prompt_tokens, _active: active })
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

    /// Mean log-probability of an answer's tokens.
    pub fn mean_logprob(&self, index: usize) -> f64 {
        self.choices[index].mean_logprob()
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        let completion = self.choices.iter().map(Choice::tokens).sum();
        // Each prompt counts once; its other choices find it in the cache by design.
        let cached = self.choices.iter().step_by(self.per_prompt).map(Choice::cached_tokens).sum();
        Usage::new(self.prompt_tokens, cached, completion)
    }
}
