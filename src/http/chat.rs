//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use super::body;
use super::error::ApiError;
use super::generation::Generation;
use super::prepare::{Prepared, prepare, random};
use super::state::{App, ServedModel, Stage, unix_seconds};
use super::stream;
use super::wire::{ChatCompletion, Choice, Logprobs, Message, TokenLogprob};

/// What all bodies of one response share.
pub struct Identity {
    /// `chatcmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// Name as asked for.
    pub model: String,
}

/// Answers a chat request, streaming or not.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    if app.stage() > Stage::Serving {
        return Err(ApiError::Draining);
    }
    let model = Arc::clone(app.loaded()?);
    body::require_json(request.headers())?;
    let bytes = body::read(request, &app.limits).await?;
    let prepared = off_thread(&app, &model, bytes).await?;

    let active = app.enter()?;
    let generation = Generation::start(&model, &prepared, arrived, active)?;
    let id = format!("chatcmpl-{:016x}{:016x}", random(), random());
    let identity = Identity { id, created: unix_seconds(), model: prepared.chat.model };
    if prepared.chat.stream {
        let wants = stream::Wants {
            usage: prepared.chat.include_usage,
            logprobs: prepared.chat.logprobs.is_some(),
            keep_alive: app.limits.keep_alive,
        };
        return Ok(stream::respond(generation, identity, wants, app.watch_stage()));
    }
    collect(generation, &identity, prepared.chat.logprobs.is_some(), app.watch_stage()).await
}

async fn off_thread(app: &App, model: &Arc<ServedModel>, bytes: Vec<u8>) -> Result<Prepared, ApiError> {
    let permit = Arc::clone(&app.preparing).acquire_owned().await.map_err(|_| ApiError::Internal)?;
    let model = Arc::clone(model);
    let work = move || {
        // Held until the work is done, even when the client has gone.
        let _permit = permit;
        prepare(&model, &bytes)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        tracing::error!("preparing a request failed: {e}");
        ApiError::Internal
    })?
}

/// Waits until the server gives up on what is running.
pub async fn deadline(stage: &mut watch::Receiver<Stage>) {
    if stage.wait_for(|s| *s == Stage::Deadline).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The whole answer in one body. When the client goes away this future is dropped, and with it the
/// sequences.
async fn collect(
    mut generation: Generation,
    identity: &Identity,
    wants_logprobs: bool,
    mut stage: watch::Receiver<Stage>,
) -> Result<Response, ApiError> {
    #[derive(Default)]
    struct Answer {
        text: String,
        logprobs: Vec<TokenLogprob>,
        finish_reason: &'static str,
    }
    let mut answers: Vec<Answer> = (0..generation.len()).map(|_| Answer::default()).collect();
    let ended = async {
        while let Some(next) = generation.next().await {
            let (index, added) = next?;
            let answer = &mut answers[index];
            answer.text += &added.text;
            answer.logprobs.extend(added.logprobs);
            answer.finish_reason = added.finish_reason.unwrap_or(answer.finish_reason);
        }
        Ok(())
    };
    tokio::select! {
        result = ended => result?,
        () = deadline(&mut stage) => return Err(ApiError::DrainDeadline),
    }
    let choice = |(index, answer): (usize, Answer)| Choice {
        index: index as u32,
        message: Message { role: "assistant", content: answer.text, refusal: None },
        logprobs: wants_logprobs.then_some(Logprobs { content: answer.logprobs, refusal: None }),
        finish_reason: answer.finish_reason,
    };
    let completion = ChatCompletion {
        id: &identity.id,
        object: "chat.completion",
        created: identity.created,
        model: &identity.model,
        choices: answers.into_iter().enumerate().map(choice).collect(),
        usage: generation.usage(),
    };
    Ok(json(serde_json::to_vec(&completion).map_err(|_| ApiError::Internal)?))
}

/// A 200 with a JSON body.
pub fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
