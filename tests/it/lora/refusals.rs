//! Adapters that cannot be used are refused by file and field or tensor.

use std::fs;

use lima::model::lora::Adapter;
use lima::model::weights::Checkpoint;
use serde_json::{Value, json};

use super::{folder, goldens};

/// A copy of the adapter `gqa-qv`, to damage.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(folder("gqa-qv").join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn open(dir: &std::path::Path) -> Result<Adapter, String> {
    let checkpoint = Checkpoint::open(goldens::path("gqa")).unwrap();
    Adapter::open(dir, checkpoint.config(), 16).map_err(|e| e.to_string())
}

fn set(dir: &std::path::Path, changes: Value) {
    let path = dir.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn fields_are_refused_with_the_file() {
    for (changes, expected) in [
        (json!({"use_dora": true}), "adapter_config.json: use_dora is true"),
        (json!({"modules_to_save": ["embed_tokens"]}), "adapter_config.json: modules_to_save is"),
        (json!({"r": 17}), "adapter_config.json: r is 17, above --max-lora-rank 16"),
        (json!({"rank_pattern": {"v_proj": 64}}), "adapter_config.json: rank_pattern.\"v_proj\" is 64, above"),
        (
            json!({"r": 4}),
            "adapter_model.safetensors: tensor \"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\" is \
             8 x 64, the model and r need 4 x 64",
        ),
        (
            json!({"target_modules": ["q_proj", "v_proj", "k_proj"]}),
            "tensor \"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight\" is missing",
        ),
        (
            json!({"target_modules": ["q_proj"]}),
            "tensors \"base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight\", ",
        ),
        (json!({"layers_to_transform": [0]}), "and 1 more: not part of a LoRA adapter of this model"),
        (json!({"target_modules": ["nothing"]}), "not part of a LoRA adapter"),
    ] {
        let dir = copy();
        set(dir.path(), changes);
        let error = open(dir.path()).unwrap_err();
        assert!(error.contains(expected) && error.contains(dir.path().to_str().unwrap()), "{error}\n{expected}");
    }
    // A regular expression: the file decides.
    let dir = copy();
    set(dir.path(), json!({"target_modules": ".*\\.(q|v)_proj"}));
    open(dir.path()).unwrap();
}

#[test]
fn files_are_refused() {
    let adapter = "adapter_model.safetensors";
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let dir = copy();
        let mut bytes = fs::read(dir.path().join(adapter)).unwrap();
        change(&mut bytes);
        fs::write(dir.path().join(adapter), bytes).unwrap();
        open(dir.path()).unwrap_err()
    };
    let nan = edit(&|b| {
        let end = b.len();
        b[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let last = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    assert!(nan.contains(&format!("tensor \"{last}\" has the value NaN in row 31, column 7")), "{nan}");
    let cut = edit(&|b| b.truncate(b.len() - 4));
    assert!(cut.contains("adapter_model.safetensors") && cut.contains("trunc"), "{cut}");
    let bomb = edit(&|b| b.extend(vec![0; 4 << 20]));
    assert!(bomb.contains("more than the"), "{bomb}");
    let magnitude = edit(&|b| {
        let at = b.windows(6).position(|w| w == b"lora_A").unwrap();
        b[at..at + 6].copy_from_slice(b"lora_X");
    });
    assert!(magnitude.contains("lora_A.weight\" is missing"), "{magnitude}");

    let dir = copy();
    fs::rename(dir.path().join(adapter), dir.path().join("adapter_model.bin")).unwrap();
    assert!(open(dir.path()).unwrap_err().contains("pickled weights are not read"));
    fs::remove_file(dir.path().join("adapter_model.bin")).unwrap();
    assert!(open(dir.path()).unwrap_err().contains(adapter));
    fs::create_dir(dir.path().join(adapter)).unwrap();
    assert!(open(dir.path()).unwrap_err().contains("is not a file"));
    fs::write(dir.path().join("adapter_config.json"), "[]").unwrap();
    assert!(open(dir.path()).unwrap_err().contains("adapter_config.json: is not a JSON object"));
    assert!(open(std::path::Path::new("/nonexistent")).unwrap_err().contains("/nonexistent/adapter_config.json"));
    // Another model's adapter.
    assert!(open(&folder("mqa-odd-all")).unwrap_err().contains("safetensors: "));
}
