//! A model on disk, opened and checked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::error::{LoadError, shown};
use super::gguf::{Gguf, MAGIC, TensorInfo};
use super::{TensorView, expected_tensors, names, safetensors};
use crate::model::config::{GenerationDefaults, LlamaConfig};
use crate::text::GgufVocab;

/// Largest JSON file read.
const MAX_JSON: u64 = 16 << 20;

/// What kind of checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face directory: config.json, model.safetensors, tokenizer.json.
    HuggingFace(PathBuf),
    /// A single file with weights, tokenizer and template.
    Gguf(PathBuf),
}

/// Configuration and weights, memory-mapped. Its tensors are exactly those the configuration needs.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    config: LlamaConfig,
    generation: GenerationDefaults,
    vocab: Option<GgufVocab>,
    tensors: BTreeMap<String, TensorInfo>,
    map: Mmap,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a `.gguf` file, reads its configuration, and checks that
    /// every tensor is there with its shape and none is left over.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(LoadError::io(path))?;
        if kind.is_dir() {
            return open_directory(path);
        }
        if !kind.is_file() {
            return Err(LoadError::file(path, "is neither a directory nor a file"));
        }
        refuse_pickle(path)?;
        let map = map(path)?;
        if map.get(..4) == Some(MAGIC) {
            return open_gguf(path, map);
        }
        Err(LoadError::file(
            path,
            match path.extension() {
                Some(e) if e == "safetensors" => "is only the weights: give the directory it is in, with config.json",
                Some(e) if e == "gguf" => "is not a GGUF file (it does not begin with \"GGUF\")",
                _ => "is not a model: give a Hugging Face directory or a .gguf file",
            },
        ))
    }

    /// Shape and constants.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The author's sampling values; empty where there are none.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The vocabulary of a GGUF file.
    pub fn gguf_vocab(&self) -> Option<&GgufVocab> {
        self.vocab.as_ref()
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Hugging Face names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Stored bytes of all tensors.
    pub fn total_bytes(&self) -> usize {
        self.tensors.values().map(|t| t.size).sum()
    }

    /// A tensor by its Hugging Face name.
    pub fn tensor(&self, hf_name: &str) -> Result<TensorView<'_>, LoadError> {
        let missing = || LoadError::file(self.path(), format!("tensor {} is missing", shown(hf_name)));
        let info = self.tensors.get(hf_name).ok_or_else(missing)?;
        let is_gguf = matches!(self.source, Source::Gguf(_));
        let interleaved = (is_gguf && names::is_permuted_in_gguf(hf_name)).then_some(self.config.head_dim);
        let data = &self.map[info.offset..][..info.size];
        TensorView::new(info.dtype, info.rows, info.cols, data, interleaved).ok_or_else(missing)
    }

    /// Gives back the memory that a tensor's part of the file takes in this process; it is read again when needed.
    pub fn release(&self, hf_name: &str) {
        #[cfg(unix)]
        if let Some(info) = self.tensors.get(hf_name) {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is shared and read only, so its pages come back from the file as they were. Failure
            // is harmless.
            let _ = unsafe { self.map.unchecked_advise_range(advice, info.offset, info.size) };
        }
    }

    fn path(&self) -> &Path {
        match &self.source {
            Source::HuggingFace(path) | Source::Gguf(path) => path,
        }
    }

    /// Missing, leftover and wrongly shaped tensors are errors that name them.
    fn check_complete(mut self) -> Result<Self, LoadError> {
        self.tensors.retain(|name, _| !names::is_ignored(name, &self.config));
        let expected = expected_tensors(&self.config);
        let mut missing = Vec::new();
        for (name, [rows, cols]) in &expected {
            match self.tensors.get(name) {
                None => missing.push(name.as_str()),
                Some(t) if (t.rows, t.cols) != (*rows, *cols) => {
                    return Err(LoadError::file(
                        self.path(),
                        format!("tensor {name} is {} x {}, the configuration needs {rows} x {cols}", t.rows, t.cols),
                    ));
                }
                Some(_) => {}
            }
        }
        if !missing.is_empty() {
            return Err(LoadError::file(self.path(), some_names("missing", &missing)));
        }
        if self.tensors.len() > expected.len() {
            let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
            let leftover: Vec<&str> = self.names().filter(|name| !known.contains(name)).collect();
            return Err(LoadError::file(self.path(), some_names("not part of a Llama of this shape", &leftover)));
        }
        Ok(self)
    }
}

