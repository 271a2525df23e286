//! `POST /v1/responses`, without a memory: a request is made into a chat, and what the chat says into items.

mod answer;
mod input;
mod request;
pub mod wire;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;

pub use self::answer::Answer;
pub(super) use self::request::prepare;
use super::chat::{Identity, respond};
use super::error::ApiError;
use super::generation::Generation;
use super::intake;
use super::pieces::{Pieces, each};
use super::prepare::Prepared;
use super::state::App;
use super::stream::{self, Dialect};

/// Answers a request, streaming or not.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (model, (prepared, echo)) = intake::prepared(&app, request, prepare).await?;
    let Prepared { chat, mut submission, calls } = prepared;
    let identity = Identity::new("resp_", chat.target.name);
    let active = app.enter()?;
    let mut generation = Generation::start(&model, &mut submission, "input", arrived, active)?;
    let pieces = Pieces::new(submission.vocabulary, submission.wants_logprobs, calls);
    let mut answer = Answer::new(echo.response(&identity), pieces, chat.common.stream);
    if chat.common.stream {
        generation.begun(app.limits.keep_alive, app.watch_stage()).await?;
        let wants = stream::Wants { usage: true, keep_alive: app.limits.keep_alive };
        let dialect = Dialect::Responses(Box::new(answer));
        return Ok(stream::respond(generation, identity, dialect, wants, app.watch_stage()));
    }
    each(&mut generation, app.watch_stage(), |added| _ = answer.added(added)).await?;
    answer.end(generation.usage());
    respond(answer.response())
}
