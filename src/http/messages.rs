//! The `messages` of a chat request.

use serde_json::Value;

use super::error::{ApiError, quote};
use super::fields::{Fields, wrong_type};
use crate::text::ChatMessage;

const MAX_NAME: usize = 64;

/// Validates the conversation. Returns the messages as a chat template sees them (`developer` is
/// `system`, content is a string) and how many bytes of text they hold.
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
    for (i, message) in messages.into_iter().enumerate() {
        let (message, text) = parse_one(&format!("messages[{i}]"), message)?;
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
        "tool" | "function" => {
            let reference = if role == "tool" { "tool_call_id" } else { "name" };
            if f.string(reference)?.is_none() {
                return Err(ApiError::Missing(f.param(reference)));
            }
            return Err(ApiError::unsupported(f.param("role"), format!("'{role}': tools are not supported")));
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
        for field in ["refusal", "audio", "tool_calls", "function_call", "annotations"] {
            match f.take(field) {
                None => {}
                Some(Value::Array(v)) if v.is_empty() => {}
                Some(_) => return Err(ApiError::unsupported(f.param(field), "is not supported by this server")),
            }
        }
    }
    let Some(content) = content else { return Err(ApiError::Missing(f.param("content"))) };
    f.finish()?;
    let bytes = content.len() + name.as_ref().map_or(0, String::len);
    Ok((ChatMessage { name, ..ChatMessage::text(role, content) }, bytes))
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
