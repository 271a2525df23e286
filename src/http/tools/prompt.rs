//! How models are told of tools, and how they write calls.

use serde_json::{Map, Value};

use crate::text::{ChatMessage, python_json};

/// Hermes' tags around a call.
pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
/// What LLaMA 3 may write before a call.
pub(super) const PYTHON_TAG: &str = "<|python_tag|>";

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several, with text around them.
    Hermes,
    /// The answer is `{"name": …, "parameters": {…}}`, as LLaMA 3.1 and 3.2 have it.
    Llama3Json,
}

/// How a model takes tools and writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolStyle {
    /// How it writes calls.
    pub format: ToolFormat,
    /// Whether the chat template knows of tools; else the system message tells of them.
    pub native: bool,
}

impl ToolStyle {
    /// What a chat template asks for: Hermes' format in the system message where it says nothing of tools. `None`: it
    /// has another format.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return Some(Self { format: ToolFormat::Hermes, native: false });
        }
        let format = if source.contains(OPEN) {
            ToolFormat::Hermes
        } else if source.contains("\"parameters\"") && (source.contains("python_tag") || source.contains("ipython")) {
            ToolFormat::Llama3Json
        } else {
            return None;
        };
        Some(Self { format, native: true })
    }

    /// A format that whoever runs the server has named.
    pub fn given(format: ToolFormat, source: &str) -> Self {
        Self { format, native: source.contains("tools") }
    }
}

/// The messages and the template's variables that tell a model of tools.
pub(super) fn with_tools(
    style: ToolStyle,
    mut messages: Vec<ChatMessage>,
    definitions: &[Value],
) -> (Vec<ChatMessage>, Map<String, Value>) {
    if style.native {
        return (messages, Map::from_iter([("tools".to_owned(), Value::from(definitions))]));
    }
    let text = instructions(style.format, definitions);
    match messages.first_mut() {
        Some(ChatMessage { role, content: Some(Value::String(content)), .. }) if role == "system" => {
            content.push_str("\n\n");
            content.push_str(&text);
        }
        _ => messages.insert(0, ChatMessage::text("system", text)),
    }
    (messages, Map::new())
}

fn instructions(format: ToolFormat, definitions: &[Value]) -> String {
    let mut text = String::from(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    );
    for definition in definitions {
        text.push('\n');
        text.push_str(&python_json(definition));
    }
    text.push_str("\n</tools>\n\n");
    text.push_str(match format {
        ToolFormat::Hermes => {
            "For each function call, return a json object with function name and arguments within \
             <tool_call></tool_call> XML tags:\n<tool_call>\n\
             {\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"
        }
        ToolFormat::Llama3Json => {
            "To call a function, answer with nothing but a json object with function name and arguments:\n\
             {\"name\": <function-name>, \"parameters\": <args-json-object>}"
        }
    });
    text
}

/// A conversation for a template that knows of no tools: calls and results become text.
pub fn without_roles(format: ToolFormat, messages: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let mut out: Vec<ChatMessage> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for mut message in messages {
        let text = message.content.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_result = message.role == "tool";
        if is_result {
            let text = format!("<tool_response>\n{text}\n</tool_response>");
            // Results of several calls are one message.
            match out.last_mut() {
                Some(ChatMessage { content: Some(Value::String(content)), .. }) if after_result => {
                    content.push('\n');
                    content.push_str(&text);
                }
                _ => out.push(ChatMessage::text("user", text)),
            }
        } else {
            if let Some(Value::Array(calls)) = message.tool_calls.take() {
                let mut lines: Vec<String> = vec![text].into_iter().filter(|t| !t.is_empty()).collect();
                lines.extend(calls.iter().map(|call| written(format, &call["function"])));
                message.content = Some(Value::String(lines.join("\n")));
            }
            out.push(message);
        }
        after_result = is_result;
    }
    out
}

fn written(format: ToolFormat, function: &Value) -> String {
    let header = super::CallParser::header(format, function["name"].as_str().unwrap_or_default());
    let call = format!("{header}{}}}", python_json(&function["arguments"]));
    match format {
        ToolFormat::Hermes => format!("{OPEN}\n{call}\n{CLOSE}"),
        ToolFormat::Llama3Json => call,
    }
}
