//! The flags of a training run, as the library takes them.

use std::path::PathBuf;
use std::time::Duration;

use super::dry::{Dry, plan_model, plan_run};
use super::nodes::{Nodes, threads};
use clap::ValueEnum;
use lima::parallel::World;
use lima::train::plan::{Layout, Plan};
use lima::train::recipe::{Frozen, Number, Preset, Schedule};
use lima::train::{Choices, Options, Sampling, Template};

/// A run. Flags that are not given have the recipe's values, which are LIMA's.
#[derive(clap::Args)]
pub struct Run {
    /// The model to train: whatever `lima --model` takes
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Conversations to learn: LIMA's jsonl, OpenAI's `messages`, ShareGPT or alpaca, as jsonl or as one JSON array
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The run's directory. A run that was stopped goes on from its state there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The paper's setting for 65B (batches of 32, dropout to 0.3) or for smaller ones (64, 0.2) [default: by size]
    #[arg(long, value_enum, help_heading = "Recipe")]
    recipe: Option<PresetName>,
    /// How conversations are written [default: lima]
    #[arg(long, value_enum, help_heading = "Recipe")]
    template: Option<TemplateName>,
    /// Passes over the data [default: 15]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    epochs: Option<u32>,
    /// Examples of a step [default: 32 or 64]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    batch_size: Option<usize>,
    /// Tokens beyond which a row is cut [default: 2048]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    max_tokens: Option<usize>,
    /// Learning rate of the first step [default: 1e-5]
    #[arg(long, value_name = "RATE", help_heading = "Recipe")]
    lr: Option<f64>,
    /// Learning rate of the last step [default: a tenth of --lr]
    #[arg(long, value_name = "RATE", help_heading = "Recipe")]
    lr_end: Option<f64>,
    /// How the learning rate falls [default: linear]
    #[arg(long, value_enum, help_heading = "Recipe")]
    schedule: Option<ScheduleName>,
    /// Steps in which the learning rate rises to --lr [default: 0]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    warmup_steps: Option<u64>,
    /// AdamW's decay of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "X", help_heading = "Recipe")]
    beta1: Option<f64>,
    /// AdamW's decay of the mean of their squares [default: 0.95]
    #[arg(long, value_name = "X", help_heading = "Recipe")]
    beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "X", help_heading = "Recipe")]
    eps: Option<f64>,
    /// Weight decay of matrices [default: 0.1]
    #[arg(long, value_name = "X", help_heading = "Recipe")]
    weight_decay: Option<f64>,
    /// Residual dropout of the last layer; from 0 in the first on a line [default: 0.3 or 0.2]
    #[arg(long, value_name = "P", help_heading = "Recipe")]
    dropout: Option<f64>,
    /// How much a token counts that is not the assistant's [default: 0]
    #[arg(long, value_name = "X", help_heading = "Recipe")]
    prompt_loss_weight: Option<f64>,
    /// NEFTune's alpha [default: off]
    #[arg(long, value_name = "ALPHA", help_heading = "Recipe")]
    neftune: Option<f64>,
    /// Norm to which longer gradients are shortened [default: off]
    #[arg(long, value_name = "NORM", help_heading = "Recipe")]
    clip: Option<f64>,
    /// Of data order, dropout, noise and rounding [default: 0]
    #[arg(long, value_name = "N", help_heading = "Recipe")]
    seed: Option<u64>,

    /// Train low-rank matrices beside every product of the layers, instead of all weights [--lr is then 1e-4]
    #[arg(long, value_name = "RANK", help_heading = "LoRA")]
    lora_rank: Option<usize>,
    /// What is added is scaled by ALPHA / RANK [default: twice the rank]
    #[arg(long, value_name = "ALPHA", requires = "lora_rank", help_heading = "LoRA")]
    lora_alpha: Option<f64>,
    /// How the rest is kept, which is not trained: q8_0 and q4_0 take less memory [default: f32]
    #[arg(long, value_enum, requires = "lora_rank", help_heading = "LoRA")]
    lora_base: Option<FrozenName>,
    /// Whether the whole model is saved, or the adapter alone, which needs --template base
    #[arg(long, value_enum, default_value_t = Switch::On, requires = "lora_rank", help_heading = "LoRA")]
    merge: Switch,

    /// Rows to measure perplexity on after each epoch
    #[arg(long, value_name = "FILE", help_heading = "Validation")]
    val_data: Option<PathBuf>,
    /// Rows of --data to hold out for that, instead
    #[arg(long, value_name = "N", help_heading = "Validation")]
    val_split: Option<usize>,
    /// Dev prompts to answer after each epoch, one a line or as jsonl [default: eight of our own]
    #[arg(long, value_name = "FILE", help_heading = "Validation", conflicts_with = "no_samples")]
    dev_prompts: Option<PathBuf>,
    /// Tokens of such an answer
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Validation")]
    sample_tokens: u32,
    /// Answer no prompts
    #[arg(long, help_heading = "Validation")]
    no_samples: bool,

    /// What weights and activations are rounded to before they are multiplied; no faster on the CPU [default: f32]
    #[arg(long, value_enum, help_heading = "Memory and speed")]
    compute: Option<NumberName>,
    /// Format of the matrices that are trained; bf16 has no finer copy, and is rounded stochastically [default: f32]
    #[arg(long, value_enum, help_heading = "Memory and speed")]
    weights: Option<NumberName>,
    /// Format of AdamW's two means [default: f32]
    #[arg(long, value_enum, help_heading = "Memory and speed")]
    moments: Option<NumberName>,
    /// Tokens that are computed at once [default: 2048]
    #[arg(long, value_name = "N", help_heading = "Memory and speed")]
    micro_batch_tokens: Option<usize>,
    /// Keep only what enters each layer, and compute the rest again for the gradients [default: on]
    #[arg(long, value_enum, help_heading = "Memory and speed")]
    checkpointing: Option<Switch>,
    /// Worker threads, which ranks share [default: one a processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Memory and speed")]
    threads: Option<u16>,
    /// Ranks that share the examples of each step, and shard AdamW's means (ZeRO-1); threads of this process, or of
    /// several [default: 1, with several processes as many as give each a rank]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Ranks")]
    data_parallel_size: Option<u16>,
    /// Ranks that every matrix is cut over, for each of those
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Ranks")]
    tensor_parallel_size: u16,
    #[command(flatten)]
    nodes: Nodes,
    /// FLOPs a second that utilisation is measured against [default: measured]
    #[arg(long, value_name = "N", help_heading = "Memory and speed")]
    peak_flops: Option<f64>,

    /// Save the state inside epochs too, after so many steps
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Saving")]
    save_every: Option<u64>,
    /// Models of epochs that are kept [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Saving")]
    keep: Option<u32>,
    /// Format of saved models [default: f32 for bases in F32 and F16, else bf16]
    #[arg(long, value_enum, help_heading = "Saving")]
    save_dtype: Option<NumberName>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,

    #[command(flatten)]
    pub dry: Dry,
}

