//! Which of a repository's files a model needs.

use serde::Deserialize;
use std::collections::BTreeSet;

use crate::model::weights::part_names;

/// The index of weights in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Small files that are taken where they are there.
const OPTIONAL: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// The file and its other parts. Otherwise which GGUF files there are.
pub(super) fn gguf(files: &[String], file: &str) -> Result<Vec<String>, String> {
    let parts = part_names(file).unwrap_or_else(|| vec![file.to_owned()]);
    match parts.iter().find(|part| !files.contains(part)) {
        None => Ok(parts),
        Some(missing) => Err(format!("the repository has no file {missing:?}; {}", ggufs(files))),
    }
}

/// Configuration, tokenizer, template, and the weights or their index: small files first.
pub(super) fn directory(files: &[String]) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|f| f == name);
    let ends = |end: &str| files.iter().any(|f| f.to_ascii_lowercase().ends_with(end));
    let weights = match ["model.safetensors", INDEX].into_iter().find(|name| has(name)) {
        Some(weights) => weights,
        None if ends(".gguf") => return Err(format!("name one of its files after a colon; {}", ggufs(files))),
        None if files.iter().any(|f| f.contains("consolidated.")) => {
            return Err("it has an original LLaMA checkpoint (consolidated.*) alone, which is not read: convert it \
                        with transformers 4's convert_llama_weights_to_hf.py"
                .into());
        }
        None if ends(".bin") || ends(".pth") || ends(".pt") => {
            return Err("its weights are Python pickles alone, which are not read: choose a repository or revision \
                        with model.safetensors, or convert them"
                .into());
        }
        None => return Err("it has no model.safetensors".into()),
    };
    if !has("config.json") {
        return Err("it has no config.json: it is not a model".into());
    }
    let tokenizer = ["tokenizer.json", "tokenizer.model"].into_iter().find(|name| has(name));
    let optional = OPTIONAL.into_iter().filter(|name| has(name));
    let all = ["config.json"].into_iter().chain(optional).chain(tokenizer).chain([weights]);
    Ok(all.map(str::to_owned).collect())
}

/// The shards that an index names.
pub(super) fn shards(index: &[u8], files: &[String]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|_| format!("its {INDEX} is damaged"))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    let is_plain = |name: &str| {
        name.ends_with(".safetensors")
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    for name in &shards {
        if !is_plain(name) {
            return Err(format!("its {INDEX} names {name:?}, which is not a safetensors file beside it"));
        }
        if !files.contains(name) {
            return Err(format!("its {INDEX} names {name:?}, which the repository does not have"));
        }
    }
    Ok(shards.into_iter().collect())
}

fn ggufs(files: &[String]) -> String {
    const MOST: usize = 12;
    let mut names: Vec<&str> = files.iter().map(String::as_str).filter(|f| f.ends_with(".gguf")).collect();
    names.sort_unstable();
    match names.len() {
        0 => "it has no .gguf file".into(),
        n if n > MOST => format!("its .gguf files are {} and {} more", names[..MOST].join(", "), n - MOST),
        _ => format!("its .gguf files are {}", names.join(", ")),
    }
}
