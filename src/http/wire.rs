//! Response bodies. What is written and what `openapi.yaml` says of it are one type.

mod chat;
mod completion;
mod embedding;
mod logprobs;
mod model;
mod token;
mod usage;

pub use self::chat::{
    ChatCompletion, Choice, Chunk, ChunkChoice, Delta, FunctionCall, FunctionDelta, Message, ToolCall, ToolCallDelta,
};
pub use self::completion::{Completion, CompletionChoice};
pub use self::embedding::{Embedding, EmbeddingList, EmbeddingUsage, Vector};
pub use self::logprobs::{LegacyLogprobs, Logprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob, TopMap};
pub use self::model::{Model, ModelList};
pub use self::token::{Detokenized, Tokenized};
pub use self::usage::Usage;
