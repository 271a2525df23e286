//! A run so far, as its metrics have it.

use std::collections::BTreeMap;

use super::metrics::Line;
use crate::train::events::{Answer, StepReport};

/// A step, and the rates that follow from it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// As the trainer has it.
    pub report: StepReport,
    /// Tokens computed a second.
    pub tokens_per_second: f64,
    /// Model FLOPs utilisation.
    pub mfu: f64,
}

/// What all lines say together. Of lines about the same epoch the last counts.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The last `begin`.
    pub begin: Option<Line>,
    /// Steps after which later processes took the run up.
    pub resumed: Vec<u64>,
    /// In ascending order.
    pub steps: Vec<Step>,
    /// Mean negative log-likelihood of the validation rows by epoch.
    pub validation: BTreeMap<u32, f64>,
    /// Checkpoints by epoch.
    pub checkpoints: BTreeMap<u32, String>,
    /// Answers to the dev prompts by epoch.
    pub samples: BTreeMap<u32, Vec<Answer>>,
    /// Why the last process ended, if it did.
    pub end: Option<String>,
}

impl History {
    /// Adds what a line says.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Begin { step, .. } => {
                if step > 0 {
                    self.resumed.push(step);
                }
                (self.begin, self.end) = (Some(line), None);
            }
            Line::Step { report, tokens_per_second, mfu, .. } => {
                self.steps.push(Step { report, tokens_per_second, mfu });
            }
            Line::Validation { epoch, nll, .. } => _ = self.validation.insert(epoch, nll),
            Line::Checkpoint { epoch, path, .. } => _ = self.checkpoints.insert(epoch, path),
            Line::Samples { epoch, answers, .. } => _ = self.samples.insert(epoch, answers),
            Line::End { reason, .. } => self.end = Some(reason),
        }
    }

    /// Mean loss of a supervised token, by epoch, with dropout and while the weights change.
    pub fn epoch_losses(&self) -> BTreeMap<u32, f64> {
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for Step { report, .. } in &self.steps {
            let (sum, weight) = sums.entry(report.epoch).or_default();
            *sum += report.loss * report.supervised as f64;
            *weight += report.supervised as f64;
        }
        sums.into_iter().map(|(epoch, (sum, weight))| (epoch, sum / weight)).collect()
    }
}

impl FromIterator<Line> for History {
    fn from_iter<I: IntoIterator<Item = Line>>(lines: I) -> Self {
        let mut history = Self::default();
        lines.into_iter().for_each(|line| history.add(line));
        history
    }
}
