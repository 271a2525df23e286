//! Text on both sides of the model: chat messages to token ids, token ids to text.
//!
//! [`PromptRenderer`] renders a chat template and encodes the result so that special tokens come
//! from the template alone. [`TextStream`] turns generated ids back into text that never splits a
//! character nor shows part of a stop string.

pub mod chat;
pub mod chat_template;
pub mod constraint;
pub mod detokenizer;
pub mod dialogue;
pub mod export;
mod expression;
mod gguf_vocab;
mod hf_files;
mod pieces;
mod pre_kind;
mod pre_tokenizer;
mod sentencepiece;
mod sentencepiece_dir;
mod sentencepiece_model;
pub mod stop;
mod strftime;
mod tojson;
mod token_table;
pub mod tokenizer;

pub use chat::{ChatMessage, PromptError, PromptRenderer};
pub use chat_template::{ChatTemplate, TemplateError};
pub use constraint::{ConstraintError, Constraints, Spec, enforced_schema};
pub use detokenizer::Detokenizer;
pub use dialogue::Dialogue;
pub use export::TokenizerFiles;
pub use gguf_vocab::GgufVocab;
pub use stop::{Piece, StopMatcher, StopOutcome, TextStream};
pub use tojson::python_json;
pub use tokenizer::{Rendered, Tokenizer, TokenizerError};
