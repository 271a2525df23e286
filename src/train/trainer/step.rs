//! One optimizer step, and what is measured over rows.

use std::time::Instant;

use super::Run;
use crate::train::error::TrainError;
use crate::train::events::{Event, Memory, StepReport};
use crate::train::model::{LossSum, StepKey};
use crate::train::optimizer::OptimizerError;
use crate::train::order;
use crate::train::prepare::weight;
use crate::train::render::Example;
use crate::train::schedule;

impl Run<'_> {
    /// One optimizer step over the rows `batch`, in `epoch` from 0. Each data-parallel rank computes some of them.
    pub(super) fn step(&mut self, epoch: u32, batch: &[usize]) -> Result<StepReport, TrainError> {
        let begun = Instant::now();
        let (recipe, rows) = (&self.prepared.recipe, &self.prepared.train);
        let done = self.optimizer.steps();
        let key = StepKey { seed: recipe.seed, step: done };
        let total: f64 = batch.iter().map(|&row| weight(&rows[row], recipe.prompt_loss_weight)).sum();
        self.gradients.zero()?;
        let mut sum = LossSum::default();
        for micro in self.micro_batches(batch, rows) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.accumulate(&micro, 1.0 / total, key, &mut self.gradients)?;
        }
        let [nll] = self.shards.add([sum.nll])?;
        let loss = nll / total;
        self.shards.sum(&mut self.gradients)?;
        let norm = self.shards.norm(&self.gradients, self.model.parameters())?;
        for (name, value) in [("loss", loss), ("norm of the gradient", norm)] {
            if !value.is_finite() {
                return Err(self.diverged(done + 1, format!("the {name} is {value}")));
            }
        }
        // As PyTorch's clip_grad_norm_.
        if let Some(most) = recipe.clip.filter(|most| norm > *most) {
            self.gradients.scale(most / (norm + 1e-6))?;
        }
        let lr = schedule::learning_rate(recipe, done, self.steps);
        let (optimizer, parameters) = (&mut self.optimizer, self.model.parameters());
        let gradients = &self.gradients;
        match self.threads.install(|| optimizer.step(parameters, gradients, lr)) {
            // Of another rank's part the first hears with the weights.
            Err(e @ OptimizerError::NotFinite(_)) if self.lead.is_some() => {
                return Err(self.diverged(done + 1, e.to_string()));
            }
            other => other?,
        }
        self.shards.spread(self.model.parameters())?;
        let lens = || batch.iter().map(|&row| rows[row].ids.len() as u64);
        Ok(StepReport {
            step: done + 1,
            epoch: epoch + 1,
            loss,
            lr,
            grad_norm: norm,
            tokens: lens().sum(),
            supervised: batch.iter().map(|&row| rows[row].supervised_tokens() as u64).sum(),
            pairs: lens().map(|n| n * (n + 1) / 2).sum(),
            seconds: begun.elapsed().as_secs_f64(),
            memory: Memory::now(),
        })
    }

    /// What this rank computes of a batch.
    fn micro_batches(&self, batch: &[usize], rows: &[Example]) -> Vec<Vec<usize>> {
        let len = |row: usize| rows[row].ids.len();
        let own = order::share(batch, self.shards.ranks.data.share(), len);
        order::micro_batches(&own, self.prepared.recipe.micro_batch_tokens, len)
    }

    /// Measures perplexity, which is told and decides nothing.
    pub(super) fn validate(&mut self, epoch: u32) -> Result<(), TrainError> {
        let rows = &self.prepared.validation;
        if rows.is_empty() {
            return Ok(());
        }
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut sum = LossSum::default();
        for micro in self.micro_batches(&all, rows) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.evaluate(&micro)?;
        }
        let [nll, weight] = self.shards.add([sum.nll, sum.weight])?;
        let (step, nll) = (self.optimizer.steps(), nll / weight);
        if !nll.is_finite() && step > 0 {
            return Err(self.diverged(step, format!("the validation loss is {nll}")));
        }
        self.tell(&Event::Validation { epoch, step, nll })
    }
}
