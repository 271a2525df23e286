//! The `input` of a request: a text, or items that become messages.

use serde_json::{Value, json};

use crate::http::error::{ApiError, quote};
use crate::http::fields::{Fields, wrong_type};
use crate::http::translation::{Call, Translation, one_of, refuse};

const STATUS: [&str; 3] = ["in_progress", "completed", "incomplete"];

/// Adds the messages of the input.
pub fn add(chat: &mut Translation, input: Value) -> Result<(), ApiError> {
    let items = match input {
        Value::String(text) => {
            let path = chat.message("input", json!({"role": "user", "content": text}));
            chat.rename(format!("{path}.content"), "input");
            return Ok(());
        }
        Value::Array(items) => items,
        other => return Err(wrong_type("input", "a string or an array of objects", &other)),
    };
    if items.is_empty() {
        return Err(ApiError::value("input", "empty_array", "expected at least one item"));
    }
    for (i, item) in items.into_iter().enumerate() {
        let path = format!("input[{i}]");
        let mut f = Fields::new(path.as_str(), item)?;
        match f.string("type")?.as_deref() {
            None | Some("message") => message(chat, &path, f)?,
            Some("function_call") => call(chat, &path, f)?,
            Some("function_call_output") => output(chat, &path, f)?,
            Some("item_reference") => {
                let message = "'item_reference' is not supported: this server keeps no items; send the item itself";
                return Err(ApiError::unsupported(f.param("type"), message));
            }
            Some(other) => {
                let message =
                    format!("'{}' is not supported: only messages, function calls and their outputs are", quote(other));
                return Err(ApiError::unsupported(f.param("type"), message));
            }
        }
    }
    Ok(())
}

/// What an item that was an output says beside its content.
fn labels(f: &mut Fields) -> Result<(), ApiError> {
    f.string("id")?;
    one_of(f, "status", &STATUS)?;
    Ok(())
}

fn message(chat: &mut Translation, path: &str, mut f: Fields) -> Result<(), ApiError> {
    let Some(role) = one_of(&mut f, "role", &["user", "assistant", "system", "developer"])? else {
        return Err(ApiError::Missing(f.param("role")));
    };
    labels(&mut f)?;
    one_of(&mut f, "phase", &["commentary", "final_answer"])?;
    let content = content(&f.param("content"), f.require("content")?)?;
    f.finish()?;
    chat.message(path, json!({"role": role, "content": content}));
    Ok(())
}

/// Content as a chat has it: a string, or parts in the same order.
fn content(path: &str, content: Value) -> Result<Value, ApiError> {
    let parts = match content {
        Value::Array(parts) => parts,
        // A chat says what is wrong with it, if it is not a string.
        other => return Ok(other),
    };
    let part = |(i, part)| {
        let mut f = Fields::new(format!("{path}[{i}]"), part)?;
        match f.string("type")?.as_deref() {
            Some("input_text" | "output_text" | "text") => {}
            Some(kind @ ("input_image" | "input_file" | "input_audio" | "refusal" | "summary_text")) => {
                let message = format!("'{kind}' is not supported: only text is");
                return Err(ApiError::unsupported(f.param("type"), message));
            }
            Some(other) => {
                let message = format!("expected 'input_text' or 'output_text', but got '{}'", quote(other));
                return Err(ApiError::value(f.param("type"), "invalid_value", message));
            }
            None => return Err(ApiError::Missing(f.param("type"))),
        }
        let text = f.require("text")?;
        // What the server said of its own text, sent back.
        f.array("annotations")?;
        f.array("logprobs")?;
        f.finish()?;
        Ok(json!({"type": "text", "text": text}))
    };
    Ok(Value::Array(parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?))
}

fn call(chat: &mut Translation, path: &str, mut f: Fields) -> Result<(), ApiError> {
    let mut said = |name: &str| -> Result<_, ApiError> { Ok((f.require(name)?, format!("{path}.{name}"))) };
    let call = Call { id: said("call_id")?, name: said("name")?, arguments: said("arguments")? };
    labels(&mut f)?;
    refuse(&mut f, &["namespace", "caller"], "is not supported by this server")?;
    f.finish()?;
    chat.call(path, call);
    Ok(())
}

fn output(chat: &mut Translation, path: &str, mut f: Fields) -> Result<(), ApiError> {
    let id = f.require("call_id")?;
    let content = content(&f.param("output"), f.require("output")?)?;
    labels(&mut f)?;
    // The call has it too.
    f.string("name")?;
    refuse(&mut f, &["namespace", "caller"], "is not supported by this server")?;
    f.finish()?;
    let message = chat.message(path, json!({"role": "tool", "tool_call_id": id, "content": content}));
    chat.rename(format!("{message}.tool_call_id"), format!("{path}.call_id"));
    chat.rename(format!("{message}.content"), format!("{path}.output"));
    Ok(())
}
