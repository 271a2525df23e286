//! Calls as answers and chunks tell of them.

use super::parser::{CallParser, Part};
use crate::http::prepare::random;
use crate::http::wire::{Delta, FunctionCall, FunctionDelta, ToolCall, ToolCallDelta};

/// A whole answer, its calls apart from its text.
#[derive(Default)]
pub struct Answered {
    /// The text; `None` if there are only calls.
    pub content: Option<String>,
    /// The calls.
    pub calls: Vec<ToolCall>,
}

impl Answered {
    /// Reads a text; without a parser all of it is text.
    pub fn read(text: String, parser: Option<CallParser>) -> Self {
        let Some(mut parser) = parser else { return Self { content: Some(text), calls: Vec::new() } };
        let mut answered = Self::default();
        let mut parts = parser.push(&text);
        parts.extend(parser.finish());
        for part in parts {
            match part {
                Part::Content(text) => answered.content.get_or_insert_default().push_str(&text),
                Part::Call { name, .. } => {
                    let function = FunctionCall { name: name.to_string(), arguments: String::new() };
                    answered.calls.push(ToolCall { id: call_id(), kind: "function", function });
                }
                Part::Arguments { text, .. } => {
                    if let Some(call) = answered.calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        if answered.calls.is_empty() {
            answered.content.get_or_insert_default();
        }
        answered
    }
}

/// What chunks add for these parts.
pub fn deltas(parts: Vec<Part>) -> impl Iterator<Item = Delta> {
    parts.into_iter().map(|part| match part {
        Part::Content(text) => Delta { content: Some(text), ..Delta::default() },
        Part::Call { index, name } => {
            let function = FunctionDelta { name: Some(name.to_string()), arguments: String::new() };
            let call = ToolCallDelta { index, id: Some(call_id()), kind: Some("function"), function };
            Delta { tool_calls: vec![call], ..Delta::default() }
        }
        Part::Arguments { index, text } => {
            let function = FunctionDelta { name: None, arguments: text };
            let call = ToolCallDelta { index, id: None, kind: None, function };
            Delta { tool_calls: vec![call], ..Delta::default() }
        }
    })
}

/// Why an answer ended, if it made so many calls.
pub fn finish_reason(reason: &'static str, calls: usize) -> &'static str {
    if reason == "stop" && calls > 0 { "tool_calls" } else { reason }
}

fn call_id() -> String {
    format!("call_{:016x}{:08x}", random(), random() as u32)
}
