//! The recipe: every constant of a run. What is not chosen is LIMA's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::render::{MAX_TOKENS, Template};

/// Parameters from which on a base is trained as the paper's 65B.
const LARGE: u64 = 50_000_000_000;

/// The paper's two settings; they differ in batch size and dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The 65B: batches of 32, residual dropout up to 0.3.
    Lima,
    /// Smaller ones: batches of 64, residual dropout up to 0.2.
    LimaSmall,
}

impl Preset {
    /// The one for a base of so many parameters.
    pub fn of(parameters: u64) -> Self {
        if parameters >= LARGE { Self::Lima } else { Self::LimaSmall }
    }

    fn batch_size(self) -> usize {
        match self {
            Self::Lima => 32,
            Self::LimaSmall => 64,
        }
    }

    fn dropout(self) -> f64 {
        match self {
            Self::Lima => 0.3,
            Self::LimaSmall => 0.2,
        }
    }
}

/// How the learning rate goes from its begin to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// In a straight line.
    Linear,
    /// Along half a cosine.
    Cosine,
}

/// A number format of something that is kept from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

/// How the frozen base is kept that LoRA trains beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// As numbers.
    F32,
    /// In blocks of 8 bits.
    #[serde(rename = "q8_0")]
    Q8,
    /// In blocks of 4 bits.
    #[serde(rename = "q4_0")]
    Q4,
}

/// Low-rank matrices beside every product of the layers, instead of all weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// At least 1.
    pub rank: usize,
    /// What is added is scaled by `alpha / rank`.
    pub alpha: f64,
    /// The rest.
    pub base: Frozen,
}

/// The constants of a run, resolved. Names are those of the flags; this is what `recipe.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Which of the paper's settings the defaults are.
    pub recipe: Preset,
    /// How conversations are written.
    pub template: Template,
    /// Passes over the data; at least 1.
    pub epochs: u32,
    /// Examples of a step; at least 1. The last step of an epoch takes those that are left.
    pub batch_size: usize,
    /// Tokens beyond which an example is cut; at least 2.
    pub max_tokens: usize,
    /// Learning rate of the first step after warmup.
    pub lr: f64,
    /// Learning rate of the last step.
    pub lr_end: f64,
    /// Between the two.
    pub schedule: Schedule,
    /// Steps in which the learning rate rises in a straight line to `lr`.
    pub warmup_steps: u64,
    /// AdamW's decay of the mean of gradients.
    pub beta1: f64,
    /// AdamW's decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Of matrices; norms have none.
    pub weight_decay: f64,
    /// Residual dropout of the last layer; the first has none, those between lie on a line.
    pub dropout: f64,
    /// How much a token counts that is not the assistant's; 1 as much as the assistant's.
    pub prompt_loss_weight: f64,
    /// NEFTune's alpha.
    pub neftune: Option<f64>,
    /// Norm to which a longer gradient is shortened.
    pub clip: Option<f64>,
    /// Of data order, dropout, NEFTune and rounding.
    pub seed: u64,
    /// LoRA, instead of all weights.
    pub lora: Option<Lora>,
    /// What weights and activations are rounded to on their way into a product; sums are F32.
    pub compute: Number,
    /// Format of the matrices that are trained. BF16 ones have no finer copy, and are rounded stochastically.
    pub weights: Number,
    /// Format of AdamW's two means.
    pub moments: Number,
    /// Most tokens that are computed at once, unless one example has more.
    pub micro_batch_tokens: usize,
    /// Keep only what enters each layer, and compute the rest again for the gradients.
    pub checkpointing: bool,
    /// Rows of the data that are held out.
    pub val_split: usize,
}

/// What a user decides; `None` is the recipe's own.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Choices {
    pub recipe: Option<Preset>,
    pub template: Option<Template>,
    pub epochs: Option<u32>,
    pub batch_size: Option<usize>,
    pub max_tokens: Option<usize>,
    pub lr: Option<f64>,
    pub lr_end: Option<f64>,
    pub schedule: Option<Schedule>,
    pub warmup_steps: Option<u64>,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub eps: Option<f64>,
    pub weight_decay: Option<f64>,
    pub dropout: Option<f64>,
    pub prompt_loss_weight: Option<f64>,
    pub neftune: Option<f64>,
    pub clip: Option<f64>,
    pub seed: Option<u64>,
    pub lora_rank: Option<usize>,
    pub lora_alpha: Option<f64>,
    pub lora_base: Option<Frozen>,
    pub compute: Option<Number>,
    pub weights: Option<Number>,
    pub moments: Option<Number>,
    pub micro_batch_tokens: Option<usize>,
    pub checkpointing: Option<bool>,
    pub val_split: Option<usize>,
}

/// A constant out of its range: one sentence that names the flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag} is {value}, must be {range}")]
pub struct RecipeError {
    flag: &'static str,
    value: String,
    range: &'static str,
}

impl Choices {
    /// The same for a base made for so many positions: the recipe's own length is no longer than that.
    pub fn within(&self, positions: usize) -> Self {
        Self { max_tokens: self.max_tokens.or(Some(MAX_TOKENS.min(positions))), ..self.clone() }
    }

