//! Whom a request is for: the one place where a model's name is looked up and sequences get what
//! belongs to it.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::state::ServedModel;
use crate::engine::{AdapterLease, Matcher, Request, SamplingParams, Task, TokenId};

/// A name that is served.
#[derive(Clone, Debug)]
pub struct Target {
    /// The model's name as asked for.
    pub name: String,
    /// Keeps it loaded.
    adapter: Option<AdapterLease>,
}

impl Target {
    /// Takes the field `model`, which must be there.
    pub fn require(f: &mut Fields, model: &ServedModel) -> Result<Self, ApiError> {
        let name = f.require("model")?;
        Self::named(name, model)
    }

    /// Takes the field `model`; without it, the first name is meant.
    pub fn optional(f: &mut Fields, model: &ServedModel) -> Result<Self, ApiError> {
        match f.take("model") {
            Some(name) => Self::named(name, model),
            None => Self::named(Value::String(model.names[0].clone()), model),
        }
    }

    fn named(name: Value, model: &ServedModel) -> Result<Self, ApiError> {
        match name {
            Value::String(name) => {
                let adapter = model.resolve(&name)?;
                Ok(Self { name, adapter })
            }
            other => Err(wrong_type("model", "a string", &other)),
        }
    }

    /// A sequence for the engine, whose text may be constrained.
    pub fn sequence(
        &self,
        prompt: &Arc<[TokenId]>,
        task: Task,
        params: Arc<SamplingParams>,
        constraint: Option<Box<dyn Matcher>>,
    ) -> Request {
        let (prompt, adapter) = (Arc::clone(prompt), self.adapter.clone());
        Request { prompt, task, params, priority: 0, cache_salt: None, adapter, constraint }
    }
}
