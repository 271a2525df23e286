//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::Value;

use super::chat::respond;
use super::error::ApiError;
use super::fields::{self, Fields, wrong_type};
use super::intake;
use super::messages;
use super::prepare::{check_bytes, render};
use super::prompts::{encode_text, token_ids};
use super::state::{App, ServedModel};
use super::target::Target;
use super::template;
use super::tools::tell;
use super::wire::{Detokenized, Tokenized};

/// Token ids of a text or of a conversation.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (_, tokenized) = intake::prepared(&app, request, tokens).await?;
    respond(&tokenized)
}

/// The text of token ids, special tokens spelled.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (_, prompt) = intake::prepared(&app, request, text).await?;
    respond(&Detokenized { prompt })
}

pub(super) fn tokens(model: &ServedModel, body: &[u8]) -> Result<Tokenized, ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    Target::optional(&mut f, model)?;
    let return_token_strs = f.bool("return_token_strs")?.unwrap_or(false);
    let add_special = f.bool("add_special_tokens")?;
    let tokens = match (f.take("prompt"), f.take("messages")) {
        (Some(Value::String(prompt)), None) => {
            f.finish()?;
            encode_text(model, &prompt, add_special.unwrap_or(true), true, "prompt")?
        }
        (Some(other), None) => return Err(wrong_type("prompt", "a string", &other)),
        (None, Some(messages)) => {
            let (messages, bytes) = messages::parse(messages)?;
            check_bytes(model, bytes, "messages")?;
            let add_generation_prompt = f.bool("add_generation_prompt")?.unwrap_or(true);
            if f.bool("continue_final_message")? == Some(true) {
                return Err(ApiError::unsupported("continue_final_message", "must be false"));
            }
            if add_special == Some(true) {
                let message = "must be false for messages: the chat template says where a sequence begins";
                return Err(ApiError::unsupported("add_special_tokens", message));
            }
            let extra = template::kwargs(&mut f)?;
            f.finish()?;
            let messages = tell(model, messages, None)?.messages;
            render(model, &messages, add_generation_prompt, &extra)?
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::value("prompt", "invalid_value", "give either 'prompt' or 'messages'"));
        }
        (None, None) => return Err(ApiError::Missing("prompt".into())),
    };
    let spelling = |&id: &u32| model.tokenizer.token_str(id).unwrap_or_default().to_owned();
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: model.max_len(),
        token_strs: return_token_strs.then(|| tokens.iter().map(spelling).collect()),
        tokens,
    })
}

pub(super) fn text(model: &ServedModel, body: &[u8]) -> Result<String, ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    Target::optional(&mut f, model)?;
    let Some(tokens) = f.array("tokens")? else { return Err(ApiError::Missing("tokens".into())) };
    f.finish()?;
    Ok(model.tokenizer.decode(&token_ids(&tokens, "tokens", model.vocab_size)?, false))
}
