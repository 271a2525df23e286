//! A model on disk, opened and checked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{LoadError, shown};
use super::gguf::{Gguf, MAGIC, TensorInfo};
use super::mapped::{MappedFile, read_object};
use super::{TensorView, expected_tensors, index, names, refused, safetensors, split};
use crate::model::config::{GenerationDefaults, LlamaConfig};
use crate::text::GgufVocab;

/// What kind of checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Hugging Face directory: config.json, model.safetensors or its shards, tokenizer.json.
    HuggingFace(PathBuf),
    /// A file with weights, tokenizer and template, or one part of it.
    Gguf(PathBuf),
}

/// Where a tensor is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Which of the checkpoint's files.
    pub file: usize,
    pub info: TensorInfo,
}

/// Configuration and weights, memory-mapped. Its tensors are exactly those the configuration needs.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    config: LlamaConfig,
    generation: GenerationDefaults,
    vocab: Option<GgufVocab>,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Place>,
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
        if let Some(why) = refused::file(path) {
            return Err(LoadError::file(path, why));
        }
        let file = MappedFile::open(path)?;
        if file.get(..4) == Some(MAGIC) {
            return open_gguf(path, file);
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
        self.tensors.values().map(|t| t.info.size).sum()
    }

    /// A tensor by its Hugging Face name.
    pub fn tensor(&self, hf_name: &str) -> Result<TensorView<'_>, LoadError> {
        let missing = || LoadError::file(&self.whole(), format!("tensor {} is missing", shown(hf_name)));
        let Place { file, info } = self.tensors.get(hf_name).ok_or_else(missing)?;
        let is_gguf = matches!(self.source, Source::Gguf(_));
        let interleaved = (is_gguf && names::is_permuted_in_gguf(hf_name)).then_some(self.config.head_dim);
        let data = &self.files[*file][info.offset..][..info.size];
        TensorView::new(info.dtype, info.rows, info.cols, data, interleaved).ok_or_else(missing)
    }

    /// Gives back the memory that a tensor's part of the file takes in this process; it is read again when needed.
    pub fn release(&self, hf_name: &str) {
        if let Some(Place { file, info }) = self.tensors.get(hf_name) {
            self.files[*file].release(info.offset, info.size);
        }
    }

    /// An error about a tensor, by its Hugging Face name: names the file that has it, and the tensor as that file
    /// calls it. `what` follows the name, such as "has values that are not numbers".
    pub fn tensor_error(&self, hf_name: &str, what: impl std::fmt::Display) -> LoadError {
        let in_whole = || self.whole();
        let path = self.tensors.get(hf_name).map_or_else(in_whole, |t| self.files[t.file].path.clone());
        LoadError::file(&path, format!("tensor {} {what}", shown(&self.own_name(hf_name))))
    }

    /// The file to name where no single one is at fault: the only one, the index, or what was asked for.
    fn whole(&self) -> PathBuf {
        match (&self.source, &self.files[..]) {
            (_, [file]) => file.path.clone(),
            (Source::HuggingFace(dir), _) => dir.join(index::INDEX),
            (Source::Gguf(path), _) => path.clone(),
        }
    }

    /// A tensor's name in the file.
    fn own_name(&self, hf_name: &str) -> String {
        let gguf = matches!(self.source, Source::Gguf(_)).then(|| names::to_gguf(hf_name)).flatten();
        gguf.unwrap_or_else(|| hf_name.to_owned())
    }

    /// Missing, leftover and wrongly shaped tensors are errors that name them.
    fn check_complete(mut self) -> Result<Self, LoadError> {
        self.tensors.retain(|name, _| !names::is_ignored(name, &self.config));
        let expected = expected_tensors(&self.config);
        let mut missing = Vec::new();
        for (name, [rows, cols]) in &expected {
            match self.tensors.get(name).map(|t| (t.info.rows, t.info.cols)) {
                None => missing.push(self.own_name(name)),
                Some(shape) if shape == (*rows, *cols) => {}
                Some((n, width)) if width == *cols && names::is_vocabulary(name) => {
                    return Err(self.tensor_error(name, format!("has {n} rows, the vocabulary has {rows} tokens")));
                }
                Some((n, width)) => {
                    let what = format!("is {n} x {width}, the configuration needs {rows} x {cols}");
                    return Err(self.tensor_error(name, what));
                }
            }
        }
        if !missing.is_empty() {
            let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
            return Err(LoadError::file(&self.whole(), some_names("missing", &missing)));
        }
        if self.tensors.len() > expected.len() {
            let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
            let leftover = || self.tensors.iter().filter(|(name, _)| !known.contains(name.as_str()));
            let file = leftover().next().map_or_else(|| self.whole(), |(_, t)| self.files[t.file].path.clone());
            let names: Vec<String> = leftover().map(|(name, _)| self.own_name(name)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(LoadError::file(&file, some_names("not part of a Llama of this shape", &names)));
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
        return Err(LoadError::file(dir, refused::directory(dir, "config.json")));
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
    let (files, tensors) = if weights.exists() {
        let file = MappedFile::open(&weights)?;
        let tensors = safetensors::parse(&file).map_err(|e| LoadError::file(&weights, e))?;
        (vec![file], tensors.into_iter().map(|(name, info)| (name, Place { file: 0, info })).collect())
    } else if dir.join(index::INDEX).exists() {
        index::open(dir, |name| names::is_ignored(name, &config))?
    } else {
        return Err(LoadError::file(dir, refused::directory(dir, "model.safetensors")));
    };
    Checkpoint { source: Source::HuggingFace(dir.to_owned()), config, generation, vocab: None, files, tensors }
        .check_complete()
}

fn open_gguf(path: &Path, file: MappedFile) -> Result<Checkpoint, LoadError> {
    const ROPE_FACTORS: &str = "rope_freqs.weight";
    let files = split::open_all(file)?;
    let mut ggufs = Vec::with_capacity(files.len());
    for file in &files {
        ggufs.push(Gguf::parse(file).map_err(|e| LoadError::file(&file.path, e))?);
    }
    split::check(&files, &ggufs)?;

    let mut tensors = BTreeMap::new();
    let mut factors = None;
    for (at, gguf) in ggufs.iter().enumerate() {
        let path = &files[at].path;
        for (name, &info) in gguf.tensors() {
            let twice = if name == ROPE_FACTORS {
                factors.replace(Place { file: at, info })
            } else if let Some(hf_name) = names::from_gguf(name) {
                tensors.insert(hf_name, Place { file: at, info })
            } else {
                return Err(LoadError::file(path, some_names("not part of a Llama", &[name])));
            };
            if let Some(other) = twice {
                let other = files[other.file].path.display();
                return Err(LoadError::file(path, format!("tensor {} is in {other} as well", shown(name))));
            }
        }
    }
    // Checked again against the shape; this bounds what is read before that is known.
    if let Some(Place { file, info: t }) = factors.filter(|p| p.info.rows * p.info.cols > 1 << 12) {
        let what = format!("tensor {} has {} x {} values", shown(ROPE_FACTORS), t.rows, t.cols);
        return Err(LoadError::file(&files[file].path, what));
    }
    let factors = factors
        .and_then(|Place { file, info: t }| {
            TensorView::new(t.dtype, t.rows, t.cols, &files[file][t.offset..][..t.size], None)
        })
        .map(|view| view.to_f32());

    // The first file has the metadata.
    let (gguf, in_file) = (&ggufs[0], |e: &dyn std::fmt::Display| LoadError::file(&files[0].path, e));
    let config =
        LlamaConfig::from_gguf(gguf, tensors.contains_key("lm_head.weight"), factors).map_err(|e| in_file(&e))?;
    let vocab = GgufVocab::from_gguf(gguf).map_err(|e| in_file(&e))?;
    if let Some(n) = vocab.as_ref().map(|v| v.tokens.len()).filter(|n| *n > config.vocab_size) {
        return Err(in_file(&format_args!(
            "tokenizer.ggml.tokens has {n} tokens, llama.vocab_size is {}",
            config.vocab_size
        )));
    }
    drop(ggufs);
    let source = Source::Gguf(path.to_owned());
    Checkpoint { source, config, generation: GenerationDefaults::default(), vocab, files, tensors }.check_complete()
}
