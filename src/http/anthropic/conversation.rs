//! `system` and `messages`: content blocks that become a chat's messages.

use serde_json::{Value, json};

use crate::http::error::{ApiError, quote};
use crate::http::fields::{Fields, wrong_type};
use crate::http::translation::{Call, Translation, one_of, refuse};

/// Adds the system message.
pub fn system(chat: &mut Translation, system: Option<Value>) -> Result<(), ApiError> {
    let Some(system) = system else { return Ok(()) };
    let mut parts = Vec::new();
    let content = match system {
        Value::Array(blocks) => {
            for (i, block) in blocks.into_iter().enumerate() {
                let (kind, f) = block_of(format!("system[{i}]"), block)?;
                match kind.as_str() {
                    "text" => parts.push(text(f)?),
                    _ => return Err(unknown(&f, &kind, "text")),
                }
            }
            Value::Array(parts)
        }
        other => other,
    };
    let message = chat.message("system", json!({"role": "system", "content": content}));
    chat.rename(format!("{message}.content"), "system");
    Ok(())
}

/// Adds the turns.
pub fn messages(chat: &mut Translation, messages: Value) -> Result<(), ApiError> {
    let messages = match messages {
        Value::Array(messages) => messages,
        other => return Err(wrong_type("messages", "an array of objects", &other)),
    };
    if messages.is_empty() {
        return Err(ApiError::value("messages", "empty_array", "expected at least one message"));
    }
    let last = messages.len() - 1;
    for (i, message) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let mut f = Fields::new(path.as_str(), message)?;
        let role = one_of(&mut f, "role", &["user", "assistant"])?;
        let Some(role) = role else { return Err(ApiError::Missing(f.param("role"))) };
        if role == "assistant" && i == last {
            let message = "is not supported: the last message is the user's; an answer cannot be begun for the model";
            return Err(ApiError::unsupported(f.param("role"), message));
        }
        let content = f.require("content")?;
        f.finish()?;
        match content {
            Value::Array(blocks) if blocks.is_empty() => {
                let message = "expected at least one block";
                return Err(ApiError::value(format!("{path}.content"), "empty_array", message));
            }
            Value::Array(blocks) if role == "user" => user(chat, &path, blocks)?,
            Value::Array(blocks) => assistant(chat, &path, blocks)?,
            content => _ = chat.message(&path, json!({"role": role, "content": content})),
        }
    }
    Ok(())
}

/// Results of tools are messages of their own, in their order among the texts.
fn user(chat: &mut Translation, path: &str, blocks: Vec<Value>) -> Result<(), ApiError> {
    let mut texts = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let (kind, f) = block_of(format!("{path}.content[{i}]"), block)?;
        match kind.as_str() {
            "text" => texts.push((text(f)?, format!("{path}.content[{i}]"))),
            "tool_result" => {
                said(chat, path, "user", &mut texts);
                result(chat, &format!("{path}.content[{i}]"), f)?;
            }
            _ => return Err(unknown(&f, &kind, "text' or 'tool_result")),
        }
    }
    said(chat, path, "user", &mut texts);
    Ok(())
}

/// Calls join the text before them.
fn assistant(chat: &mut Translation, path: &str, blocks: Vec<Value>) -> Result<(), ApiError> {
    let mut texts = Vec::new();
    // A call must not join what another turn said.
    let mut begun = false;
    for (i, block) in blocks.into_iter().enumerate() {
        let (kind, mut f) = block_of(format!("{path}.content[{i}]"), block)?;
        match kind.as_str() {
            "text" => texts.push((text(f)?, format!("{path}.content[{i}]"))),
            "tool_use" => {
                begun |= said(chat, path, "assistant", &mut texts);
                if !std::mem::replace(&mut begun, true) {
                    chat.message(path, json!({"role": "assistant", "content": null}));
                }
                let at = f.param("input");
                let input = match f.object("input")? {
                    Some(input) => Value::Object(input.into_map()),
                    None => return Err(ApiError::Missing(at)),
                };
                let call = Call {
                    id: (f.require("id")?, f.param("id")),
                    name: (f.require("name")?, f.param("name")),
                    arguments: (input.to_string().into(), at),
                };
                cached(&mut f)?;
                refuse(&mut f, &["caller", "toolset_name"], "is not supported by this server")?;
                let own = format!("{path}.content[{i}]");
                f.finish()?;
                chat.call(&own, call);
            }
            _ => return Err(unknown(&f, &kind, "text' or 'tool_use")),
        }
    }
    said(chat, path, "assistant", &mut texts);
    Ok(())
}

