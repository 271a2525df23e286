//! What a training run tells the outside.
//!
//! The trainer makes [`Event`]s and hands them to [`Watchers::tell`](super::watch::Watchers::tell); nothing it computes
//! depends on what is done with them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::model::config::LlamaConfig;

/// Something that happened, in the order of the run. A run begins with `Begin` and ends with `End`, unless it is killed.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Before the first step of this process.
    Begin(Begin<'a>),
    /// After an optimizer step.
    Step(&'a StepReport),
    /// After an epoch: the validation rows.
    Validation {
        /// The epoch that has ended, counted from 1; 0 is the base.
        epoch: u32,
        /// Steps done.
        step: u64,
        /// Mean negative log-likelihood of a supervised token.
        nll: f64,
    },
    /// A model that can be served was saved.
    Checkpoint {
        /// The epoch that has ended, counted from 1.
        epoch: u32,
        /// Steps done.
        step: u64,
        /// Its directory.
        path: &'a Path,
    },
    /// Answers to the dev prompts.
    Samples {
        /// The epoch that has ended, counted from 1; 0 is the base.
        epoch: u32,
        /// Steps done.
        step: u64,
        /// One a prompt, in the prompts' order.
        answers: &'a [Answer],
    },
    /// After the last step of this process.
    End {
        /// Steps done.
        step: u64,
        /// A sentence, such as "all 15 epochs done".
        reason: &'a str,
    },
}

/// A run, as it is when this process takes it up.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// What is trained: the base's name or path.
    pub base: &'a str,
    /// The resolved recipe, as recipe.json has it.
    pub recipe: &'a Map<String, Value>,
    /// The result's shape.
    pub config: &'a LlamaConfig,
    /// Parameters of the model, a tied head not counted.
    pub parameters: u64,
    /// Those that are trained.
    pub trained: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Epochs of the whole run.
    pub epochs: u32,
    /// Tokens that the model learns to predict, in an epoch.
    pub supervised_tokens_per_epoch: u64,
    /// Steps done by the processes before this one.
    pub resumed_at: u64,
}

/// An optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The epoch it belongs to, counted from 1.
    pub epoch: u32,
    /// Loss of the accumulated batch: the mean negative log-likelihood of a supervised token, with dropout.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the gradient, before any clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Tokens computed.
    pub tokens: u64,
    /// Those of them that are learnt.
    pub supervised: u64,
    /// Pairs of a query and a key that causal attention has: `n (n + 1) / 2` for an example of `n` tokens.
    pub pairs: u64,
    /// Wall-clock seconds of the step.
    pub seconds: f64,
    /// Memory of the process after the step.
    #[serde(flatten)]
    pub memory: Memory,
}

/// JSON has no number that is not finite; `null` stands for it.
pub fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Memory of this process in bytes, where the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
    /// Most that was ever resident.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<u64>,
}

impl Memory {
    /// What it is now.
    pub fn now() -> Self {
        fs::read_to_string("/proc/self/status").map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { resident: field("VmRSS:"), peak: field("VmHWM:") }
    }
}

/// An answer of the model to a dev prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The user's message.
    pub prompt: String,
    /// What the model said.
    pub text: String,
    /// Tokens of the answer, its end included.
    pub tokens: u32,
    /// Whether it ended by itself, rather than at the limit.
    pub ended: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_status_of_a_process() {
        let text = "Name:\ttrain\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(Memory::parse(text), Memory { resident: Some(1 << 20), peak: Some(2 << 20) });
        assert_eq!(Memory::parse("VmRSS: x kB\n"), Memory::default());
    }
}
