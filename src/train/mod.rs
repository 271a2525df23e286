//! Training: conversations from files, the tokens a model learns from them, and the model that learns.
//!
//! [`data`] reads and validates; [`base`] opens the model that is to be trained; [`render`] turns a conversation into
//! ids and a mask with the renderer that serves; [`report`] counts; [`inspect`] shows. [`model`] computes
//! losses and gradients.
//!
//! [`trainer`] is the loop, which [`launch`] starts. What it is made of: [`prepare`] (from flags to a run that can begin), [`recipe`],
//! [`order`], [`schedule`], [`optimizer`], [`output`] (the directory of a run), [`state`] (all that going on needs),
//! [`checkpoint`] (what is served), [`shards`] (what each of several ranks has), [`signals`].

pub mod adapter;
pub mod base;
pub mod checkpoint;
mod checksum;
pub mod data;
pub mod error;
pub mod events;
pub mod inspect;
pub mod launch;
pub mod model;
pub mod optimizer;
pub mod order;
pub mod output;
pub mod plan;
pub mod prepare;
pub mod recipe;
pub mod render;
pub mod report;
pub mod samples;
pub mod schedule;
pub mod shards;
pub mod signals;
pub mod state;
pub mod tensors;
pub mod trainer;
pub mod watch;

pub use base::{Base, BaseError};
pub use data::{Conversation, DataErrors, Dataset, Format, Role, Turn};
pub use error::TrainError;
pub use launch::{abort, train, train_on};
pub use model::{Gradients, LossSum, Model, ModelError, Parameter, StepKey};
pub use prepare::{Options, Prepared, Sampling};
pub use recipe::{Choices, Recipe};
pub use render::{Example, RenderError, Renderer, Template};
pub use report::Report;
pub use trainer::Outcome;
