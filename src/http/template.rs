//! `chat_template_kwargs`: further variables of the chat template.

use serde_json::{Map, Value};

use super::error::{ApiError, quote};
use super::fields::Fields;

/// What a request says in fields of its own, and what the server says.
const RESERVED: [&str; 8] = [
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "tools",
    "documents",
    "chat_template",
    "bos_token",
    "eos_token",
];
const MAX_VARIABLES: usize = 64;
/// As JSON, bytes.
const MAX_BYTES: usize = 64 << 10;
/// Arrays and objects within each other.
const MAX_DEPTH: usize = 16;

/// Takes the variables.
///
/// # Errors
/// 400: a variable would replace what is said elsewhere, or they are too many, too large or nested too deeply.
pub fn kwargs(f: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let param = f.param("chat_template_kwargs");
    let variables = f.object("chat_template_kwargs")?.map(Fields::into_map).unwrap_or_default();
    if let Some(name) = RESERVED.iter().find(|name| variables.contains_key(**name)) {
        let message = "it is not a variable of the request's own";
        return Err(ApiError::value(format!("{param}.{name}"), "invalid_value", message));
    }
    if variables.len() > MAX_VARIABLES {
        let message = format!("expected at most {MAX_VARIABLES} variables");
        return Err(ApiError::value(param, "object_above_max_properties", message));
    }
    if let Some((name, _)) = variables.iter().find(|(_, value)| depth(value) > MAX_DEPTH) {
        let message = format!("expected at most {MAX_DEPTH} arrays and objects within each other");
        return Err(ApiError::value(format!("{param}.{}", quote(name)), "invalid_value", message));
    }
    if variables.iter().map(|(name, value)| name.len() + value.to_string().len()).sum::<usize>() > MAX_BYTES {
        let message = format!("expected at most {MAX_BYTES} bytes");
        return Err(ApiError::value(param, "string_above_max_length", message));
    }
    Ok(variables)
}

/// The parser has bounded it to 128.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