/// Adds a message of the texts so far, each with its path; whether there were any.
fn said(chat: &mut Translation, path: &str, role: &str, texts: &mut Vec<(Value, String)>) -> bool {
    if texts.is_empty() {
        return false;
    }
    let (parts, paths): (Vec<Value>, Vec<String>) = std::mem::take(texts).into_iter().unzip();
    let message = chat.message(path, json!({"role": role, "content": parts}));
    for (i, own) in paths.into_iter().enumerate() {
        chat.rename(format!("{message}.content[{i}]"), own);
    }
    true
}

/// A tool's result.
fn result(chat: &mut Translation, own: &str, mut f: Fields) -> Result<(), ApiError> {
    let id = f.require("tool_use_id")?;
    let failed = f.bool("is_error")?.unwrap_or(false);
    let mut parts = Vec::new();
    let at = f.param("content");
    match f.take("content") {
        None => {}
        Some(Value::String(text)) => parts.push(json!({"type": "text", "text": text})),
        Some(Value::Array(blocks)) => {
            for (i, block) in blocks.into_iter().enumerate() {
                let (kind, f) = block_of(format!("{at}[{i}]"), block)?;
                match kind.as_str() {
                    "text" => parts.push(text(f)?),
                    _ => return Err(unknown(&f, &kind, "text")),
                }
            }
        }
        Some(other) => return Err(wrong_type(at, "a string or an array of objects", &other)),
    }
    cached(&mut f)?;
    refuse(&mut f, &["toolset_name"], "is not supported by this server")?;
    // Chats have no other way to tell of it.
    if failed {
        parts.insert(0, json!({"type": "text", "text": "Error:"}));
    }
    let content = if parts.is_empty() { Value::String(String::new()) } else { Value::Array(parts) };
    let message = chat.message(own, json!({"role": "tool", "tool_call_id": id, "content": content}));
    chat.rename(format!("{message}.tool_call_id"), format!("{own}.tool_use_id"));
    f.finish()
}

/// A block's type, and the rest of it.
fn block_of(path: String, block: Value) -> Result<(String, Fields), ApiError> {
    let mut f = Fields::new(path, block)?;
    match f.string("type")? {
        Some(kind) => Ok((kind, f)),
        None => Err(ApiError::Missing(f.param("type"))),
    }
}

/// A text block as a part of a chat's message.
fn text(mut f: Fields) -> Result<Value, ApiError> {
    let text = f.require("text")?;
    cached(&mut f)?;
    let cited = f.array("citations")?.is_some_and(|citations| !citations.is_empty());
    if cited {
        return Err(ApiError::unsupported(f.param("citations"), "is not supported by this server"));
    }
    f.finish()?;
    Ok(json!({"type": "text", "text": text}))
}

/// Takes a mark of what should be cached. All of a prompt is, so it changes nothing.
pub fn cached(f: &mut Fields) -> Result<(), ApiError> {
    let Some(mut control) = f.object("cache_control")? else { return Ok(()) };
    if one_of(&mut control, "type", &["ephemeral"])?.is_none() {
        return Err(ApiError::Missing(control.param("type")));
    }
    one_of(&mut control, "ttl", &["5m", "1h"])?;
    control.finish()
}

/// The error for a block that cannot be here.
fn unknown(f: &Fields, kind: &str, known: &str) -> ApiError {
    const REFUSED: [&str; 10] = [
        "image",
        "document",
        "search_result",
        "thinking",
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "container_upload",
        "mcp_tool_use",
        "mcp_tool_result",
    ];
    if REFUSED.contains(&kind) {
        let message = format!("'{kind}' is not supported: only text and the use of tools are");
        return ApiError::unsupported(f.param("type"), message);
    }
    let message = format!("expected '{known}', but got '{}'", quote(kind));
    ApiError::value(f.param("type"), "invalid_value", message)
}
