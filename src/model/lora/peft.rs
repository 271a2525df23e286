//! `adapter_config.json`.

use serde_json::{Map, Value};

use crate::model::weights::error::{FormatError, shown};

/// Fields that say how an adapter was trained or named and change nothing of what it computes.
const NO_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "monteclora_config",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// The part of PEFT's LoraConfig that decides what is computed.
#[derive(Debug, PartialEq)]
pub(super) struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    pub rslora: bool,
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    pub targets: Targets,
}

/// Which modules are adapted.
#[derive(Debug, PartialEq)]
pub(super) enum Targets {
    /// Those whose name ends in one of these, less the excluded, in these layers.
    Named { names: Vec<String>, excluded: Vec<String>, layers: Option<Vec<usize>> },
    /// Chosen by a regular expression: those the file has.
    InFile,
}

impl Targets {
    /// Whether `model.layers.{layer}.{projection}` is adapted; `None`: if the file has it.
    pub fn contains(&self, layer: usize, module: &str) -> Option<bool> {
        let Self::Named { names, excluded, layers } = self else { return None };
        let any = |keys: &[String]| keys.iter().any(|key| key == "all-linear" || is_suffix(key, module));
        Some(any(names) && !any(excluded) && layers.as_ref().is_none_or(|l| l.contains(&layer)))
    }
}

/// Whether `module` is `key` or ends in it, at a dot.
fn is_suffix(key: &str, module: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn bad<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError(what.into()))
}

/// `name is <value>, <what>`.
fn wrong<T>(name: &str, value: &Value, what: &str) -> Result<T, FormatError> {
    bad(format!("{} is {}, {what}", shown(name).trim_matches('"'), short(value)))
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    let mut cut: String = text.chars().take(48).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// Absent, or a value that asks for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

fn rank(name: &str, value: &Value) -> Result<usize, FormatError> {
    match value.as_u64().filter(|r| (1..=1 << 16).contains(r)) {
        Some(r) => Ok(r as usize),
        None => wrong(name, value, "must be a whole number from 1"),
    }
}

fn alpha(name: &str, value: &Value) -> Result<f64, FormatError> {
    match value.as_f64().filter(|a| (*a as f32).is_finite()) {
        Some(a) => Ok(a),
        None => wrong(name, value, "must be a number in the range of f32"),
    }
}

fn strings(name: &str, value: &Value) -> Result<Vec<String>, FormatError> {
    let list = value.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    list.map_or_else(|| wrong(name, value, "must be a list of names"), Ok)
}

/// The entries of `rank_pattern` or `alpha_pattern`, in their order: the first that matches counts.
fn pattern<T>(
    name: &str,
    value: Option<Value>,
    read: impl Fn(&str, &Value) -> Result<T, FormatError>,
) -> Result<Vec<(String, T)>, FormatError> {
    let entries = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return wrong(name, &other, "must be an object"),
    };
    let mut out = Vec::with_capacity(entries.len());
    for (key, value) in &entries {
        // PEFT takes keys for regular expressions; names are the ones that stand for themselves.
        if !key.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c)) {
            return bad(format!("{name} has the key {}: only names of modules are supported", shown(key)));
        }
        out.push((key.clone(), read(&format!("{name}.{key}"), value)?));
    }
    Ok(out)
}

fn layers(value: &Value) -> Result<Vec<usize>, FormatError> {
    let index = |v: &Value| v.as_u64().map(|n| n as usize);
    let list = match value {
        Value::Array(a) => a.iter().map(index).collect(),
        one => index(one).map(|n| vec![n]),
    };
    list.map_or_else(|| wrong("layers_to_transform", value, "must be a list of layers"), Ok)
}

impl PeftConfig {
    /// Reads the object; a field that asks for something not implemented is refused by its name.
    pub fn parse(mut map: Map<String, Value>) -> Result<Self, FormatError> {
        let mut take = |name: &str| map.shift_remove(name).filter(|v| !v.is_null());
        match take("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(other) => return wrong("peft_type", &other, "only \"LORA\" is supported"),
            None => return bad("peft_type is missing"),
        }
        if let Some(task) = take("task_type").filter(|t| t != "CAUSAL_LM") {
            return wrong("task_type", &task, "only \"CAUSAL_LM\" is supported");
        }
        if let Some(bias) = take("bias").filter(|b| b != "none") {
            return wrong("bias", &bias, "only \"none\" is supported");
        }
        // The others change the base model's weights, or are no plain product of two matrices.
        const INITS: &[&str] = &["gaussian", "eva", "orthogonal"];
        let plain = |v: &Value| v.is_boolean() || v.as_str().is_some_and(|s| INITS.contains(&s));
        if let Some(init) = take("init_lora_weights").filter(|v| !plain(v)) {
            return wrong("init_lora_weights", &init, "which begins with other base weights: convert it to plain LoRA");
        }
        let Some(r) = take("r") else { return bad("r is missing") };
        let Some(lora_alpha) = take("lora_alpha") else { return bad("lora_alpha is missing") };
        let rslora = match take("use_rslora") {
            None => false,
            Some(Value::Bool(b)) => b,
            Some(other) => return wrong("use_rslora", &other, "must be true or false"),
        };
        let layers = take("layers_to_transform").map(|v| layers(&v)).transpose()?;
        if let Some(p) = take("layers_pattern").filter(|p| !is_nothing(p) && *p != "layers") {
            let named = p.as_array().is_some_and(|a| a.iter().any(|v| v == "layers"));
            if !named {
                return wrong("layers_pattern", &p, "only \"layers\" is supported");
            }
        }
        let excluded = take("exclude_modules").filter(|v| !is_nothing(v));
        let targets = match (take("target_modules"), excluded) {
            (None, _) => return bad("target_modules is missing"),
            (Some(Value::String(s)), None) if s == "all-linear" => {
                Targets::Named { names: vec![s], excluded: Vec::new(), layers }
            }
            (Some(Value::String(_)), _) | (Some(_), Some(Value::String(_))) => Targets::InFile,
            (Some(names), excluded) => Targets::Named {
                names: strings("target_modules", &names)?,
                excluded: excluded.map_or(Ok(Vec::new()), |v| strings("exclude_modules", &v))?,
                layers,
            },
        };
        if let Targets::Named { names, .. } = &targets
            && let Some(name) = names.iter().find(|n| is_suffix("embed_tokens", n) || is_suffix("lm_head", n))
        {
            return bad(format!("target_modules names {}, which is not supported", shown(name)));
        }
        let config = Self {
            rank: rank("r", &r)?,
            alpha: alpha("lora_alpha", &lora_alpha)?,
            rslora,
            rank_pattern: pattern("rank_pattern", take("rank_pattern"), rank)?,
            alpha_pattern: pattern("alpha_pattern", take("alpha_pattern"), alpha)?,
            targets,
        };
        for (name, value) in &map {
            if !NO_EFFECT.contains(&name.as_str()) && !is_nothing(value) {
                return wrong(name, value, "which is not supported");
            }
        }
        Ok(config)
    }

    /// The rank of a module.
    pub fn rank_of(&self, module: &str) -> usize {
        first(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// What a module's product is multiplied with.
    pub fn scale_of(&self, module: &str) -> f32 {
        let (alpha, rank) = (first(&self.alpha_pattern, module).unwrap_or(self.alpha), self.rank_of(module) as f64);
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

fn first<T: Copy>(pattern: &[(String, T)], module: &str) -> Option<T> {
    pattern.iter().find(|(key, _)| is_suffix(key, module)).map(|(_, value)| *value)
}
