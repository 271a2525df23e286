//! The tokenizer files of a Hugging Face model directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::tokenizer::TokenizerError;
use crate::engine::TokenId;

/// How these files name special tokens.
pub(super) const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say; earlier files win.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    /// Spellings of special tokens.
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    /// Every special token that is named, with its flags.
    pub(super) specials: Vec<AddedToken>,
    /// Further tokens, in ascending order of their ids.
    pub(super) added: BTreeMap<TokenId, AddedToken>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    pub(super) add_prefix_space: Option<bool>,
    /// The text after each special token begins with a space too.
    pub(super) legacy: bool,
}

impl TokenizerConfig {
    /// Reads what there is in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let mut config = Self::default();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(json) = json(&dir.join(file))? else { continue };
            config.merge(&json).map_err(|reason| file_error(&dir.join(file), reason))?;
        }
        let path = dir.join("added_tokens.json");
        for (content, id) in json(&path)?.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let id = id.as_u64().and_then(|id| TokenId::try_from(id).ok());
            let id = id.ok_or_else(|| file_error(&path, format!("the id of {content:?} is not one")))?;
            let special = config.specials.iter().find(|t| t.content == *content).cloned();
            config.added.entry(id).or_insert_with(|| special.unwrap_or_else(|| AddedToken::from(&**content, false)));
        }
        Ok(config)
    }

    /// Adds what one of the files says; what is there stays. The error is one sentence.
    pub(super) fn merge(&mut self, json: &Value) -> Result<(), String> {
        self.bos = self.bos.take().or_else(|| token_name(&json["bos_token"]));
        self.eos = self.eos.take().or_else(|| token_name(&json["eos_token"]));
        let named = NAMES.iter().map(|name| &json[*name]);
        let more = json["additional_special_tokens"].as_array().into_iter().flatten();
        for token in named.chain(more).filter_map(|value| added_token(value, true)) {
            if !self.specials.iter().any(|t| t.content == token.content) {
                self.specials.push(token);
            }
        }
        let flag = |name: &str| json[name].as_bool();
        self.add_bos = self.add_bos.or_else(|| flag("add_bos_token"));
        self.add_eos = self.add_eos.or_else(|| flag("add_eos_token"));
        self.add_prefix_space = self.add_prefix_space.or_else(|| flag("add_prefix_space"));
        self.legacy |= flag("legacy").unwrap_or(false);
        for (id, value) in json["added_tokens_decoder"].as_object().into_iter().flatten() {
            let token = added_token(value, value["special"].as_bool().unwrap_or(false));
            let (Ok(id), Some(token)) = (id.parse(), token) else {
                return Err(format!("added_tokens_decoder[{id:?}] is not a token"));
            };
            self.added.entry(id).or_insert(token);
        }
        Ok(())
    }
}

/// A token given as a string or as an object with flags.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
    let token = AddedToken::from(token_name(value)?, special);
    Some(
        token
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special)),
    )
}

/// The file that has the vocabulary, its bytes, and whether it is `tokenizer.json`.
pub(super) fn tokenizer_file(dir: &Path) -> Result<(PathBuf, Vec<u8>, bool), TokenizerError> {
    for (name, is_json) in [("tokenizer.json", true), ("tokenizer.model", false)] {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => return Ok((path, bytes, is_json)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(file_error(&path, format!("cannot be read: {e}"))),
        }
    }
    Err(file_error(dir, "has neither tokenizer.json nor tokenizer.model".into()))
}

/// Parses a `tokenizer.json`; the error is one sentence.
pub(super) fn parse_json(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    /// The library cuts this prefix off tokens without looking whether they have it.
    #[derive(Deserialize)]
    struct Prefix {
        model: Option<ModelPrefix>,
    }
    #[derive(Deserialize)]
    struct ModelPrefix {
        continuing_subword_prefix: Option<Value>,
    }
    let wrong = |e: &dyn std::fmt::Display| format!("is not a tokenizer: {e}");
    let prefix: Prefix = serde_json::from_slice(bytes).map_err(|e| wrong(&e))?;
    if let Some(Value::String(prefix)) = prefix.model.and_then(|m| m.continuing_subword_prefix)
        && !prefix.is_empty()
    {
        return Err(format!("continuing_subword_prefix {prefix:?} of its model is not supported"));
    }
    // The library checks little of what it is given, and may panic.
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
        // And while it encodes, if the post-processor's template names a token that it does not define.
        tokenizer.encode_fast("a b", true)?;
        Ok::<_, tokenizers::Error>(tokenizer)
    }));
    match loaded {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(wrong(&e)),
        Err(_) => Err("is not a tokenizer: its parts do not fit together".into()),
    }
}

/// The chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, else
/// `chat_template.json`, else `default.jinja` of the folder `chat_templates` or its only template.
pub(super) fn chat_template(dir: &Path) -> Result<Option<String>, TokenizerError> {
    if let Some(source) = text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(source));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(file);
        let Some(config) = json(&path)? else { continue };
        if let Some(source) = template_field(&path, &config["chat_template"])? {
            return Ok(Some(source));
        }
    }
    let folder = dir.join("chat_templates");
    let mut templates: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error(&folder, format!("cannot be read: {e}"))),
    };
    templates.retain(|path| path.extension().is_some_and(|e| e == "jinja"));
    let default = templates.iter().find(|path| path.file_stem().is_some_and(|s| s == "default"));
    match (default, templates.as_slice()) {
        (Some(path), _) | (None, [path]) => text(path),
        (None, []) => Ok(None),
        (None, _) => Err(file_error(&folder, "has no template named \"default\"".into())),
    }
}

fn template_field(path: &Path, field: &Value) -> Result<Option<String>, TokenizerError> {
    // A list of named templates, or an object of them.
    let default = match field {
        Value::Null => return Ok(None),
        Value::String(source) => return Ok(Some(source.clone())),
        Value::Array(list) => list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str()),
        Value::Object(map) => map.get("default").and_then(Value::as_str),
        _ => return Err(file_error(path, "chat_template is neither a string nor a list".into())),
    };
    match default {
        Some(source) => Ok(Some(source.to_owned())),
        None => Err(file_error(path, "chat_template has no template named \"default\"".into())),
    }
}

/// A token given as a string or as `{"content": …}`.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file_error(path, format!("cannot be read: {e}"))),
    }
}

pub(super) fn json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| file_error(path, format!("is not JSON: {e}")))
}

pub(super) fn file_error(path: &Path, reason: String) -> TokenizerError {
    TokenizerError::File { path: path.display().to_string(), reason: one_line(&reason) }
}

/// A reason to show, whatever the file says.
pub(super) fn one_line(reason: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    reason.chars().take(300).map(plain).collect()
}
