//! Training data: conversations from files, and the tokens a model learns from them.
//!
//! [`data`] reads and validates; [`base`] opens the model that is to be trained; [`render`] turns a conversation into
//! ids and a mask with the renderer that serves; [`report`] counts; [`inspect`] shows.

pub mod base;
pub mod data;
pub mod events;
pub mod inspect;
pub mod plan;
pub mod render;
pub mod report;
pub mod samples;
pub mod watch;

pub use base::{Base, BaseError};
pub use data::{Conversation, DataErrors, Dataset, Format, Role, Turn};
pub use render::{Example, RenderError, Renderer, Template};
pub use report::Report;