impl Run {
    /// What `--dry-run` prints.
    pub fn plan(self) -> anyhow::Result<Plan> {
        let nodes = self.nodes.nnodes.map_or(1, usize::from);
        // GPUs are counted; without them a node is a process, with a rank at least.
        let layout = self.layout(if self.dry.gpus.is_some() { 1 } else { nodes });
        let ask = self.dry.ask(self.peak_flops, self.threads.map(usize::from), layout, nodes)?;
        match (&self.base, &self.data) {
            (Some(_), Some(_)) => {
                // Nothing is written, so there need be no directory.
                let out = self.out.clone().or_else(|| Some(PathBuf::new()));
                let (options, choices) = Self { out, ..self }.take(None)?;
                plan_run(&options, &choices, &ask)
            }
            _ => {
                let (base, shape) = (self.base.clone(), self.dry.shape.clone());
                plan_model(base.as_deref(), shape.as_deref(), &self.choices(), &ask)
            }
        }
    }

    /// Options and choices; an error names a flag that is missing.
    pub fn take(self, world: Option<&World>) -> anyhow::Result<(Options, Choices)> {
        let needed = |flag: &str| anyhow::anyhow!("--{flag} is needed; --help shows all flags");
        let (choices, layout) = (self.choices(), self.layout(world.map_or(1, |world| world.world_size)));
        let samples = Sampling { prompts: self.dev_prompts, max_tokens: self.sample_tokens.max(1) };
        let options = Options {
            base: self.base.ok_or_else(|| needed("base"))?,
            data: self.data.ok_or_else(|| needed("data"))?,
            val_data: self.val_data,
            out: self.out.ok_or_else(|| needed("out"))?,
            save_every: self.save_every,
            keep: self.keep.map(|n| n as usize),
            threads: self.threads.map(usize::from).or_else(|| world.and_then(threads)),
            layout,
            save_format: self.save_dtype.map(Into::into),
            samples: (!self.no_samples).then_some(samples),
            merge: matches!(self.merge, Switch::On),
            peak_flops: self.peak_flops,
            progress: !self.quiet && world.is_none_or(|world| world.rank == 0),
        };
        Ok((options, choices))
    }