    /// The recipe for a base of so many parameters.
    ///
    /// # Errors
    /// A choice is out of its range.
    pub fn resolve(&self, parameters: u64) -> Result<Recipe, RecipeError> {
        let preset = self.recipe.unwrap_or_else(|| Preset::of(parameters));
        let lora = self.lora_rank.map(|rank| Lora {
            rank,
            alpha: self.lora_alpha.unwrap_or(2.0 * rank as f64),
            base: self.lora_base.unwrap_or(Frozen::F32),
        });
        // Ten times as much where few numbers are trained.
        let (lr, lr_end) = if lora.is_some() { (1e-4, 1e-5) } else { (1e-5, 1e-6) };
        Recipe {
            recipe: preset,
            template: self.template.unwrap_or(Template::Lima),
            epochs: self.epochs.unwrap_or(15),
            batch_size: self.batch_size.unwrap_or(preset.batch_size()),
            max_tokens: self.max_tokens.unwrap_or(MAX_TOKENS),
            lr: self.lr.unwrap_or(lr),
            lr_end: self.lr_end.or_else(|| self.lr.map(|lr| lr / 10.0)).unwrap_or(lr_end),
            schedule: self.schedule.unwrap_or(Schedule::Linear),
            warmup_steps: self.warmup_steps.unwrap_or(0),
            beta1: self.beta1.unwrap_or(0.9),
            beta2: self.beta2.unwrap_or(0.95),
            eps: self.eps.unwrap_or(1e-8),
            weight_decay: self.weight_decay.unwrap_or(0.1),
            dropout: self.dropout.unwrap_or(preset.dropout()),
            prompt_loss_weight: self.prompt_loss_weight.unwrap_or(0.0),
            neftune: self.neftune.filter(|alpha| *alpha != 0.0),
            clip: self.clip,
            seed: self.seed.unwrap_or(0),
            lora,
            compute: self.compute.unwrap_or(Number::F32),
            weights: self.weights.unwrap_or(Number::F32),
            moments: self.moments.unwrap_or(Number::F32),
            micro_batch_tokens: self.micro_batch_tokens.unwrap_or(MAX_TOKENS),
            checkpointing: self.checkpointing.unwrap_or(true),
            val_split: self.val_split.unwrap_or(0),
        }
        .checked()
    }
}

impl Recipe {
    fn checked(self) -> Result<Self, RecipeError> {
        let at_least = |flag, value: usize, least: usize, range| match value >= least {
            true => Ok(()),
            false => Err(RecipeError { flag, value: value.to_string(), range }),
        };
        at_least("epochs", self.epochs as usize, 1, "at least 1")?;
        at_least("batch-size", self.batch_size, 1, "at least 1")?;
        at_least("max-tokens", self.max_tokens, 2, "at least 2")?;
        at_least("micro-batch-tokens", self.micro_batch_tokens, 1, "at least 1")?;
        let float = |flag, value: f64, ok: bool, range| match ok && value.is_finite() {
            true => Ok(()),
            false => Err(RecipeError { flag, value: value.to_string(), range }),
        };
        let below_one = |flag, value: f64| float(flag, value, (0.0..1.0).contains(&value), "from 0 to below 1");
        float("lr", self.lr, self.lr > 0.0, "above 0")?;
        float("lr-end", self.lr_end, self.lr_end >= 0.0, "0 or more")?;
        below_one("beta1", self.beta1)?;
        below_one("beta2", self.beta2)?;
        float("eps", self.eps, self.eps > 0.0, "above 0")?;
        float("weight-decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more")?;
        below_one("dropout", self.dropout)?;
        let weight = self.prompt_loss_weight;
        float("prompt-loss-weight", weight, (0.0..=1.0).contains(&weight), "from 0 to 1")?;
        self.neftune.map_or(Ok(()), |v| float("neftune", v, v > 0.0, "0 or more"))?;
        self.clip.map_or(Ok(()), |v| float("clip", v, v > 0.0, "above 0"))?;
        if let Some(Lora { rank, alpha, .. }) = self.lora {
            at_least("lora-rank", rank, 1, "at least 1")?;
            float("lora-alpha", alpha, alpha > 0.0, "above 0")?;
            if self.weights == Number::Bf16 {
                return Err(RecipeError { flag: "weights", value: "bf16".into(), range: "f32 with --lora-rank" });
            }
        }
        Ok(self)
    }

    /// As `recipe.json` has it.
    pub fn to_json(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // The derived form of a struct with named fields, all of which JSON can hold.
            _ => Map::new(),
        }
    }
}

/// The first constant of which two recipes differ, as a sentence; values are as JSON writes them.
pub fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Option<String> {
    let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    let shown = |v: Option<&Value>| v.map_or("nothing".to_owned(), Value::to_string);
    names
        .map(|name| (name, old.get(name), new.get(name)))
        .find(|(_, old, new)| shown(*old) != shown(*new))
        .map(|(name, old, new)| format!("{name} is {}, and was {}", shown(new), shown(old)))
}
