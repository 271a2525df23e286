//! What changes from step to step and from layer to layer.

use std::f64::consts::PI;

use super::recipe::{Recipe, Schedule};

/// Learning rate of step `step` (from 0) of `steps`.
///
/// It rises over the warmup's steps, and then goes from the recipe's begin, which the first step after them has, to its
/// end, which the last step has.
pub fn learning_rate(recipe: &Recipe, step: u64, steps: u64) -> f64 {
    let warmup = recipe.warmup_steps;
    if step < warmup {
        return recipe.lr * (step + 1) as f64 / warmup as f64;
    }
    let last = steps.saturating_sub(warmup + 1);
    let done = if last == 0 { 0.0 } else { ((step - warmup) as f64 / last as f64).min(1.0) };
    let left = match recipe.schedule {
        Schedule::Linear => 1.0 - done,
        Schedule::Cosine => 0.5 * (1.0 + (PI * done).cos()),
    };
    recipe.lr_end + (recipe.lr - recipe.lr_end) * left
}

/// Residual dropout of each layer: none in the first, `last` in the last, those between on a line.
pub fn dropout(last: f64, layers: usize) -> Vec<f32> {
    let steps = layers.saturating_sub(1).max(1) as f64;
    (0..layers).map(|layer| (last * layer as f64 / steps) as f32).collect()
}
