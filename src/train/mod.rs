//! Training: conversations from files, the tokens a model learns from them, and the model that learns.
//!
//! [`data`] reads and validates; [`base`] opens the model that is to be trained; [`render`] turns a conversation into
//! ids and a mask with the renderer that serves; [`report`] counts; [`inspect`] shows. [`model`] computes
//! losses and gradients.

pub mod base;
pub mod data;
pub mod inspect;
pub mod model;
pub mod render;
pub mod report;

pub use base::{Base, BaseError};
pub use data::{Conversation, DataErrors, Dataset, Format, Role, Turn};
pub use model::{Gradients, LossSum, Model, ModelError, Parameter, StepKey};
pub use render::{Example, RenderError, Renderer, Template};
pub use report::Report;
