//! `train --dry-run`: what a run would take, before it is begun. Arithmetic alone; nothing is loaded.

use std::time::Duration;

use super::watch::flops::{ModelFlops, Peak};
use crate::model::config::LlamaConfig;
use crate::ops::quant::DType;

pub mod ask;
pub mod links;
pub mod memory;
pub mod shapes;
mod show;

pub use crate::parallel::Layout;
pub use links::{Links, Traffic};
pub use memory::{Answers, Backend, Memory, Pass, Training};
pub use shapes::{ShapeError, shape};

/// What an epoch has.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Where the numbers are from.
    pub name: String,
    /// Examples.
    pub examples: u64,
    /// Tokens, as far as rows are not cut off.
    pub tokens: u64,
    /// Those that are learnt.
    pub supervised: u64,
    /// Pairs of a query and a key: the sum of `n (n + 1) / 2` over the examples' lengths.
    pub pairs: u64,
    /// Of the longest example.
    pub longest: usize,
}

impl Data {
    /// The paper's 1,000 examples in LLaMA's tokens, with BOS and an end-of-turn token after each turn, cut to 2,048. All
    /// that is cut off is the assistant's.
    pub fn lima() -> Self {
        Self {
            name: "LIMA's 1,000 examples in LLaMA's tokens".into(),
            examples: 1000,
            tokens: 674_122,
            supervised: 653_437 - (714_132 - 674_122),
            pairs: LIMA_PAIRS,
            longest: 2048,
        }
    }

    /// Of examples of these lengths, so many of whose tokens are learnt.
    pub fn of(name: String, lengths: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut data = Self { name, examples: 0, tokens: 0, supervised: 0, pairs: 0, longest: 0 };
        for (tokens, supervised) in lengths {
            let n = tokens as u64;
            data.examples += 1;
            data.tokens += n;
            data.supervised += supervised as u64;
            data.pairs += n * (n + 1) / 2;
            data.longest = data.longest.max(tokens);
        }
        data
    }
}

/// What a run is to compute on.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// This machine's processor.
    Cpu {
        /// Bytes that are free, where the system tells.
        memory: Option<u64>,
        /// That compute.
        threads: usize,
    },
    /// Alike, and fast in reaching each other.
    Gpus {
        /// How many.
        count: usize,
        /// Bytes of each.
        memory: u64,
    },
}

impl Device {
    fn ranks(&self) -> usize {
        match self {
            Self::Cpu { .. } => 1,
            Self::Gpus { count, .. } => *count,
        }
    }

    fn memory(&self) -> Option<u64> {
        match self {
            Self::Cpu { memory, .. } => *memory,
            Self::Gpus { memory, .. } => Some(*memory),
        }
    }

    /// What an implementation for it takes.
    fn backend(&self) -> Backend {
        match self {
            Self::Cpu { threads, .. } => Backend::Cpu { threads: *threads },
            Self::Gpus { .. } => Backend::Gpu,
        }
    }
}

/// How fast a rank computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    /// At most.
    pub peak: Peak,
    /// The part of it that training reaches.
    pub utilisation: f64,
}

impl Rate {
    /// An H100's dense bf16 rate (NVIDIA's data sheet, SXM), and a utilisation that is common for models of this size.
    pub fn h100() -> Self {
        Self { peak: Peak { flops: 989e12, source: "H100 SXM, dense bf16".into() }, utilisation: 0.4 }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the model is called.
    pub name: String,
    /// Shape of the result: with the new token's row.
    pub config: LlamaConfig,
    /// Rows that its vocabulary has more than the 's.
    pub new_rows: usize,
    /// An epoch.
    pub data: Data,
    /// How often.
    pub epochs: u32,
    /// Examples of a step.
    pub batch: u64,
    /// Tokens of a forward pass.
    pub micro_tokens: usize,
    /// Of LoRA.
    pub rank: usize,
    /// What the run would do, where that is settled.
    pub chosen: Option<Training>,
    /// Whether activations are recomputed.
    pub checkpointing: bool,
    /// Answers to dev prompts after each epoch, by an engine beside the run.
    pub answers: Option<Answers>,
    /// Where.
    pub device: Device,
    /// How ranks share the work; `None`: as is best.
    pub layout: Option<Layout>,
    /// How fast a rank is.
    pub rate: Rate,
    /// Several nodes, and what is between them; `None`: one, whose links are not reckoned with.
    pub links: Option<Links>,
}

impl Question {
    /// Ranks that compute, each at the rate: GPUs, or machines.
    fn computing(&self) -> usize {
        match self.device {
            Device::Cpu { .. } => self.links.map_or(1, |links| links.nodes),
            Device::Gpus { count, .. } => count,
        }
    }

    /// Ranks that are threads of one process.
    fn of_process(&self, layout: Layout) -> usize {
        layout.ranks().div_ceil(self.links.map_or(1, |links| links.nodes))
    }
}

/// One way to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What is trained.
    pub training: Training,
    /// Over the ranks.
    pub layout: Layout,
    /// Bytes on each rank.
    pub memory: Memory,
    /// With activation checkpointing if that is without, and the other way round.
    pub otherwise: Memory,
    /// Whether `memory` does.
    pub fits: bool,
    /// Of the whole run.
    pub time: Duration,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As it was asked.
    pub question: Question,
    /// Parameters, a tied head not counted.
    pub parameters: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Model FLOPs of the run when all parameters are trained.
    pub flops: f64,
    /// With the forward pass that checkpointing computes again.
    pub flops_with_recompute: f64,
    /// One for each way to train, the most thorough first.
    pub choices: Vec<Choice>,
}

