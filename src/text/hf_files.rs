//! The tokenizer files of a Hugging Face model directory.

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use super::tokenizer::TokenizerError;

/// Spellings of the special tokens a chat template may use.
#[derive(Debug, Default)]
pub(super) struct SpecialNames {
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
}

/// Where the tokenizer of a model directory is.
pub(super) fn tokenizer_path(dir: &Path) -> String {
    dir.join("tokenizer.json").display().to_string()
}

/// Reads `tokenizer.json`.
pub(super) fn tokenizer(dir: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let bytes = fs::read(&path).map_err(|e| file_error(&path, format!("cannot be read: {e}")))?;
    // The tokenizers crate indexes without checks while it builds a BPE model, so that a file with
    // impossible merges makes it panic; and again while it encodes, if the post-processor's template
    // names a token that it does not define.
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes)?;
        tokenizer.encode_fast("a b", true)?;
        Ok::<_, tokenizers::Error>(tokenizer)
    }));
    match loaded {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(file_error(&path, format!("is not a tokenizer: {e}"))),
        Err(_) => Err(file_error(&path, "is not a tokenizer: its parts do not fit together".into())),
    }
}

/// Reads the names of the special tokens, `tokenizer_config.json` first.
pub(super) fn special_names(dir: &Path) -> Result<SpecialNames, TokenizerError> {
    let mut names = SpecialNames::default();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        if let Some(json) = json(&dir.join(file))? {
            names.bos = names.bos.or_else(|| token_name(&json["bos_token"]));
            names.eos = names.eos.or_else(|| token_name(&json["eos_token"]));
        }
    }
    Ok(names)
}

/// The chat template: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`.
pub(super) fn chat_template(dir: &Path) -> Result<Option<String>, TokenizerError> {
    if let Some(source) = text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(source));
    }
    let path = dir.join("tokenizer_config.json");
    let Some(config) = json(&path)? else { return Ok(None) };
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(list) => {
            let default = list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
            match default {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err(file_error(&path, "chat_template has no template named \"default\"".into())),
            }
        }
        _ => Err(file_error(&path, "chat_template is neither a string nor a list".into())),
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

fn json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let Some(text) = text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| file_error(path, format!("is not JSON: {e}")))
}

fn file_error(path: &Path, reason: String) -> TokenizerError {
    // One line, whatever the file says.
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let reason = reason.chars().take(300).map(plain).collect();
    TokenizerError::File { path: path.display().to_string(), reason }
}
