//! The body of a request: its fields become a chat's, and what the response repeats of them.

use serde_json::{Map, Value, json};

use super::input;
use super::wire::Response;
use crate::http::chat::Identity;
use crate::http::error::{ApiError, quote};
use crate::http::fields::{self, Fields, wrong_type};
use crate::http::prepare::Prepared;
use crate::http::state::ServedModel;
use crate::http::translation::{EXTENSIONS, Translation, one_of, refuse};

/// Fields that a chat has too, with the same meaning.
const SAME: [&str; 9] = [
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "prompt_cache_retention",
    "prompt_cache_options",
    "moderation",
    "service_tier",
    "stream",
];

/// What may be included beside the answer of a function-calling model; none of it is ever there.
const ABSENT: [&str; 7] = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// What a response repeats of the request.
pub struct Echo {
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<i64>,
    parallel_tool_calls: bool,
    prompt_cache_key: Option<String>,
    safety_identifier: Option<String>,
    user: Option<String>,
    temperature: f32,
    top_p: f32,
    top_logprobs: u32,
    text: Map<String, Value>,
    tool_choice: Value,
    tools: Vec<Value>,
    metadata: Map<String, Value>,
}

/// Parses, validates, renders and tokenises.
pub fn prepare(model: &ServedModel, body: &[u8]) -> Result<(Prepared, Echo), ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    let mut chat = Translation::default();
    chat.set("model", "model", f.require("model")?);
    let instructions = f.string("instructions")?;
    if let Some(text) = &instructions {
        let message = chat.message("instructions", json!({"role": "system", "content": text}));
        chat.rename(format!("{message}.content"), "instructions");
    }
    chat.rename("messages", "input");
    input::add(&mut chat, f.require("input")?)?;
    if let Some(max) = f.take("max_output_tokens") {
        chat.set("max_completion_tokens", "max_output_tokens", max);
    }
    include(&mut f, &mut chat)?;
    let text = text(&mut f, &mut chat)?;
    let tools = tools(&mut f, &mut chat)?;
    let tool_choice = tool_choice(&mut f, &mut chat)?;
    reasoning(&mut f, &mut chat)?;
    stateless(&mut f)?;
    let max_tool_calls = f.integer("max_tool_calls", 1, i64::MAX)?;
    let labels = ["user", "safety_identifier", "prompt_cache_key"].map(|name| (name, f.take(name)));
    let mut label = |name: &str, value: &Option<Value>| {
        let value = value.as_ref()?;
        chat.set(name, name, value.clone());
        value.as_str().map(str::to_owned)
    };
    let [user, safety_identifier, prompt_cache_key] = labels.each_ref().map(|(name, value)| label(name, value));
    let metadata = match f.take("metadata") {
        Some(value) => {
            chat.set("metadata", "metadata", value.clone());
            value.as_object().cloned().unwrap_or_default()
        }
        None => Map::new(),
    };
    let parallel_tool_calls = f.bool("parallel_tool_calls")?;
    if let Some(parallel) = parallel_tool_calls {
        chat.set("parallel_tool_calls", "parallel_tool_calls", parallel.into());
    }
    chat.pass(&mut f, &SAME);
    chat.pass(&mut f, &EXTENSIONS);
    f.finish()?;

    let prepared = chat.prepare(model)?;
    let params = &prepared.submission.sequences[0].params;
    let echo = Echo {
        instructions,
        max_output_tokens: prepared.chat.max_tokens,
        max_tool_calls,
        parallel_tool_calls: parallel_tool_calls.unwrap_or(true),
        prompt_cache_key,
        safety_identifier,
        user,
        temperature: params.temperature,
        top_p: params.top_p,
        top_logprobs: prepared.chat.logprobs.unwrap_or(0),
        text,
        tool_choice,
        tools,
        metadata,
    };
    Ok((prepared, echo))
}

