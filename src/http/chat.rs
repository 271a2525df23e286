//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::watch;

use super::error::ApiError;
use super::generation::Generation;
use super::intake;
use super::prepare::{Prepared, new_id, prepare};
use super::state::{App, Stage, unix_seconds};
use super::stream::{self, ChatChunks, Dialect};
use super::tools::{Answered, finish_reason};
use super::traces::RequestSpan;
use super::vocabulary::Shown;
use super::wire::{ChatCompletion, Choice, Logprobs, Message, Usage};
use crate::engine::Scored;

/// What all bodies of one response share.
pub struct Identity {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// Name as asked for.
    pub model: String,
}

impl Identity {
    /// A new one, told to the request's span; `kind` is what the id begins with, such as `chatcmpl-`.
    pub fn new(kind: &str, model: String) -> Self {
        let identity = Self { id: new_id(kind), created: unix_seconds(), model };
        if let Some(span) = RequestSpan::current() {
            span.model(&identity.model);
            span.response(&identity.id);
        }
        identity
    }
}

/// Answers a chat request, streaming or not.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (model, prepared) = intake::prepared(&app, request, prepare).await?;
    let Prepared { chat, mut submission, calls } = prepared;
    let identity = Identity::new("chatcmpl-", chat.target.name);
    let active = app.enter()?;
    let mut generation = Generation::start(&model, &mut submission, "messages", arrived, active)?;
    let (common, vocabulary) = (chat.common, submission.vocabulary);
    if common.stream {
        let chunks = ChatChunks::new(generation.len(), vocabulary, submission.wants_logprobs, calls);
        let dialect = Dialect::Chat(chunks);
        generation.begun(app.limits.keep_alive, app.watch_stage()).await?;
        let wants = stream::Wants { usage: common.include_usage, keep_alive: app.limits.keep_alive };
        return Ok(stream::respond(generation, identity, dialect, wants, app.watch_stage()));
    }
    let (answers, usage) = collect(generation, app.watch_stage()).await?;
    let prompt_logprobs = common.prompt_logprobs.map(|top| vocabulary.prompt_logprobs(&answers[0].prompt, top));
    let choice = |(index, answer): (usize, Answer)| {
        let Answered { content, calls: tool_calls } = Answered::read(answer.text, calls.clone());
        Choice {
            index: index as u32,
            finish_reason: finish_reason(answer.finish_reason, tool_calls.len()),
            message: Message { role: "assistant", content, refusal: None, tool_calls },
            logprobs: submission.wants_logprobs.then(|| Logprobs {
                content: answer.tokens.into_iter().map(|shown| vocabulary.token_logprob(shown)).collect(),
                refusal: None,
            }),
        }
    };
    respond(&ChatCompletion {
        id: &identity.id,
        object: "chat.completion",
        created: identity.created,
        model: &identity.model,
        choices: answers.into_iter().enumerate().map(choice).collect(),
        prompt_logprobs,
        usage,
    })
}

/// Waits until the server gives up on what is running.
pub async fn deadline(stage: &mut watch::Receiver<Stage>) {
    if stage.wait_for(|s| *s == Stage::Deadline).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A whole answer.
#[derive(Default)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// The tokens of the text, if log-probabilities are asked for.
    pub tokens: Vec<Shown>,
    /// Scores of the prompt, if asked for.
    pub prompt: Vec<Scored>,
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Mean log-probability of its tokens, if they have any.
    pub mean_logprob: f64,
}

/// All answers, and what they took. When the client goes away this future is dropped, and with it the
/// sequences.
pub async fn collect(
    mut generation: Generation,
    mut stage: watch::Receiver<Stage>,
) -> Result<(Vec<Answer>, Usage), ApiError> {
    let mut answers: Vec<Answer> = (0..generation.len()).map(|_| Answer::default()).collect();
    let ended = async {
        while let Some(next) = generation.next().await {
            let (index, added) = next?;
            let answer = &mut answers[index];
            answer.text += &added.text;
            answer.tokens.extend(added.tokens);
            answer.prompt.extend(added.prompt);
            answer.finish_reason = added.finish_reason.unwrap_or(answer.finish_reason);
        }
        Ok(())
    };
    tokio::select! {
        result = ended => result?,
        () = deadline(&mut stage) => return Err(ApiError::DrainDeadline),
    }
    for (index, answer) in answers.iter_mut().enumerate() {
        answer.mean_logprob = generation.mean_logprob(index);
    }
    Ok((answers, generation.usage()))
}

/// A 200 with this as JSON.
pub fn respond(body: &impl Serialize) -> Result<Response, ApiError> {
    Ok(json(serde_json::to_vec(body).map_err(|_| ApiError::Internal)?))
}

/// A 200 with a JSON body.
pub fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
