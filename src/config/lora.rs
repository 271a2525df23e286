//! `--lora-modules`.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;

/// An adapter to load at the start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraModule {
    /// Name in the API.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// The name of the model it is for; the first served name if there is none.
    #[serde(default)]
    pub base_model_name: Option<String>,
}

/// Reads what the flag was given: each value is `name=path`, several of them with commas between, or a JSON object
/// (or a list of these) as vLLM takes it. Names are unique.
pub(super) fn parse(values: &[String]) -> Result<Vec<LoraModule>, ConfigError> {
    let mut modules: Vec<LoraModule> = Vec::new();
    let json = |e: serde_json::Error| ConfigError(format!("--lora-modules: {e}"));
    for value in values {
        match value.trim_start().chars().next() {
            Some('{') => modules.push(serde_json::from_str(value).map_err(json)?),
            Some('[') => modules.extend(serde_json::from_str::<Vec<LoraModule>>(value).map_err(json)?),
            _ => {
                for item in value.split(',') {
                    let Some((name, path)) = item.split_once('=') else {
                        return Err(ConfigError(format!("--lora-modules '{item}' is not name=path")));
                    };
                    modules.push(LoraModule { name: name.into(), path: path.into(), base_model_name: None });
                }
            }
        }
    }
    for (i, module) in modules.iter().enumerate() {
        let name = &module.name;
        if !is_name(name) {
            return Err(ConfigError("--lora-modules: a name must not be empty nor hold white space".into()));
        }
        if modules[..i].iter().any(|m| m.name == *name) {
            return Err(ConfigError(format!("--lora-modules names '{name}' twice")));
        }
        if !module.path.is_dir() {
            return Err(ConfigError(format!("--lora-modules {name}: '{}' is not a folder", module.path.display())));
        }
    }
    Ok(modules)
}

/// What may name a model.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_control() || c.is_whitespace())
}