impl Echo {
    /// A response without output.
    pub fn response(self, identity: &Identity) -> Response {
        Response {
            id: identity.id.clone(),
            object: "response",
            created_at: identity.created,
            completed_at: None,
            status: "in_progress",
            background: false,
            error: None,
            incomplete_details: None,
            instructions: self.instructions,
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: self.max_tool_calls,
            model: identity.model.clone(),
            output: Vec::new(),
            parallel_tool_calls: self.parallel_tool_calls,
            previous_response_id: None,
            prompt_cache_key: self.prompt_cache_key,
            reasoning: None,
            safety_identifier: self.safety_identifier,
            service_tier: "default",
            store: false,
            temperature: self.temperature,
            text: self.text,
            tool_choice: self.tool_choice,
            tools: self.tools,
            top_logprobs: self.top_logprobs,
            top_p: self.top_p,
            truncation: "disabled",
            usage: None,
            user: self.user,
            metadata: self.metadata,
        }
    }
}

/// `include`, `top_logprobs` and `stream_options`: what is told beside the text.
fn include(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    let mut wanted = false;
    for (i, value) in f.array("include")?.unwrap_or_default().iter().enumerate() {
        match value.as_str() {
            Some(LOGPROBS) => wanted = true,
            Some(name) if ABSENT.contains(&name) => {}
            Some(other) => {
                let message = format!("'{}' is not something that a response has", quote(other));
                return Err(ApiError::value(format!("include[{i}]"), "invalid_value", message));
            }
            None => return Err(wrong_type(format!("include[{i}]"), "a string", value)),
        }
    }
    let top = f.integer("top_logprobs", 0, 20)?.unwrap_or(0);
    if wanted {
        chat.set("logprobs", "include", true.into());
        chat.set("top_logprobs", "top_logprobs", top.into());
    } else if top > 0 {
        let message = format!("it is only allowed when 'include' has '{LOGPROBS}'");
        return Err(ApiError::value("top_logprobs", "invalid_value", message));
    }
    let Some(mut options) = f.object("stream_options")? else { return Ok(()) };
    if options.bool("include_obfuscation")? == Some(true) {
        return Err(ApiError::unsupported("stream_options.include_obfuscation", "must be false"));
    }
    options.finish()
}

/// `text`: the format of the answer.
fn text(f: &mut Fields, chat: &mut Translation) -> Result<Map<String, Value>, ApiError> {
    let mut echo = Map::from_iter([("format".to_owned(), json!({"type": "text"}))]);
    let Some(mut text) = f.object("text")? else { return Ok(echo) };
    if let Some(verbosity) = text.take("verbosity") {
        echo.insert("verbosity".to_owned(), verbosity.clone());
        chat.set("verbosity", "text.verbosity", verbosity);
    }
    if let Some(format) = text.take("format") {
        echo.insert("format".to_owned(), format.clone());
        chat.rename("response_format.json_schema", "text.format");
        // A chat has the schema and its name one level deeper.
        let format = match format {
            Value::Object(mut schema) if schema.get("type").is_some_and(|kind| kind == "json_schema") => {
                schema.shift_remove("type");
                json!({"type": "json_schema", "json_schema": schema})
            }
            other => other,
        };
        chat.set("response_format", "text.format", format);
    }
    text.finish()?;
    Ok(echo)
}

/// `tools`: functions, one level flatter than in a chat.
fn tools(f: &mut Fields, chat: &mut Translation) -> Result<Vec<Value>, ApiError> {
    let mut echo = Vec::new();
    let mut functions = Vec::new();
    for (i, tool) in f.array("tools")?.unwrap_or_default().into_iter().enumerate() {
        let path = format!("tools[{i}]");
        let mut f = Fields::new(path.as_str(), tool)?;
        match f.string("type")?.as_deref() {
            Some("function") => {}
            Some(other) => {
                let message = format!("'{}' is not supported: only functions are", quote(other));
                return Err(ApiError::unsupported(f.param("type"), message));
            }
            None => return Err(ApiError::Missing(f.param("type"))),
        }
        let mut function = Map::from_iter([("name".to_owned(), f.require("name")?)]);
        for name in ["description", "parameters", "strict"] {
            function.extend(f.take(name).map(|value| (name.to_owned(), value)));
        }
        refuse(&mut f, &["output_schema", "allowed_callers"], "is not supported by this server")?;
        if f.bool("defer_loading")? == Some(true) {
            return Err(ApiError::unsupported(f.param("defer_loading"), "must be false"));
        }
        f.finish()?;
        let mut told = Map::from_iter([("type".to_owned(), "function".into())]);
        told.extend(function.clone());
        told.entry("parameters").or_insert(Value::Null);
        told.entry("strict").or_insert(false.into());
        echo.push(Value::Object(told));
        functions.push(json!({"type": "function", "function": function}));
        chat.rename(format!("{path}.function"), path);
    }
    if !functions.is_empty() {
        chat.set("tools", "tools", Value::Array(functions));
    }
    Ok(echo)
}

