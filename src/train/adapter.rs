//! LoRA's result as PEFT's adapter, which `lima --lora-modules` and PEFT read.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::json;

use super::model::Parameter;
use super::recipe::{Lora, Number};
use super::tensors::{self, Entry};
use crate::model::lora::Projection;

/// Names of the trained matrices, as PEFT has them.
const PREFIX: &str = "base_model.model.";

/// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, which exists, and syncs them. Rows of new
/// tokens are no part of an adapter.
///
/// # Errors
/// A file cannot be written.
pub fn write(dir: &Path, base: &str, lora: Lora, parameters: &[Parameter]) -> io::Result<()> {
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": Projection::ALL.map(|p| p.name().rsplit('.').next().unwrap_or(p.name())),
    });
    let path = dir.join("adapter_config.json");
    let mut json = serde_json::to_vec_pretty(&config)?;
    json.push(b'\n');
    fs::write(&path, json)?;
    File::open(&path)?.sync_all()?;

    let named = parameters.iter().filter_map(|p| Some((p, &p.tensors.first()?.name)));
    let matrices: Vec<_> = named.filter(|(_, name)| name.starts_with(PREFIX)).collect();
    let entry = |(p, name): &(&Parameter, &String)| Entry {
        name: (*name).clone(),
        format: Number::F32,
        shape: p.var.dims().to_vec(),
    };
    let entries: Vec<Entry> = matrices.iter().map(entry).collect();
    tensors::write(&dir.join("adapter_model.safetensors"), &entries, &[("format", "pt")], |i, out| {
        out.tensor(matrices[i].0.var.as_tensor())
    })
}
