//! From a conversation to token ids.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat_template::{ChatTemplate, TemplateError};
use super::gguf_vocab::GgufVocab;
use super::hf_files;
use super::tokenizer::{Rendered, Tokenizer, TokenizerError};
use crate::engine::TokenId;

/// One message of a conversation, as templates read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// Text, or parts where the template takes parts; `None` for an assistant that only calls tools.
    pub content: Option<Value>,
    /// Name of the speaker or tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls the assistant made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call this message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message of text alone.
    pub fn text(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Value::String(content.into())), ..Self::default() }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("role".into(), Value::String(self.role.clone()));
        map.insert("content".into(), self.content.clone().unwrap_or(Value::Null));
        let text = |t: &Option<String>| t.clone().map(Value::String);
        let rest = [
            ("name", text(&self.name)),
            ("tool_calls", self.tool_calls.clone()),
            ("tool_call_id", text(&self.tool_call_id)),
        ];
        map.extend(rest.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Value::Object(map)
    }
}

/// Why a conversation gave no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The model has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Encoding failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Where the assistant's turns begin and end cannot be told.
    #[error("the chat template is not one to train with: {0}")]
    Turns(String),
}

/// A model's tokenizer and chat template.
#[derive(Debug)]
pub struct PromptRenderer {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

impl PromptRenderer {
    /// Joins the two.
    pub fn new(tokenizer: Arc<Tokenizer>, template: Option<ChatTemplate>) -> Self {
        Self { tokenizer, template }
    }

    /// Reads a Hugging Face directory: `tokenizer.json` or `tokenizer.model`, and what is beside them; the template
    /// from `chat_template.jinja`, `tokenizer_config.json`, `chat_template.json` or `chat_templates/`.
    pub fn from_dir(dir: &Path) -> Result<Self, PromptError> {
        let tokenizer = Tokenizer::from_dir(dir)?;
        Self::with_source(tokenizer, hf_files::chat_template(dir)?.as_deref())
    }

    /// Takes tokenizer and template of a GGUF file.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, PromptError> {
        Self::with_source(Tokenizer::from_gguf(vocab)?, vocab.chat_template.as_deref())
    }

    /// Compiles `source` for `tokenizer`.
    pub fn with_source(tokenizer: Arc<Tokenizer>, source: Option<&str>) -> Result<Self, PromptError> {
        let name = |id: Option<TokenId>| id.and_then(|id| tokenizer.token_str(id));
        let template =
            source.map(|s| ChatTemplate::new(s, name(tokenizer.bos_id()), name(tokenizer.eos_id()))).transpose()?;
        Ok(Self { tokenizer, template })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Renders a conversation. Spellings of special tokens in `messages` and `extra` are broken, so
    /// that in the result those of the template alone are special.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<Rendered, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let mut messages: Vec<Value> = messages.iter().map(ChatMessage::to_json).collect();
        let mut texts: Vec<&str> = Vec::new();
        messages.iter().chain(extra.values()).for_each(|value| collect_texts(value, &mut texts));
        if !texts.iter().any(|text| self.tokenizer.spells_special(text)) {
            return Ok(Rendered::new(template.render(&messages, add_generation_prompt, extra)?, None));
        }
        let marker = self.tokenizer.marker_for(texts)?;
        let mark = |text: &str| self.tokenizer.mark(text, marker).map(String::from);
        messages.iter_mut().try_for_each(|message| map_texts(message, &mark))?;
        // Keys of `extra` itself are names of variables and are not printed.
        let mut extra = extra.clone();
        extra.values_mut().try_for_each(|value| map_texts(value, &mark))?;
        Ok(Rendered::new(template.render(&messages, add_generation_prompt, &extra)?, Some(marker)))
    }

    /// The prompt of a conversation: rendered and encoded.
    pub fn chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<Vec<TokenId>, PromptError> {
        let rendered = self.render(messages, add_generation_prompt, extra)?;
        Ok(self.tokenizer.encode_rendered(&rendered)?)
    }
}

pub(super) fn collect_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(map) => {
            for (key, value) in map {
                texts.push(key);
                collect_texts(value, texts);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Applies `f` to every string in `value`, keys included.
pub(super) fn map_texts<E>(value: &mut Value, f: &impl Fn(&str) -> Result<String, E>) -> Result<(), E> {
    match value {
        Value::String(text) => *text = f(text)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| map_texts(item, f))?,
        Value::Object(map) => {
            for (key, mut value) in std::mem::take(map) {
                map_texts(&mut value, f)?;
                map.insert(f(&key)?, value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}
