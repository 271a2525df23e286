//! Examples side by side.

use super::{ModelError, Settings, StepKey};
use crate::engine::TokenId;
use crate::ops::noise::Noise;
use crate::ops::{Batch, Span};
use crate::train::render::Example;

/// A micro-batch: one span an example, and the rows of logits that the loss needs.
pub(super) struct Packed {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    /// Rows in the data set, one a span.
    rows: Vec<u32>,
    outputs: Vec<u32>,
    /// For each of `outputs`, the token that follows.
    pub targets: Vec<TokenId>,
    /// And how much it counts.
    pub weights: Vec<f32>,
}

impl Packed {
    pub fn new(examples: &[&Example], prompt_weight: f32, vocab: usize) -> Result<Self, ModelError> {
        let mut packed = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            spans: Vec::new(),
            rows: Vec::new(),
            outputs: Vec::new(),
            targets: Vec::new(),
            weights: Vec::new(),
        };
        for example in examples.iter().filter(|e| !e.ids.is_empty()) {
            packed.push(example, prompt_weight, vocab)?;
        }
        Ok(packed)
    }

    fn push(&mut self, example: &Example, prompt_weight: f32, vocab: usize) -> Result<(), ModelError> {
        if let Some(&token) = example.ids.iter().find(|id| **id as usize >= vocab) {
            return Err(ModelError::Token { row: example.row, token, vocab });
        }
        let from = self.tokens.len();
        self.tokens.extend(&example.ids);
        self.positions.extend(0..example.ids.len() as u32);
        self.spans.push(Span { tokens: from..self.tokens.len(), start: 0, blocks: 0..0, adapter: None });
        self.rows.push(example.row);
        for (i, (&id, &supervised)) in example.ids.iter().zip(&example.supervised).enumerate().skip(1) {
            let weight = if supervised { 1.0 } else { prompt_weight };
            if weight > 0.0 {
                self.outputs.push((from + i - 1) as u32);
                self.targets.push(id);
                self.weights.push(weight);
            }
        }
        Ok(())
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            tokens: &self.tokens,
            positions: &self.positions,
            spans: &self.spans,
            blocks: &[],
            outputs: &self.outputs,
        }
    }

    /// Σ weight.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|w| f64::from(*w)).sum()
    }

    pub fn noise(&self, key: StepKey, settings: &Settings) -> Noise {
        Noise { key, rows: self.rows.clone(), dropout: settings.dropout.clone(), neftune: settings.neftune }
    }
}