/// `tool_choice`: functions are named one level higher than in a chat.
fn tool_choice(f: &mut Fields, chat: &mut Translation) -> Result<Value, ApiError> {
    let Some(echo) = f.take("tool_choice") else { return Ok("auto".into()) };
    let choice = match echo.clone() {
        Value::Object(map) => {
            let mut f = Fields::new("tool_choice", Value::Object(map))?;
            let choice = match f.string("type")?.as_deref() {
                Some("function") => {
                    chat.rename("tool_choice.function", "tool_choice");
                    json!({"type": "function", "function": {"name": f.require("name")?}})
                }
                Some("allowed_tools") => {
                    chat.rename("tool_choice.allowed_tools", "tool_choice");
                    let mode = f.require("mode")?;
                    let mut tools = Vec::new();
                    for (i, tool) in f.array("tools")?.unwrap_or_default().into_iter().enumerate() {
                        let path = format!("tool_choice.tools[{i}]");
                        let mut f = Fields::new(path.as_str(), tool)?;
                        let (kind, name) = (f.require("type")?, f.require("name")?);
                        f.finish()?;
                        tools.push(json!({"type": kind, "function": {"name": name}}));
                        chat.rename(format!("tool_choice.allowed_tools.tools[{i}].function"), path);
                    }
                    json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}})
                }
                Some(other) => {
                    let message = format!("'{}' is not supported: only functions are", quote(other));
                    return Err(ApiError::unsupported(f.param("type"), message));
                }
                None => return Err(ApiError::Missing(f.param("type"))),
            };
            f.finish()?;
            choice
        }
        other => other,
    };
    chat.set("tool_choice", "tool_choice", choice);
    Ok(echo)
}

/// `reasoning`: models here do not reason before they answer.
fn reasoning(f: &mut Fields, chat: &mut Translation) -> Result<(), ApiError> {
    let Some(mut reasoning) = f.object("reasoning")? else { return Ok(()) };
    if let Some(effort) = reasoning.take("effort") {
        chat.set("reasoning_effort", "reasoning.effort", effort);
    }
    let message = "is not supported: the model has no reasoning of its own";
    refuse(&mut reasoning, &["summary", "generate_summary", "context", "mode"], message)?;
    reasoning.finish()
}

/// Refuses what needs a server that remembers.
fn stateless(f: &mut Fields) -> Result<(), ApiError> {
    let message = "is not supported: this server keeps no responses; send the whole conversation in 'input'";
    refuse(f, &["previous_response_id", "conversation"], message)?;
    refuse(f, &["prompt"], "is not supported: this server keeps no prompts")?;
    refuse(f, &["context_management"], "is not supported by this server")?;
    if f.bool("store")? == Some(true) {
        return Err(ApiError::unsupported("store", "must be false or left out: this server keeps no responses"));
    }
    if f.bool("background")? == Some(true) {
        return Err(ApiError::unsupported("background", "must be false: this server keeps no responses"));
    }
    if one_of(f, "truncation", &["auto", "disabled"])? == Some("auto") {
        return Err(ApiError::unsupported("truncation", "must be 'disabled': nothing of the input is left out"));
    }
    Ok(())
}
