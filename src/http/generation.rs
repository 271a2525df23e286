//! All answers of a request while they are generated.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until, timeout};

use super::caller::Caller;
use super::chat::deadline;
use super::choice::{Added, Choice};
use super::error::ApiError;
use super::metrics::Timing;
use super::state::{Active, ServedModel, Stage};
use super::traces::Generated;
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

/// Submits sequences on the caller's account, all or none. `param` is the field that errors name.
pub fn submit(
    model: &ServedModel,
    mut sequences: Vec<Request>,
    param: &'static str,
) -> Result<Vec<EventStream>, ApiError> {
    let (caller, now) = (Caller::current(), Instant::now());
    let Some(tenant) = caller.tenant() else { return enqueue(model, sequences, param, now) };
    let config = model.engine.config();
    // One key does not fill the queue for the others. Alone, a request may be as large as it likes, as in the engine.
    if tenant.queued() > 0 && tenant.queued() + sequences.len() > config.max_queued_requests.div_ceil(2) {
        return Err(full(model, now, tenant.queued()));
    }
    // The choices of a prompt share it.
    let first = |s: &&Request| s.params.choice == 0;
    let prompt_tokens: usize = sequences.iter().filter(first).map(|s| s.prompt.len()).sum();
    tenant.take_prompt(prompt_tokens, now)?;
    let account = tenant.account();
    for sequence in &mut sequences {
        sequence.tenant = account;
        if caller.isolated {
            let salt = sequence.cache_salt.as_deref().unwrap_or_default();
            sequence.cache_salt = Some(format!("{}/{salt}", account.id).into());
        }
    }
    enqueue(model, sequences, param, now).inspect_err(|_| tenant.give_back(prompt_tokens))
}

/// The queue is full; when it will not be.
fn full(model: &ServedModel, now: Instant, queued: usize) -> ApiError {
    let left = model.engine.stats().dequeued.load(Relaxed);
    ApiError::QueueFull { retry_after: model.drain.retry_after(now, left, queued) }
}

fn enqueue(
    model: &ServedModel,
    sequences: Vec<Request>,
    param: &'static str,
    now: Instant,
) -> Result<Vec<EventStream>, ApiError> {
    model.drain.observe(now, model.engine.stats().dequeued.load(Relaxed));
    model.engine.submit(sequences).map_err(|e| match e {
        SubmitError::QueueFull { queued_requests, .. } => full(model, now, queued_requests),
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
    /// What came while the first event was waited for.
    ahead: Option<(usize, Added)>,
    active: Active,
    /// Rings at the next of its times.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Whether the time is over: what is unfinished ends here.
    over: bool,
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
        if let (Some(span), Some((_, params))) = (&active.span, asked.first()) {
            span.asked(params, per_prompt);
        }
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
        let first = active.queue_until.into_iter().chain(active.until).min();
        Ok(Self {
            choices,
            per_prompt,
            next: 0,
            unfinished,
            prompt_tokens,
            ahead: None,
            active,
            alarm: first.map(|at| Box::pin(sleep_until(at))),
            over: false,
        })
    }

    /// Waits until something happens, `patience` at most: what goes wrong until then can still be told by a status.
    pub async fn begun(&mut self, patience: Duration, mut stage: watch::Receiver<Stage>) -> Result<(), ApiError> {
        tokio::select! {
            next = timeout(patience, self.next()) => if let Ok(Some(next)) = next {
                self.ahead = Some(next?);
            },
            () = deadline(&mut stage) => return Err(ApiError::DrainDeadline),
        }
        Ok(())
    }

    /// Tells its span that it ends in an error.
    pub fn failed(&self, error: &ApiError) {
        if let Some(span) = &self.active.span {
            span.failed(error.code(), true);
        }
    }

    /// When it ends in any case.
    pub fn until(&self) -> Option<tokio::time::Instant> {
        self.active.until
    }

    /// What happens next and to which answer; `None` when all have finished. An error ends them all.
    /// Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<(usize, Added), ApiError>> {
        if let Some(ahead) = self.ahead.take() {
            return Some(Ok(ahead));
        }
        if self.unfinished == 0 {
            return None;
        }
        let result = poll_fn(|context| {
            let n = self.choices.len();
            while !self.over && self.rings(context) {
                if let Some(error) = self.expired() {
                    return Poll::Ready(Err(error));
                }
            }
            if self.over
                && let Some(index) = (0..n).find(|&i| !self.choices[i].is_finished())
            {
                return Poll::Ready(Ok((index, self.choices[index].cut())));
            }
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

    /// Whether a time is up. Polls the alarm, so that it wakes whoever waits.
    fn rings(&mut self, context: &mut Context<'_>) -> bool {
        self.alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(context).is_ready())
    }

    /// What a time that is up means: an error if there is nothing of an answer, or else the end of them all. Sets the
    /// alarm to the next time.
    fn expired(&mut self) -> Option<ApiError> {
        let now = tokio::time::Instant::now();
        if self.active.queue_until.is_some_and(|at| at <= now) {
            if !self.choices.iter().any(Choice::is_begun) {
                return Some(self.active.not_begun());
            }
            self.active.queue_until = None;
        }
        if self.active.until.is_some_and(|at| at <= now) {
            if self.choices.iter().all(|choice| choice.tokens() == 0) {
                return Some(self.active.too_long());
            }
            self.over = true;
        }
        let next = self.active.queue_until.into_iter().chain(self.active.until).min();
        self.alarm = next.map(|at| Box::pin(sleep_until(at)));
        None
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

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(span) = &self.active.span {
            span.generated(Generated {
                usage: self.usage(),
                timings: self.choices.iter().map(Choice::timing).collect(),
                reasons: self.choices.iter().map(Choice::reason).collect(),
            });
        }
    }
}
