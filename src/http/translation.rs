//! A chat request made of another API's: what it says, and how its fields are called there.

use serde_json::{Map, Value, json};

use super::error::{ApiError, quote};
use super::fields::Fields;
use super::prepare::{Prepared, prepare_value};
use super::state::ServedModel;

/// Extensions of chats that mean the same everywhere.
pub const EXTENSIONS: [&str; 14] = [
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "logit_bias",
    "skip_special_tokens",
    "cache_salt",
    "priority",
    "chat_template_kwargs",
    "structured_outputs",
];

/// How a chat's fields are called in the request that it is made of: pairs of paths.
#[derive(Debug, Default)]
struct Names(Vec<(String, String)>);

impl Names {
    fn add(&mut self, chat: impl Into<String>, own: impl Into<String>) {
        let (chat, own) = (chat.into(), own.into());
        if chat != own {
            self.0.push((chat, own));
        }
    }

    /// The longest beginning that has another name is replaced.
    fn own(&self, path: &str) -> String {
        let rest = |chat: &str| path.strip_prefix(chat).filter(|r| r.is_empty() || r.starts_with(['.', '[']));
        let known = self.0.iter().filter_map(|(chat, own)| Some((own, rest(chat)?)));
        match known.min_by_key(|(_, rest)| rest.len()) {
            Some((own, rest)) => format!("{own}{rest}"),
            None => path.to_owned(),
        }
    }
}

/// A function call of the conversation: what it says, and the paths of that.
pub struct Call {
    /// Its id, and where that stands.
    pub id: (Value, String),
    /// The function's name.
    pub name: (Value, String),
    /// The arguments, as text.
    pub arguments: (Value, String),
}

/// A chat request in the making.
#[derive(Debug, Default)]
pub struct Translation {
    body: Map<String, Value>,
    messages: Vec<Value>,
    names: Names,
}

impl Translation {
    /// Sets a field of the chat, which is called `own` in the request.
    pub fn set(&mut self, chat: &str, own: &str, value: Value) {
        self.body.insert(chat.to_owned(), value);
        self.rename(chat, own);
    }

    /// What is at `chat`, or below it, is called `own` in the request.
    pub fn rename(&mut self, chat: impl Into<String>, own: impl Into<String>) {
        self.names.add(chat, own);
    }

    /// Moves the fields that are the same in both.
    pub fn pass(&mut self, f: &mut Fields, names: &[&str]) {
        for name in names {
            if let Some(value) = f.take(name) {
                self.set(name, name, value);
            }
        }
    }

    /// Adds a message, which stands at `own`. Returns its path in the chat.
    pub fn message(&mut self, own: &str, message: Value) -> String {
        let path = format!("messages[{}]", self.messages.len());
        self.rename(path.as_str(), own);
        self.messages.push(message);
        path
    }

    /// Adds a call to the assistant's message that was added last; without one, it is a message of its own.
    pub fn call(&mut self, own: &str, call: Call) {
        if self.messages.last().is_none_or(|message| message["role"] != "assistant") {
            self.message(own, json!({"role": "assistant", "content": null}));
        }
        let index = self.messages.len() - 1;
        let Some(Value::Object(message)) = self.messages.last_mut() else { return };
        let calls = message.entry("tool_calls").or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(calls) = calls else { return };
        let path = format!("messages[{index}].tool_calls[{}]", calls.len());
        let Call { id, name, arguments } = call;
        calls.push(json!({
            "id": id.0, "type": "function", "function": {"name": name.0, "arguments": arguments.0},
        }));
        self.rename(path.as_str(), own);
        self.rename(format!("{path}.id"), id.1);
        self.rename(format!("{path}.function.name"), name.1);
        self.rename(format!("{path}.function.arguments"), arguments.1);
    }

    /// What a chat makes of it; errors name the fields as the request does.
    pub fn prepare(mut self, model: &ServedModel) -> Result<Prepared, ApiError> {
        self.body.insert("messages".to_owned(), Value::Array(self.messages));
        prepare_value(model, Value::Object(self.body)).map_err(|e| e.renamed(|path| self.names.own(path)))
    }
}

/// Refuses fields that say something; `message` continues "Unsupported parameter: 'x' …".
pub fn refuse(f: &mut Fields, names: &[&str], message: &str) -> Result<(), ApiError> {
    match names.iter().find(|name| f.take(name).is_some()) {
        Some(name) => Err(ApiError::unsupported(f.param(name), message)),
        None => Ok(()),
    }
}

/// A string that is one of `known`, or absent.
pub fn one_of(f: &mut Fields, name: &str, known: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
    let Some(asked) = f.string(name)? else { return Ok(None) };
    match known.iter().find(|known| **known == asked) {
        Some(known) => Ok(Some(*known)),
        None => {
            let message = format!("expected one of '{}', but got '{}'", known.join("', '"), quote(&asked));
            Err(ApiError::value(f.param(name), "invalid_value", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_their_own_names_back() {
        let mut names = Names::default();
        names.add("messages", "input");
        names.add("messages[1]", "input[0]");
        names.add("messages[1].tool_calls[0].function.name", "input[3].name");
        names.add("model", "model");
        for (chat, own) in [
            ("messages", "input"),
            ("messages[1].content[2].text", "input[0].content[2].text"),
            ("messages[12].role", "input[12].role"),
            ("messages[1].tool_calls[0].function.name", "input[3].name"),
            ("messagesque", "messagesque"),
            ("model", "model"),
        ] {
            assert_eq!(names.own(chat), own);
        }
    }

    #[test]
    fn calls_join_the_message_before() {
        let mut chat = Translation::default();
        let call = |i: usize| Call {
            id: (json!(format!("c{i}")), format!("input[{i}].call_id")),
            name: (json!("f"), format!("input[{i}].name")),
            arguments: (json!("{}"), format!("input[{i}].arguments")),
        };
        chat.message("input[0]", json!({"role": "user", "content": "hi"}));
        chat.call("input[1]", call(1));
        chat.call("input[2]", call(2));
        assert_eq!(chat.messages.len(), 2);
        assert_eq!(chat.messages[1]["tool_calls"].as_array().map(Vec::len), Some(2));
        assert_eq!(chat.names.own("messages[1].tool_calls[1].id"), "input[2].call_id");
        assert_eq!(chat.names.own("messages[1].tool_calls[1].function"), "input[2].function");
    }
}