/// "tensors a, b, c and 12 more are …".
fn some_names(what: &str, names: &[&str]) -> String {
    const MOST: usize = 3;
    let first = names.iter().take(MOST).map(|n| shown(n)).collect::<Vec<_>>().join(", ");
    match names.len() {
        1 => format!("tensor {first} is {what}"),
        n if n <= MOST => format!("tensors {first} are {what}"),
        n => format!("tensors {first} and {} more are {what}", n - MOST),
    }
}

fn open_directory(dir: &Path) -> Result<Checkpoint, LoadError> {
    let config_path = dir.join("config.json");
    if !config_path.exists() {
        return Err(LoadError::file(dir, "has no config.json: it is not a Hugging Face model directory"));
    }
    let config = LlamaConfig::from_hf(&read_object(&config_path)?).map_err(|e| LoadError::file(&config_path, e))?;
    let generation_path = dir.join("generation_config.json");
    let generation = if generation_path.exists() {
        GenerationDefaults::from_json(&read_object(&generation_path)?)
            .map_err(|e| LoadError::file(&generation_path, e))?
    } else {
        GenerationDefaults::default()
    };
    let weights = dir.join("model.safetensors");
    if !weights.exists() {
        return Err(LoadError::file(dir, why_no_weights(dir)));
    }
    let map = map(&weights)?;
    let tensors = safetensors::parse(&map).map_err(|e| LoadError::file(&weights, e))?;
    Checkpoint { source: Source::HuggingFace(dir.to_owned()), config, generation, vocab: None, tensors, map }
        .check_complete()
}

fn why_no_weights(dir: &Path) -> &'static str {
    let names: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| PathBuf::from(e.file_name())).collect();
    if names.iter().any(|n| n.as_os_str() == "model.safetensors.index.json") {
        "has its weights in several files, which is not supported: save them as one model.safetensors"
    } else if names.iter().any(|n| is_pickle(n)) {
        "has no model.safetensors; its pickled weights are not read, because unpickling runs code from the file: \
         convert them to safetensors"
    } else {
        "has no model.safetensors"
    }
}

fn open_gguf(path: &Path, map: Mmap) -> Result<Checkpoint, LoadError> {
    const ROPE_FACTORS: &str = "rope_freqs.weight";
    let in_file = |e: &dyn std::fmt::Display| LoadError::file(path, e);
    let gguf = Gguf::parse(&map).map_err(|e| in_file(&e))?;
    let factors = gguf
        .tensor(ROPE_FACTORS)
        .and_then(|t| TensorView::new(t.dtype, t.rows, t.cols, &map[t.offset..][..t.size], None))
        .map(|view| view.to_f32());
    let config = LlamaConfig::from_gguf(&gguf, factors).map_err(|e| in_file(&e))?;
    let vocab = GgufVocab::from_gguf(&gguf).map_err(|e| in_file(&e))?;
    if let Some(n) = vocab.as_ref().map(|v| v.tokens.len()).filter(|n| *n > config.vocab_size) {
        return Err(in_file(&format_args!(
            "tokenizer.ggml.tokens has {n} tokens, llama.vocab_size is {}",
            config.vocab_size
        )));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in gguf.tensors().filter(|(name, _)| *name != ROPE_FACTORS) {
        let Some(hf_name) = names::from_gguf(name) else {
            return Err(LoadError::file(path, some_names("not part of a Llama", &[name])));
        };
        tensors.insert(hf_name, *info);
    }
    let source = Source::Gguf(path.to_owned());
    Checkpoint { source, config, generation: GenerationDefaults::default(), vocab, tensors, map }.check_complete()
}

/// Formats that are Python pickles.
fn is_pickle(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    matches!(extension.as_str(), "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")
}

fn refuse_pickle(path: &Path) -> Result<(), LoadError> {
    if is_pickle(path) {
        return Err(LoadError::file(
            path,
            "is not read: such files are Python pickles, and unpickling runs code from the file; convert it to \
             safetensors or GGUF",
        ));
    }
    Ok(())
}

fn map(path: &Path) -> Result<Mmap, LoadError> {
    let file = File::open(path).map_err(LoadError::io(path))?;
    if !file.metadata().map_err(LoadError::io(path))?.is_file() {
        return Err(LoadError::file(path, "is not a file"));
    }
    // SAFETY: the map is private and read only. Files are replaced by renaming; someone who
    // truncates a model in place while it is served ends the process with SIGBUS.
    unsafe { Mmap::map(&file) }.map_err(LoadError::io(path))
}

fn read_object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let size = fs::metadata(path).map_err(LoadError::io(path))?.len();
    if size > MAX_JSON {
        return Err(LoadError::file(path, format!("has {size} bytes, at most {MAX_JSON} are read")));
    }
    let bytes = fs::read(path).map_err(LoadError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::file(path, format!("is not a JSON object ({e})")))
}
