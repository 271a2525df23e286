//! Request bodies as they are sent. Bodies are read field by field, so that every refusal names the field by its path
//! (`http::fields`); these types say what is read, and a test compares them with what the readers take.

mod adapters;
mod anthropic;
mod chat;
mod generation;
mod message;
mod prompt;
mod response;
mod tools;

pub use self::adapters::{LoadLoraAdapter, UnloadLoraAdapter};
pub use self::anthropic::{CountTokensRequest, MessageRequest};
pub use self::chat::{ChatCompletionRequest, TokenizeRequest};
pub use self::prompt::{CompletionRequest, DetokenizeRequest, EmbeddingRequest};
pub use self::response::ResponseRequest;
