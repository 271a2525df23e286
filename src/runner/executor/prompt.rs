//! What is wanted of prompts: how likely their tokens were, and pooled hidden states.

use super::CpuExecutor;
use crate::engine::{Pooling, RowOut, Scored, StepInput, StepOutput, TokenId, Want};
use crate::ops::cpu::X;
use crate::ops::{Batch, OpsError};

const NOT_FINITE: &str = "the model's output is not finite";

/// Hidden states of a sequence's tokens added up, in order of position, one by one: the sum does not depend on
/// how the prompt was cut into chunks.
#[derive(Debug, Default)]
pub(super) struct Sum {
    tokens: usize,
    values: Vec<f64>,
}

/// A token to score.
struct Target<'a> {
    row: usize,
    token: TokenId,
    top: u32,
    logits: &'a [f32],
    scored: Option<Scored>,
}

impl CpuExecutor {
    /// Scores what the step's rows ask for, as many positions at a time as the workspace has rows of logits.
    pub(super) fn score(
        &mut self,
        step: &StepInput,
        x: &X,
        batch: &Batch<'_>,
        out: &mut StepOutput,
    ) -> Result<(), OpsError> {
        let mut all = Vec::new();
        for (row, span) in batch.spans.iter().enumerate() {
            let Some(score) = &step.rows[row].score else { continue };
            out.scores.push((row, Vec::with_capacity(score.targets.len())));
            let first = (span.tokens.start + score.first) as u32;
            all.extend((first..).zip(&step.targets[score.targets.clone()]).map(|(at, &t)| (row, at, t, score.top)));
        }
        let mut outputs = Vec::new();
        for part in all.chunks(self.ops.max_outputs()) {
            outputs.clear();
            outputs.extend(part.iter().map(|&(_, at, ..)| at));
            self.model.head(&mut self.ops, x, &Batch { outputs: &outputs, ..*batch })?;
            if !self.ops.has_logits() {
                continue;
            }
            let (pool, logits, stride) = self.ops.logits();
            let mut targets: Vec<Target<'_>> = logits
                .chunks_exact(stride)
                .zip(part)
                .map(|(logits, &(row, _, token, top))| Target { row, token, top, logits, scored: None })
                .collect();
            let (sampler, scratch) = (&self.sampler, &self.scratch);
            pool.for_each(&mut targets, |worker, target| {
                let mut scratch = scratch[worker].lock().unwrap_or_else(|e| e.into_inner());
                target.scored = sampler.score(target.logits, target.token, target.top, &mut scratch);
            });
            for Target { row, scored, .. } in targets {
                match (scored, out.scores.iter_mut().find(|(of, _)| *of == row)) {
                    (Some(scored), Some((_, scores))) => scores.push(scored),
                    _ => out.rows[row] = RowOut::Failed(NOT_FINITE.into()),
                }
            }
        }
        let rows = &out.rows;
        out.scores.retain(|(row, _)| !matches!(rows[*row], RowOut::Failed(_)));
        Ok(())
    }

    /// Adds up or returns the hidden states of rows that are pooled.
    pub(super) fn pool(
        &mut self,
        step: &StepInput,
        x: &X,
        batch: &Batch<'_>,
        out: &mut StepOutput,
    ) -> Result<(), OpsError> {
        for (index, (row, span)) in step.rows.iter().zip(batch.spans).enumerate() {
            let Want::Pool { pooling, last } = row.want else { continue };
            let first = match pooling {
                Pooling::Mean => span.tokens.start,
                Pooling::Last => span.tokens.end - 1,
            };
            let outputs: Vec<u32> = (first as u32..span.tokens.end as u32).collect();
            self.model.hidden(&mut self.ops, x, &Batch { outputs: &outputs, ..*batch })?;
            let (states, stride) = self.ops.hidden_states();
            let states = states.chunks_exact(stride).take(outputs.len()).map(|s| &s[..self.hidden_size]);
            let pooled = |out: &mut StepOutput, values: Vec<f32>| {
                out.rows[index] = match values.iter().all(|v| v.is_finite()) {
                    true => RowOut::Pooled(values),
                    false => RowOut::Failed(NOT_FINITE.into()),
                };
            };
            if pooling == Pooling::Last {
                pooled(out, states.flatten().copied().collect());
                continue;
            }
            let sum = self.sums.entry(row.seq).or_default();
            if row.start == 0 {
                *sum = Sum { tokens: 0, values: vec![0.0; self.hidden_size] };
            }
            sum.tokens += outputs.len();
            for state in states {
                sum.values.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            if !last {
                continue;
            }
            let Some(sum) = self.sums.remove(&row.seq) else { continue };
            if sum.tokens == row.start + row.len {
                pooled(out, sum.values.iter().map(|value| (value / sum.tokens as f64) as f32).collect());
            } else {
                out.rows[index] = RowOut::Failed("tokens to be pooled were not computed".into());
            }
        }
        Ok(())
    }
}
