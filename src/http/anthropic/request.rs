//! The body of a request: its fields become a chat's.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::conversation::{self, cached};
use crate::http::error::{ApiError, quote};
use crate::http::fields::{self, Fields};
use crate::http::generation::Submission;
use crate::http::prepare;
use crate::http::request::ChatRequest;
use crate::http::state::ServedModel;
use crate::http::tools::CallParser;
use crate::http::translation::{EXTENSIONS, Translation, one_of, refuse};

/// A conversation that fits, ready to be submitted.
pub struct Prepared {
    /// As a chat.
    pub chat: ChatRequest,
    /// The one answer.
    pub submission: Submission,
    /// What reads its calls.
    pub calls: Option<CallParser>,
    /// Whether the limit of the answer is the end of the context, and not what was asked for.
    pub at_end_of_context: bool,
}

/// Parses, validates, renders and tokenises. An answer may be asked for that is longer than the context has room for;
/// then it ends there.
pub fn prepare(model: &ServedModel, body: &[u8]) -> Result<Prepared, ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    let mut chat = translate(&mut f)?;
    let Some(max_tokens) = f.integer("max_tokens", 1, i64::MAX)? else {
        return Err(ApiError::Missing("max_tokens".into()));
    };
    let max_tokens = u32::try_from(max_tokens).unwrap_or(u32::MAX);
    sampling(&mut f, &mut chat)?;
    f.finish()?;
    let prepare::Prepared { chat, mut submission, calls } = chat.prepare(model)?;
    chat.common.check_min_tokens(max_tokens)?;
    let mut at_end_of_context = false;
    for sequence in &mut submission.sequences {
        let params = Arc::make_mut(&mut sequence.params);
        at_end_of_context = params.max_tokens < max_tokens;
        params.max_tokens = params.max_tokens.min(max_tokens);
    }
    Ok(Prepared { chat, submission, calls, at_end_of_context })
}

/// Counts the tokens of the prompt.
pub fn count(model: &ServedModel, body: &[u8]) -> Result<usize, ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    let chat = translate(&mut f)?;
    f.finish()?;
    Ok(chat.prepare(model)?.submission.sequences[0].prompt.len())
}

/// The fields that make the prompt.
fn translate(f: &mut Fields) -> Result<Translation, ApiError> {
    let mut chat = Translation::default();
    chat.set("model", "model", f.require("model")?);
    conversation::system(&mut chat, f.take("system"))?;
    conversation::messages(&mut chat, f.require("messages")?)?;
    tools(f, &mut chat)?;
    tool_choice(f, &mut chat)?;
    output_config(f, &mut chat)?;
    cached(f)?;
    if let Some(mut thinking) = f.object("thinking")? {
        if one_of(&mut thinking, "type", &["disabled", "enabled", "adaptive", "between_tools"])? != Some("disabled") {
            return Err(ApiError::unsupported("thinking", "must be disabled: the model has no reasoning of its own"));
        }
        thinking.finish()?;
    }
    one_of(f, "speed", &["standard"])?;
    let names = ["container", "diagnostics", "inference_geo", "user_profile_id", "workspace_id", "context_management"];
    refuse(f, &names, "is not supported by this server")?;
    if f.array("mcp_servers")?.is_some_and(|servers| !servers.is_empty()) {
        return Err(ApiError::unsupported("mcp_servers", "is not supported by this server"));
    }
    Ok(chat)
}

/// The fields that say how the answer is made.
fn sampling(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    if let Some(temperature) = f.take("temperature") {
        fields::number("temperature", &temperature, 0.0, 1.0)?;
        chat.set("temperature", "temperature", temperature);
    }
    if let Some(stops) = f.array("stop_sequences")? {
        chat.set("stop", "stop_sequences", Value::Array(stops));
    }
    if let Some(mut metadata) = f.object("metadata")? {
        if let Some(user) = metadata.take("user_id") {
            chat.set("user", "metadata.user_id", user);
        }
        metadata.finish()?;
    }
    one_of(f, "service_tier", &["auto", "standard_only"])?;
    chat.pass(f, &["top_p", "top_k", "stream"]);
    chat.pass(f, &EXTENSIONS);
    Ok(())
}

fn tools(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    let mut functions = Vec::new();
    for (i, tool) in f.array("tools")?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut f = Fields::new(path.as_str(), tool)?;
        if let Some(other) = f.string("type")?.filter(|kind| kind != "custom") {
            let message = format!("'{}' is not supported: only tools of the client's own are", quote(&other));
            return Err(ApiError::unsupported(f.param("type"), message));
        }
        let mut function = Map::from_iter([
            ("name".to_owned(), f.require("name")?),
            ("parameters".to_owned(), f.require("input_schema")?),
        ]);
        for name in ["description", "strict"] {
            function.extend(f.take(name).map(|value| (name.to_owned(), value)));
        }
        cached(&mut f)?;
        // Input comes as it is generated in any case.
        f.bool("eager_input_streaming")?;
        if f.bool("defer_loading")? == Some(true) {
            return Err(ApiError::unsupported(f.param("defer_loading"), "must be false"));
        }
        refuse(&mut f, &["input_examples", "allowed_callers"], "is not supported by this server")?;
        f.finish()?;
        functions.push(json!({"type": "function", "function": function}));
        chat.rename(format!("{path}.function.parameters"), format!("{path}.input_schema"));
        chat.rename(format!("{path}.function"), path);
    }
    if !functions.is_empty() {
        chat.set("tools", "tools", Value::Array(functions));
    }
    Ok(())
}

fn tool_choice(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    let Some(mut f) = f.object("tool_choice")? else { return Ok(()) };
    let Some(kind) = one_of(&mut f, "type", &["auto", "any", "tool", "none"])? else {
        return Err(ApiError::Missing(f.param("type")));
    };
    if let Some(one) = f.bool("disable_parallel_tool_use")? {
        chat.set("parallel_tool_calls", "tool_choice.disable_parallel_tool_use", (!one).into());
    }
    let choice = match kind {
        "any" => "required".into(),
        "tool" => json!({"type": "function", "function": {"name": f.require("name")?}}),
        other => other.into(),
    };
    chat.rename("tool_choice.function", "tool_choice");
    chat.set("tool_choice", "tool_choice", choice);
    f.finish()
}

/// `output_config`: the format of the answer.
fn output_config(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    let Some(mut config) = f.object("output_config")? else { return Ok(()) };
    refuse(&mut config, &["effort"], "is not supported: the model has no reasoning of its own")?;
    if let Some(mut format) = config.object("format")? {
        if one_of(&mut format, "type", &["json_schema"])?.is_none() {
            return Err(ApiError::Missing(format.param("type")));
        }
        let schema = json!({"name": "output", "strict": true, "schema": format.require("schema")?});
        format.finish()?;
        let format = json!({"type": "json_schema", "json_schema": schema});
        chat.rename("response_format.json_schema", "output_config.format");
        chat.set("response_format", "output_config.format", format);
    }
    config.finish()
}
