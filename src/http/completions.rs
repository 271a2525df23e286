//! `POST /v1/completions`.

mod legacy;
mod request;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;

use self::legacy::{Echo, Legacy};
use self::request::Prepared;
pub(super) use self::request::prepare;
use super::chat::{Answer, Identity, collect, respond};
use super::choice::Added;
use super::error::ApiError;
use super::generation::Generation;
use super::intake;
use super::state::App;
use super::stream::{self, ChunkUsage, Dialect};
use super::wire::{Completion, CompletionChoice};
use crate::engine::Scored;

/// Continues prompts, streaming or not.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (model, mut prepared) = intake::prepared(&app, request, prepare).await?;
    let identity = Identity::new("cmpl-", prepared.request.target.name.clone());
    let active = app.enter()?;
    let mut generation = Generation::start(&model, &mut prepared.submission, "prompt", arrived, active)?;
    if prepared.request.common.stream {
        generation.begun(app.limits.keep_alive, app.watch_stage()).await?;
        let wants = stream::Wants { usage: prepared.request.common.include_usage, keep_alive: app.limits.keep_alive };
        let dialect = Dialect::Text(TextChunks::new(&prepared));
        return Ok(stream::respond(generation, identity, dialect, wants, app.watch_stage()));
    }
    let (answers, usage) = collect(generation, app.watch_stage()).await?;
    respond(&Completion {
        id: &identity.id,
        object: "text_completion",
        created: identity.created,
        model: &identity.model,
        choices: choices(&prepared, answers),
        usage: Some(Some(usage)),
    })
}

/// The best `n` answers to each prompt.
fn choices(prepared: &Prepared, answers: Vec<Answer>) -> Vec<CompletionChoice> {
    let Prepared { request, submission, echoes } = prepared;
    let n = request.common.n as usize;
    let mut choices = Vec::with_capacity(echoes.len() * n);
    let mut answers = answers.into_iter();
    for (prompt, echo) in echoes.iter().enumerate() {
        let mut candidates: Vec<Answer> = answers.by_ref().take(submission.per_prompt).collect();
        // The first one's sequence scored the prompt.
        let scores = candidates.first_mut().map(|first| std::mem::take(&mut first.prompt)).unwrap_or_default();
        if candidates.len() > n {
            // Stable: of equals the earlier choice.
            candidates.sort_by(|a, b| b.mean_logprob.total_cmp(&a.mean_logprob));
            candidates.truncate(n);
        }
        for (i, answer) in candidates.into_iter().enumerate() {
            let mut logprobs = None;
            if let Some(top) = request.logprobs {
                let mut legacy = Legacy::new(submission.vocabulary.clone(), top);
                let mut arrays = echo.as_deref().map(|echo| legacy.prompt(echo, &scores)).unwrap_or_default();
                legacy.answer(&mut arrays, answer.tokens);
                logprobs = Some(arrays);
            }
            let echoed = echo.as_deref().map_or("", |echo| &echo.text);
            choices.push(CompletionChoice {
                index: (prompt * n + i) as u32,
                text: format!("{echoed}{}", answer.text),
                logprobs,
                finish_reason: Some(answer.finish_reason),
                prompt_logprobs: request
                    .common
                    .prompt_logprobs
                    .map(|top| submission.vocabulary.prompt_logprobs(&scores, top)),
            });
        }
    }
    choices
}

/// Chunks of completions.
pub struct TextChunks {
    answers: Vec<Begun>,
}

/// One answer so far.
struct Begun {
    /// The prompt, until it has been sent.
    echo: Option<Arc<Echo>>,
    /// Scores of the prompt so far.
    scores: Vec<Scored>,
    /// If log-probabilities are wanted.
    legacy: Option<Legacy>,
}

impl TextChunks {
    fn new(prepared: &Prepared) -> Self {
        let Prepared { request, submission, echoes } = prepared;
        let answer = |index: usize| Begun {
            echo: echoes[index / submission.per_prompt].clone(),
            scores: Vec::new(),
            legacy: request.logprobs.map(|top| Legacy::new(submission.vocabulary.clone(), top)),
        };
        Self { answers: (0..echoes.len() * submission.per_prompt).map(answer).collect() }
    }

    /// The JSON of the chunks that tell of `added`: the prompt first, if it is echoed.
    pub fn chunks(&mut self, identity: &Identity, index: usize, added: Added, usage: ChunkUsage) -> Vec<String> {
        let mut chunks = Vec::new();
        let mut push = |text, logprobs, finish_reason| {
            let index = index as u32;
            let choice = CompletionChoice { index, text, logprobs, finish_reason, prompt_logprobs: None };
            chunks.push(Self::chunk(identity, vec![choice], usage));
        };
        let Begun { echo, scores, legacy } = &mut self.answers[index];
        scores.extend(added.prompt);
        // Scores come before the first token.
        let ready = |echo: &mut Arc<Echo>| legacy.is_none() || scores.len() + 1 == echo.tokens.len();
        if let Some(echo) = echo.take_if(ready) {
            let logprobs = legacy.as_mut().map(|legacy| legacy.prompt(&echo, scores));
            push(echo.text.clone(), logprobs, None);
        }
        if !added.text.is_empty() || !added.tokens.is_empty() || added.finish_reason.is_some() {
            let logprobs = legacy.as_mut().filter(|_| !added.tokens.is_empty()).map(|legacy| {
                let mut arrays = Default::default();
                legacy.answer(&mut arrays, added.tokens);
                arrays
            });
            push(added.text, logprobs, added.finish_reason);
        }
        chunks
    }

    /// A chunk's JSON.
    pub fn chunk(identity: &Identity, choices: Vec<CompletionChoice>, usage: ChunkUsage) -> String {
        let chunk = Completion {
            id: &identity.id,
            object: "text_completion",
            created: identity.created,
            model: &identity.model,
            choices,
            usage,
        };
        serde_json::to_string(&chunk).expect("plain data serialises")
    }
}
