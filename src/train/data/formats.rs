//! The four formats: how a row says who said what.

use std::fmt;

use serde_json::{Map, Value};

use super::json::kind;
use super::{Role, Turn};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"conversations": ["user", "assistant", …], "source": …}`.
    Lima,
    /// `{"messages": [{"role": …, "content": …}, …]}`.
    Messages,
    /// `{"conversations": [{"from": "human", "value": …}, …]}`.
    ShareGpt,
    /// `{"instruction": …, "input": …, "output": …}`.
    Alpaca,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lima => "in LIMA's format",
            Self::Messages => "in OpenAI's format (messages)",
            Self::ShareGpt => "in ShareGPT's format",
            Self::Alpaca => "in alpaca's format",
        })
    }
}

/// What a row says, before the order of turns is checked.
pub(super) struct Row {
    pub(super) turns: Vec<Turn>,
    pub(super) source: Option<String>,
}

/// A spelling from a file, short and on one line.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Recognises the format and reads the row; the error is one sentence. Fields that say nothing about the text, such
/// as an id, are left aside; those that do and are not read are refused.
pub(super) fn parse(row: Map<String, Value>) -> Result<(Format, Row), String> {
    let source = match row.get("source") {
        None | Some(Value::Null) => None,
        Some(Value::String(source)) => Some(source.clone()).filter(|s| !s.is_empty()),
        Some(other) => return Err(format!("\"source\" is {}, not a string", kind(other))),
    };
    let mut keys = ["messages", "conversations", "instruction"].into_iter().filter(|key| row.contains_key(*key));
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) => key,
        (Some(one), Some(other)) => return Err(format!("the row has both {one:?} and {other:?}")),
        (None, _) => {
            let has: Vec<String> = row.keys().take(6).map(|key| quoted(key)).collect();
            let has = if has.is_empty() { "nothing".into() } else { has.join(", ") };
            return Err(format!(
                "the row has none of \"conversations\", \"messages\" and \"instruction\"; it has {has}"
            ));
        }
    };
    let (format, turns) = match (key, &row[key]) {
        ("instruction", _) => (Format::Alpaca, alpaca(&row)?),
        (_, Value::Array(items)) if items.is_empty() => return Err(format!("{key:?} is empty")),
        ("messages", Value::Array(items)) => (Format::Messages, messages(&row, items)?),
        (_, Value::Array(items)) if items[0].is_string() => (Format::Lima, lima(items)?),
        (_, Value::Array(items)) => (Format::ShareGpt, share_gpt(&row, items)?),
        (_, other) => return Err(format!("{key:?} is {}, not a list", kind(other))),
    };
    Ok((format, Row { turns, source }))
}

fn turn(role: Role, text: String) -> Turn {
    Turn { role, text, learn: role == Role::Assistant }
}

fn text(value: Option<&Value>, what: impl fmt::Display) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{what} is {}, not a string", kind(other))),
        None => Err(format!("{what} is missing")),
    }
}

/// The user speaks first, and they alternate.
fn lima(items: &[Value]) -> Result<Vec<Turn>, String> {
    let one = |(i, item): (usize, &Value)| {
        let role = if i % 2 == 0 { Role::User } else { Role::Assistant };
        Ok(turn(role, text(Some(item), format_args!("message {}", i + 1))?))
    };
    items.iter().enumerate().map(one).collect()
}

fn messages(row: &Map<String, Value>, items: &[Value]) -> Result<Vec<Turn>, String> {
    refuse(row, &["tools", "functions"], "the row")?;
    let one = |(i, item): (usize, &Value)| {
        let at = format!("message {}", i + 1);
        let Value::Object(item) = item else { return Err(format!("{at} is {}, not an object", kind(item))) };
        let role = match text(item.get("role"), format_args!("\"role\" of {at}"))?.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(format!("{at} has the role {}; system, user and assistant are known", quoted(other))),
        };
        refuse(item, &["tool_calls", "function_call", "refusal", "audio"], &at)?;
        let mut turn = turn(role, content(item.get("content"), &at)?);
        match item.get("weight") {
            None | Some(Value::Null) => {}
            Some(weight) if weight.as_f64() == Some(1.0) => {}
            Some(weight) if weight.as_f64() == Some(0.0) => turn.learn = false,
            Some(_) => return Err(format!("\"weight\" of {at} is neither 0 nor 1")),
        }
        Ok(turn)
    };
    items.iter().enumerate().map(one).collect()
}

/// A string, or parts of text.
fn content(value: Option<&Value>, at: &str) -> Result<String, String> {
    let Some(Value::Array(parts)) = value else { return text(value, format_args!("\"content\" of {at}")) };
    let mut whole = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => whole.push_str(text),
            (Some("text") | None, _) => return Err(format!("a part of {at} is not a text")),
            (Some(other), _) => return Err(format!("a part of {at} is {}; only text is read", quoted(other))),
        }
    }
    Ok(whole)
}

fn share_gpt(row: &Map<String, Value>, items: &[Value]) -> Result<Vec<Turn>, String> {
    refuse(row, &["tools"], "the row")?;
    let mut turns = Vec::with_capacity(items.len() + 1);
    if let Some(system) = row.get("system").filter(|s| !s.is_null()) {
        turns.push(turn(Role::System, text(Some(system), "\"system\"")?));
    }
    for (i, item) in items.iter().enumerate() {
        let at = format!("message {}", i + 1);
        let Value::Object(item) = item else { return Err(format!("{at} is {}, not an object", kind(item))) };
        let role = match text(item.get("from"), format_args!("\"from\" of {at}"))?.as_str() {
            "system" => Role::System,
            "human" | "user" => Role::User,
            "gpt" | "assistant" | "chatgpt" => Role::Assistant,
            other => return Err(format!("{at} is from {}; system, human and gpt are known", quoted(other))),
        };
        turns.push(turn(role, text(item.get("value"), format_args!("\"value\" of {at}"))?));
    }
    Ok(turns)
}

/// The user says the instruction and, after an empty line, the input.
fn alpaca(row: &Map<String, Value>) -> Result<Vec<Turn>, String> {
    if row.get("history").is_some_and(|h| h.as_array().is_some_and(|h| !h.is_empty())) {
        return Err("\"history\" is not read; write the conversation as messages".into());
    }
    let mut ask = text(row.get("instruction"), "\"instruction\"")?;
    if let Some(input) = row.get("input").filter(|input| !input.is_null()) {
        let input = text(Some(input), "\"input\"")?;
        if !input.trim().is_empty() {
            ask = if ask.trim().is_empty() { input } else { format!("{ask}\n\n{input}") };
        }
    }
    let mut turns = Vec::with_capacity(3);
    if let Some(system) = row.get("system").filter(|s| !s.is_null()) {
        turns.push(turn(Role::System, text(Some(system), "\"system\"")?));
    }
    turns.push(turn(Role::User, ask));
    turns.push(turn(Role::Assistant, text(row.get("output"), "\"output\"")?));
    Ok(turns)
}

/// Fields that would change what is learnt, and are not implemented; null and empty lists ask for nothing.
fn refuse(object: &Map<String, Value>, names: &[&str], of: &str) -> Result<(), String> {
    let asks = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    match names.iter().find(|name| object.get(**name).is_some_and(asks)) {
        Some(name) => Err(format!("{of} has {name:?}, which is not read")),
        None => Ok(()),
    }
}