    /// The processes that this one is of; `None`: it is alone.
    pub fn world(&self) -> anyhow::Result<Option<World>> {
        self.nodes.world()
    }

    /// How long others are waited for.
    pub fn join_timeout(&self) -> Duration {
        Duration::from_secs(self.nodes.join_timeout.into())
    }

    fn layout(&self, processes: usize) -> Layout {
        let tensor = usize::from(self.tensor_parallel_size);
        let data = self.data_parallel_size.map_or_else(|| (processes / tensor).max(1), usize::from);
        Layout { tensor, data }
    }

    fn choices(&self) -> Choices {
        Choices {
            recipe: self.recipe.map(Into::into),
            template: self.template.map(Into::into),
            epochs: self.epochs,
            batch_size: self.batch_size,
            max_tokens: self.max_tokens,
            lr: self.lr,
            lr_end: self.lr_end,
            schedule: self.schedule.map(Into::into),
            warmup_steps: self.warmup_steps,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            dropout: self.dropout,
            prompt_loss_weight: self.prompt_loss_weight,
            neftune: self.neftune,
            clip: self.clip,
            seed: self.seed,
            lora_rank: self.lora_rank,
            lora_alpha: self.lora_alpha,
            lora_base: self.lora_base.map(Into::into),
            compute: self.compute.map(Into::into),
            weights: self.weights.map(Into::into),
            moments: self.moments.map(Into::into),
            micro_batch_tokens: self.micro_batch_tokens,
            checkpointing: self.checkpointing.map(|switch| matches!(switch, Switch::On)),
            val_split: self.val_split,
        }
    }
}

/// `--template`.
#[derive(Clone, Copy, ValueEnum)]
pub enum TemplateName {
    /// BOS, then each message followed by a new end-of-turn token
    Lima,
    /// The base's own chat template and end-of-turn token
    Base,
}

impl From<TemplateName> for Template {
    fn from(name: TemplateName) -> Self {
        match name {
            TemplateName::Lima => Self::Lima,
            TemplateName::Base => Self::Base,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum PresetName {
    Lima,
    LimaSmall,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::Lima => Self::Lima,
            PresetName::LimaSmall => Self::LimaSmall,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleName {
    Linear,
    Cosine,
}

impl From<ScheduleName> for Schedule {
    fn from(name: ScheduleName) -> Self {
        match name {
            ScheduleName::Linear => Self::Linear,
            ScheduleName::Cosine => Self::Cosine,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum NumberName {
    F32,
    Bf16,
}

impl From<NumberName> for Number {
    fn from(name: NumberName) -> Self {
        match name {
            NumberName::F32 => Self::F32,
            NumberName::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum FrozenName {
    F32,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
}

impl From<FrozenName> for Frozen {
    fn from(name: FrozenName) -> Self {
        match name {
            FrozenName::F32 => Self::F32,
            FrozenName::Q8 => Self::Q8,
            FrozenName::Q4 => Self::Q4,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}
