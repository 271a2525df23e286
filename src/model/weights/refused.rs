//! Weights that are not read, and what to do instead.

use std::fs;
use std::path::{Path, PathBuf};

const UNPICKLING: &str = "unpickling runs code from the file";

/// How to make what can be read out of Meta's own files.
const CONVERSION: &str = "convert it with transformers 4, python -m transformers.models.llama.convert_llama_weights_to_hf \
     --input_dir DIR --model_size SIZE --llama_version VERSION --output_dir OUT, and give OUT";

/// Why a file is refused for its name alone.
pub(super) fn file(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    if is_original(&name) {
        return Some(format!("is part of an original LLaMA checkpoint, which is not read; {CONVERSION}"));
    }
    is_pickle(&name).then(|| {
        format!("is not read: such files are Python pickles, and {UNPICKLING}; convert it to safetensors or GGUF")
    })
}

/// Why a directory without `config.json`, or with it but without safetensors, is refused.
pub(super) fn directory(dir: &Path, missing: &str) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<PathBuf> = entries.map(|e| PathBuf::from(e.file_name())).collect();
    let any = |test: fn(&str) -> bool| {
        names.iter().filter_map(|n| n.to_str()).find(|n| test(&n.to_ascii_lowercase())).map(str::to_owned)
    };
    if let Some(name) = any(is_original) {
        format!("has no {missing}, but {name:?}: it is an original LLaMA checkpoint, which is not read; {CONVERSION}")
    } else if let Some(name) = any(is_weights_pickle) {
        format!(
            "has no {missing}; its pickled weights ({name:?}) are not read, because {UNPICKLING}: convert them to \
             safetensors"
        )
    } else if let Some(name) = any(|n| n.ends_with(".gguf")) {
        format!("has no {missing}, but {name:?}: give the path of that file")
    } else if missing == "config.json" {
        "has no config.json: it is not a Hugging Face model directory".to_owned()
    } else {
        format!("has no {missing}")
    }
}

/// Names of Meta's release, lower case: `consolidated.00.pth`, `consolidated.safetensors`.
fn is_original(name: &str) -> bool {
    name.starts_with("consolidated.") && (name.ends_with(".pth") || name.ends_with(".safetensors"))
}

fn is_pickle(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    matches!(extension, "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")
}

fn is_weights_pickle(name: &str) -> bool {
    is_pickle(name) && !name.starts_with("training_args") && !name.starts_with("optimizer")
}
