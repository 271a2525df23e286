//! The vocabulary in a GGUF file's metadata, as plain values.

use super::error::FormatError;
use super::gguf::{Array, Gguf, Value};
use crate::text::GgufVocab;

impl GgufVocab {
    /// Reads the `tokenizer.*` metadata; `None` if the file carries no vocabulary.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Option<Self>, FormatError> {
        let Some(model) = gguf.str("tokenizer.ggml.model") else { return Ok(None) };
        let token = |name: &str| {
            let id = gguf.value(&format!("tokenizer.ggml.{name}_token_id")).and_then(Value::as_u64);
            id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
        };
        let flag = |name: &str| gguf.value(&format!("tokenizer.ggml.{name}")).and_then(Value::as_bool);
        let vocab = Self {
            model: model.to_owned(),
            pre: gguf.str("tokenizer.ggml.pre").map(str::to_owned),
            tokens: list(gguf, "tokens", text)?,
            token_types: list(gguf, "token_type", |v| v.as_i64().and_then(|n| n.try_into().ok()))?,
            scores: Some(list(gguf, "scores", |v| v.as_f32())?).filter(|s| !s.is_empty()),
            merges: list(gguf, "merges", text)?,
            bos: token("bos"),
            eos: token("eos"),
            eot: token("eot"),
            unk: token("unknown"),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
            remove_extra_whitespaces: flag("remove_extra_whitespaces"),
            chat_template: gguf.str("tokenizer.chat_template").map(str::to_owned),
        };
        for (name, len) in
            [("token_type", vocab.token_types.len()), ("scores", vocab.scores.as_ref().map_or(0, Vec::len))]
        {
            if len != 0 && len != vocab.tokens.len() {
                return Err(FormatError(format!(
                    "tokenizer.ggml.{name} has {len} elements for {} tokens",
                    vocab.tokens.len()
                )));
            }
        }
        Ok(Some(vocab))
    }
}

fn text(value: Value<'_>) -> Option<String> {
    match value {
        Value::Str(s) => Some(s.to_owned()),
        _ => None,
    }
}

fn list<'a, T>(gguf: &Gguf<'a>, name: &str, read: fn(Value<'a>) -> Option<T>) -> Result<Vec<T>, FormatError> {
    let key = format!("tokenizer.ggml.{name}");
    let wrong = || FormatError(format!("{key} is not a list of the right type"));
    match gguf.value(&key) {
        None => Ok(Vec::new()),
        Some(Value::Array(array)) => Array::iter(array).map(|v| read(v).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}
