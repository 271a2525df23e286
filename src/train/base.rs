//! The model that is to be trained.

use std::path::PathBuf;

use crate::engine::TokenId;
use crate::hub::{self, HubError, ModelSource};
use crate::model::weights::{Checkpoint, LoadError, Source};
use crate::text::{TokenizerError, TokenizerFiles};

/// A base that cannot be found or read.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// It is not there, or cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// It is not a model, or a damaged one.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A GGUF file without a tokenizer.
    #[error("{}: the file has no tokenizer", .0.display())]
    NoTokenizer(PathBuf),
    /// Tokenizer and weights are of different models.
    #[error("{}: the tokenizer has {tokens} tokens, the model's vocabulary only {rows}", path.display())]
    Vocabulary {
        /// The model.
        path: PathBuf,
        /// Ids of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
}

/// A base: its weights, opened and not read yet, and its tokenizer.
#[derive(Debug)]
pub struct Base {
    /// Configuration and weights.
    pub checkpoint: Checkpoint,
    /// Tokenizer and chat template.
    pub tokenizer: TokenizerFiles,
}

impl Base {
    /// Opens whatever `--model` of the server may name; pulls it first if need be.
    pub fn open(source: &str) -> Result<Self, BaseError> {
        let source: ModelSource = source.parse()?;
        let path = hub::resolve(&source, &hub::terminal_progress())?;
        let checkpoint = Checkpoint::open(&path)?;
        let tokenizer = match (checkpoint.source(), checkpoint.gguf_vocab()) {
            (Source::HuggingFace(dir), _) => TokenizerFiles::from_dir(dir)?,
            (Source::Gguf(_), Some(vocab)) => TokenizerFiles::from_gguf(vocab)?,
            (Source::Gguf(_), None) => return Err(BaseError::NoTokenizer(path)),
        };
        let (tokens, rows) = (tokenizer.tokenizer()?.vocab_size(), checkpoint.config().vocab_size);
        match tokens > rows {
            true => Err(BaseError::Vocabulary { path, tokens, rows }),
            false => Ok(Self { checkpoint, tokenizer }),
        }
    }

    /// The tokens that end an answer of the base: those of its configuration and generation configuration, and those
    /// that a GGUF file names.
    pub fn ends(&self) -> Vec<TokenId> {
        let vocab = self.checkpoint.gguf_vocab();
        let named = vocab.map_or([None, None], |v| [v.eos, v.eot]);
        let mut ends = self.checkpoint.config().eos_token_ids.clone();
        ends.extend(&self.checkpoint.generation_defaults().eos_token_ids);
        ends.extend(named.into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}