impl Plan {
    /// Works it out.
    pub fn new(question: Question) -> Self {
        let parameters = shapes::parameters(&question.config);
        let (rank, steps_per_epoch) = (question.rank, question.data.examples.div_ceil(question.batch.max(1)));
        let whole = match question.device {
            Device::Cpu { .. } => DType::F32,
            Device::Gpus { .. } => DType::BF16,
        };
        let between = Training::Full { weights: DType::F32, moments: DType::BF16 };
        let frozen = [whole, DType::Q8_0, DType::Q4_0].map(|base| Training::Lora { rank, base });
        let mut trainings: Vec<Training> =
            [Training::MASTERS, between, Training::BF16].into_iter().chain(frozen).collect();
        trainings.extend(question.chosen.filter(|chosen| !trainings.contains(chosen)));
        let choices = trainings.into_iter().map(|training| best(&question, training)).collect();
        let (flops, flops_with_recompute) = work(&question, parameters);
        Self { parameters, steps_per_epoch, flops, flops_with_recompute, choices, question }
    }

    /// The most thorough choice that fits, or the one that was settled on.
    pub fn recommended(&self) -> Option<&Choice> {
        match self.question.chosen {
            Some(training) => self.choices.iter().find(|c| c.training == training),
            None => self.choices.iter().find(|c| c.fits),
        }
    }

    /// What ranks send each other in a step, if nodes were asked about.
    pub fn traffic(&self, choice: &Choice) -> Option<Traffic> {
        self.question.links.map(|links| links::traffic(&self.question, choice, &links))
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch * u64::from(self.question.epochs)
    }
}

/// Model FLOPs of a run that trains so many parameters, without and with recomputed activations.
fn work(question: &Question, trained: u64) -> (f64, f64) {
    let (data, epochs) = (&question.data, f64::from(question.epochs));
    let once = |flops: ModelFlops| epochs * flops.of(data.tokens, data.supervised, data.pairs);
    let model = once(ModelFlops::new(&question.config, trained));
    // With nothing trained, two of four operations of a matrix are the forward pass; a third of attention's.
    let frozen = ModelFlops::new(&question.config, 0);
    let forward = once(ModelFlops { token: frozen.token / 2.0, supervised: 0.0, pair: frozen.pair / 3.0 });
    (model, model + forward)
}

/// The layout for a way to train: of those that fit the one that cuts matrices least, else the one that takes least.
fn best(question: &Question, training: Training) -> Choice {
    let (config, backend) = (&question.config, question.device.backend());
    let trained = match training {
        Training::Full { .. } => shapes::parameters(config),
        Training::Lora { rank, .. } => shapes::adapters(config, rank),
    };
    let (model, recomputed) = work(question, trained);
    let flops = if question.checkpointing { recomputed } else { model };
    let speed = question.rate.peak.flops * question.rate.utilisation * question.computing() as f64;
    let time = Duration::try_from_secs_f64(flops / speed).unwrap_or(Duration::MAX);
    let choice = |layout| {
        let pass =
            |checkpointing| Pass { tokens: question.micro_tokens, longest: question.data.longest, checkpointing };
        let answers = question.answers.map_or(0.0, |answers| answers.bytes(config));
        let of = |checkpointing| {
            let training = memory::memory(config, training, layout, pass(checkpointing), backend);
            Memory { answers, ..training }
        };
        let (memory, otherwise) = (of(question.checkpointing), of(!question.checkpointing));
        let needed = match question.device {
            Device::Cpu { .. } => memory.of_all(question.of_process(layout)),
            Device::Gpus { .. } => memory.total(),
        };
        let fits = question.device.memory().is_none_or(|there| needed <= there as f64);
        Choice { training, layout, memory, otherwise, fits, time }
    };
    let all = question.layout.map_or_else(|| layouts(config, question.device.ranks()), |layout| vec![layout]);
    let all = all.into_iter().map(choice);
    let better = |a: Choice, b: Choice| match (a.fits, b.fits) {
        (true, _) => a,
        (false, true) => b,
        (false, false) if a.memory.total() <= b.memory.total() => a,
        (false, false) => b,
    };
    all.reduce(better).unwrap_or_else(|| choice(Layout::ONE))
}

/// Layouts of so many ranks in which every matrix divides, those that cut least first.
fn layouts(config: &LlamaConfig, ranks: usize) -> Vec<Layout> {
    let divides = |tensor: &usize| ranks.is_multiple_of(*tensor) && config.divided(*tensor).is_ok();
    (1..=ranks).filter(divides).map(|tensor| Layout { tensor, data: ranks / tensor }).collect()
}

/// Σ n (n + 1) / 2 over LIMA's examples, with lengths in SmolLM2's tokens scaled so that their sum is LLaMA's.
const LIMA_PAIRS: u64 = 385_000_000;
