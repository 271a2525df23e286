//! `POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients know them: a request is made into a
//! chat, and what the chat says into content blocks. Errors have Anthropic's shape on these paths.

mod answer;
mod conversation;
mod error;
mod request;
pub mod wire;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;

pub use self::answer::{Answer, PING};
use self::error::tag;
pub use self::error::{is_path, spell};
use self::request::Prepared;
pub(super) use self::request::{count, prepare};
use self::wire::TokenCount;
use super::chat::{Identity, respond};
use super::error::ApiError;
use super::generation::Generation;
use super::intake;
use super::pieces::{Pieces, each};
use super::router::RequestId;
use super::state::App;
use super::stream::{self, Dialect};

/// Answers a conversation, streaming or not.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let request_id = id_of(&request);
    let (model, prepared) = intake::prepared(&app, request, prepare).await?;
    let Prepared { chat, mut submission, calls, at_end_of_context } = prepared;
    let identity = Identity::new("msg_", chat.target.name);
    let active = app.enter()?;
    let mut generation = Generation::start(&model, &mut submission, "messages", arrived, active)?;
    let pieces = Pieces::new(submission.vocabulary, submission.wants_logprobs, calls);
    let mut answer = Answer::new(pieces, submission.stop, at_end_of_context, request_id.clone());
    if chat.common.stream {
        generation.begun(app.limits.keep_alive, app.watch_stage()).await?;
        let wants = stream::Wants { usage: true, keep_alive: app.limits.keep_alive };
        let dialect = Dialect::Messages(Box::new(answer));
        let mut response = stream::respond(generation, identity, dialect, wants, app.watch_stage());
        tag(&mut response, &request_id);
        return Ok(response);
    }
    each(&mut generation, app.watch_stage(), |added| answer.take(added)).await?;
    let mut response = respond(&answer.message(&identity, generation.usage()))?;
    tag(&mut response, &request_id);
    Ok(response)
}

/// How many tokens a conversation has.
pub async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let request_id = id_of(&request);
    let (_, tokens) = intake::prepared(&app, request, count).await?;
    let mut response = respond(&TokenCount { input_tokens: tokens })?;
    tag(&mut response, &request_id);
    Ok(response)
}

fn id_of(request: &Request) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}
