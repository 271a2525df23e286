//! `lima plan`: what serving a model would take and reach at most, before there are weights or a machine. Arithmetic alone.
//!
//! Speeds are ceilings: what memory, arithmetic and the links between ranks allow. Launches, latencies and what kernels do
//! not reach are not in them.

mod ask;
mod device;
mod memory;
mod show;
mod speed;

use serde::Serialize;

pub use ask::{Options, Plans, model};
pub use device::{Device, Machine};
pub use memory::{KvFormat, Memory, Step, WeightFormat};
pub use speed::Speed;

use crate::engine::BLOCK_SIZE;
use crate::model::config::LlamaConfig;
use crate::model::shapes::parameters;
use crate::model::weights::{Blocks, Slice};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// What the model is called.
    pub name: String,
    /// Its shape.
    pub config: LlamaConfig,
    /// Where it is to run.
    pub machine: Machine,
    /// Formats of the weights to look at, the most exact first.
    pub formats: Vec<WeightFormat>,
    /// Of keys and values.
    pub kv: KvFormat,
    /// Ranks that the model is cut over; `None`: every number that divides the devices.
    pub ranks: Option<usize>,
    /// Tokens of a sequence, for which speeds are told.
    pub context: usize,
    /// Tokens that one sequence may have: there must be room for it.
    pub max_model_len: usize,
    /// What a step computes at most.
    pub step: Step,
}

/// A way to run it: a format, and ranks. All bytes and speeds but [`Choice::total`] are of one such group of ranks.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// Format of the weights.
    pub format: WeightFormat,
    /// Ranks that the model is cut over.
    pub ranks: usize,
    /// Groups of so many ranks, each with a model of its own.
    pub replicas: usize,
    /// Bytes on the rank that has most.
    pub memory: Memory,
    /// Bytes of keys and values of a token, on that rank.
    pub kv_token_bytes: f64,
    /// Tokens that the cache holds.
    pub kv_tokens: u64,
    /// Sequences of the asked context that it holds.
    pub sequences: u64,
    /// Whether weights and one sequence of the longest length fit.
    pub fits: bool,
    /// At most; `None` where it does not fit.
    pub speed: Option<Speed>,
}

impl Choice {
    /// Tokens a second of all replicas together, at most, all sequences that there is room for decoding.
    pub fn total(&self) -> f64 {
        self.speed.as_ref().map_or(0.0, |speed| speed.decode_all * self.replicas as f64)
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As it was asked.
    pub question: Question,
    /// Parameters, a tied head not counted.
    pub parameters: u64,
    /// Bytes of keys and values of a token, on all ranks, if none are on several.
    pub kv_token_bytes: f64,
    /// By format, then by ranks.
    pub choices: Vec<Choice>,
    /// Numbers of ranks that the model cannot be cut over, and why.
    pub refused: Vec<(usize, String)>,
}

impl Plan {
    /// Works it out.
    pub fn new(question: Question) -> Self {
        let devices = question.machine.count;
        let sizes: Vec<usize> = match question.ranks {
            Some(ranks) => vec![ranks],
            None => (1..=devices).filter(|&n| devices.is_multiple_of(n)).collect(),
        };
        let (mut choices, mut refused) = (Vec::new(), Vec::<(usize, String)>::new());
        for &format in &question.formats {
            for &ranks in &sizes {
                match choice(&question, format, ranks) {
                    Ok(choice) => choices.push(choice),
                    Err(_) if refused.iter().any(|(n, _)| *n == ranks) => {}
                    Err(why) => refused.push((ranks, why)),
                }
            }
        }
        let kv_token_bytes = question.kv.token_bytes(&question.config);
        Self { parameters: parameters(&question.config), kv_token_bytes, choices, refused, question }
    }

    /// Of the most exact format that fits, the ranks with which all devices together decode fastest; of those that are within
    /// a hundredth the fewest, which wait least for each other.
    pub fn recommended(&self) -> Option<&Choice> {
        let fitting = || self.choices.iter().filter(|choice| choice.fits);
        let format = fitting().next()?.format;
        let of_format = || fitting().filter(|choice| choice.format == format);
        let best = of_format().map(Choice::total).fold(0.0, f64::max);
        of_format().find(|choice| choice.total() >= 0.99 * best)
    }
}

fn choice(question: &Question, format: WeightFormat, ranks: usize) -> Result<Choice, String> {
    let (config, machine) = (&question.config, &question.machine);
    if ranks > machine.count {
        return Err("they are more than the devices".to_owned());
    }
    let block = format.block();
    let slices = Slice::all(config, ranks, Blocks { output: block, down: block }).map_err(|e| e.to_string())?;
    let shapes: Vec<LlamaConfig> = slices.iter().map(|slice| slice.shape(config)).collect();
    // A step takes as long as its slowest rank, and blocks are the same on all.
    let of = |shape: &LlamaConfig| {
        let memory = Memory::of(shape, format, question.step, ranks, machine.device);
        (memory, question.kv.token_bytes(shape))
    };
    let room = |(memory, token): &(Memory, f64)| (machine.memory() - memory.without_cache()) / token;
    let all = shapes.iter().map(of);
    let tightest = all.min_by(|a, b| room(a).total_cmp(&room(b))).ok_or("there is no rank")?;
    let blocks = (room(&tightest) / BLOCK_SIZE as f64).floor().max(0.0) as u64;
    let (mut memory, kv_token_bytes) = tightest;
    let kv_tokens = blocks * BLOCK_SIZE as u64;
    memory.cache = kv_tokens as f64 * kv_token_bytes;
    let in_blocks = |tokens: usize| tokens.next_multiple_of(BLOCK_SIZE) as u64;
    let fits = kv_tokens >= in_blocks(question.max_model_len);
    let sequences = kv_tokens / in_blocks(question.context);
    let at_once = (sequences as usize).min(question.step.sequences);
    let speed =
        fits.then(|| Speed::of(&shapes, format, question.kv, machine, question.step, question.context, at_once));
    Ok(Choice {
        format,
        ranks,
        replicas: machine.count / ranks,
        memory,
        kv_token_bytes,
        kv_tokens,
        sequences,
        fits,
        speed,
    })
}
