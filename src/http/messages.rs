//! The `messages` of a chat request.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::error::{ApiError, quote};
use super::fields::{self, Fields, wrong_type};
use super::structured::{check_name, kind};
use crate::text::ChatMessage;

const MAX_NAME: usize = 64;
const MAX_ID: usize = 256;

/// Validates the conversation. Returns the messages as a chat template sees them (`developer` is
/// `system`, content is a string, a call's arguments are an object) and how many bytes of text they hold.
pub fn parse(value: Value) -> Result<(Vec<ChatMessage>, usize), ApiError> {
    let messages = match value {
        Value::Array(messages) => messages,
        other => return Err(wrong_type("messages", "an array of objects", &other)),
    };
    if messages.is_empty() {
        return Err(ApiError::value("messages", "empty_array", "expected at least one message"));
    }
    let mut bytes = 0;
    let mut out = Vec::with_capacity(messages.len());
    // Ids of the calls that a result may answer.
    let mut called: HashSet<String> = HashSet::new();
    for (i, message) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let (message, text) = parse_one(&path, message)?;
        if let Some(Value::Array(calls)) = &message.tool_calls {
            called.extend(calls.iter().filter_map(|call| call["id"].as_str().map(str::to_owned)));
        }
        if let Some(id) = message.tool_call_id.as_ref().filter(|id| !called.contains(*id)) {
            let message = format!("no tool call of an assistant before it has the id '{}'", quote(id));
            return Err(ApiError::value(format!("{path}.tool_call_id"), "invalid_value", message));
        }
        bytes += text;
        out.push(message);
    }
    Ok((out, bytes))
}

/// The message, and how many bytes its text has.
fn parse_one(path: &str, message: Value) -> Result<(ChatMessage, usize), ApiError> {
    let mut f = Fields::new(path, message)?;
    let role = match f.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(f.param("role"), "a string", &other)),
    };
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        "function" => {
            return Err(ApiError::unsupported(f.param("role"), "'function' is not supported; use 'tool'"));
        }
        other => {
            let message = format!(
                "expected one of 'developer', 'system', 'user', 'assistant', 'tool' and 'function', but got '{}'",
                quote(other)
            );
            return Err(ApiError::value(f.param("role"), "invalid_value", message));
        }
    };
    let content = content(&mut f)?;
    let name = f.short_string("name", MAX_NAME)?;
    if role == "assistant" {
        // Clients send back what they got, and more: allowed while it holds nothing.
        for field in ["refusal", "audio", "function_call", "annotations"] {
            match f.take(field) {
                None => {}
                Some(Value::Array(v)) if v.is_empty() => {}
                Some(_) => return Err(ApiError::unsupported(f.param(field), "is not supported by this server")),
            }
        }
    }
    let tool_calls = if role == "assistant" { tool_calls(&mut f)? } else { None };
    let tool_call_id = if role == "tool" { Some(call_id(&mut f, "tool_call_id")?) } else { None };
    if content.is_none() && tool_calls.is_none() {
        return Err(ApiError::Missing(f.param("content")));
    }
    f.finish()?;
    let calls = tool_calls.as_ref().map_or(0, |calls| calls.to_string().len());
    let bytes = content.as_ref().map_or(0, String::len) + name.as_ref().map_or(0, String::len) + calls;
    let content = content.map(Value::String);
    Ok((ChatMessage { role: role.to_owned(), content, name, tool_calls, tool_call_id }, bytes))
}

/// The id of a call.
fn call_id(f: &mut Fields, field: &str) -> Result<String, ApiError> {
    f.short_string(field, MAX_ID)?.ok_or_else(|| ApiError::Missing(f.param(field)))
}

/// An assistant's calls, arguments as objects; `None` if there are none.
fn tool_calls(f: &mut Fields) -> Result<Option<Value>, ApiError> {
    let path = f.param("tool_calls");
    let calls = f.array("tool_calls")?.unwrap_or_default();
    let call = |(i, call)| {
        let mut f = Fields::new(format!("{path}[{i}]"), call)?;
        let id = call_id(&mut f, "id")?;
        match kind(&mut f)?.as_str() {
            "function" => {}
            other => {
                let message = format!("'{}' is not supported: only functions are", quote(other));
                return Err(ApiError::unsupported(f.param("type"), message));
            }
        }
        let Some(mut function) = f.object("function")? else { return Err(ApiError::Missing(f.param("function"))) };
        let Some(name) = function.string("name")? else { return Err(ApiError::Missing(function.param("name"))) };
        check_name(&function.param("name"), &name)?;
        let param = function.param("arguments");
        let Some(arguments) = function.string("arguments")? else { return Err(ApiError::Missing(param)) };
        function.finish()?;
        f.finish()?;
        // Templates write them as JSON themselves.
        let arguments = match arguments.trim() {
            "" => json!({}),
            text => fields::parse(text.as_bytes())
                .ok()
                .filter(Value::is_object)
                .ok_or_else(|| ApiError::value(param, "invalid_value", "expected a string that holds a JSON object"))?,
        };
        Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
    };
    let calls = calls.into_iter().enumerate().map(call).collect::<Result<Vec<_>, _>>()?;
    Ok((!calls.is_empty()).then_some(Value::Array(calls)))
}

/// A string, or text parts joined by line breaks.
fn content(f: &mut Fields) -> Result<Option<String>, ApiError> {
    let path = f.param("content");
    let parts = match f.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(path, "a string or an array of objects", &other)),
    };
    if parts.is_empty() {
        return Err(ApiError::value(path, "empty_array", "expected at least one part"));
    }
    let text = |(i, part)| {
        let mut part = Fields::new(format!("{path}[{i}]"), part)?;
        match part.string("type")? {
            None => return Err(ApiError::Missing(part.param("type"))),
            Some(kind) if kind == "text" => {}
            Some(kind) if ["image_url", "input_audio", "file", "refusal"].contains(&kind.as_str()) => {
                return Err(ApiError::unsupported(
                    part.param("type"),
                    format!("'{kind}': only text parts are supported"),
                ));
            }
            Some(kind) => {
                let message = format!("expected 'text', but got '{}'", quote(&kind));
                return Err(ApiError::value(part.param("type"), "invalid_value", message));
            }
        }
        let Some(text) = part.string("text")? else { return Err(ApiError::Missing(part.param("text"))) };
        part.finish()?;
        Ok(text)
    };
    let texts = parts.into_iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(texts.join("\n")))
}
