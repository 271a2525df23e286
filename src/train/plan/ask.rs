//! Questions from flags.

use super::shapes::with_new_token;
use super::{Answers, Data, Device, Layout, Links, Question, Rate, Training};
use crate::engine::TokenId;
use crate::model::config::LlamaConfig;
use crate::ops::quant::DType;
use crate::runner::memory::available;
use crate::train::order;
use crate::train::prepare::{Options, Prepared};
use crate::train::recipe::{Choices, Frozen, Number, Recipe, RecipeError};
use crate::train::render::Template;
use crate::train::samples;
use crate::train::watch::flops::Peak;

/// The part of the processor's peak that training is assumed to reach, recomputation counted.
const CPU_UTILISATION: f64 = 0.4;

/// LoRA's rank where none is chosen.
const RANK: usize = 16;

/// What is asked beside the recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// How many, and the bytes of each; `None`: this machine's processor.
    pub gpus: Option<(usize, u64)>,
    /// Of a rank, in FLOPs a second.
    pub peak_flops: Option<f64>,
    /// The part of it that training reaches.
    pub utilisation: Option<f64>,
    /// Worker threads; `None`: one a processor.
    pub threads: Option<usize>,
    /// How ranks are to share the work, if that is said.
    pub layout: Option<Layout>,
    /// Nodes, if there are to be several.
    pub links: Option<Links>,
}

impl Ask {
    fn device(&self) -> Device {
        match self.gpus {
            Some((count, memory)) => Device::Gpus { count, memory },
            None => Device::Cpu { memory: available(), threads: self.threads() },
        }
    }

    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    fn rate(&self) -> Rate {
        let usual = match self.gpus {
            Some(_) => Rate::h100(),
            None => Rate {
                peak: self.peak_flops.map_or_else(|| Peak::measure(self.threads()), Peak::given),
                utilisation: CPU_UTILISATION,
            },
        };
        Rate {
            peak: self.peak_flops.map_or(usual.peak, Peak::given),
            utilisation: self.utilisation.unwrap_or(usual.utilisation),
        }
    }
}

/// About a shape, with LIMA's data.
///
/// # Errors
/// A constant of the recipe is out of its range.
pub fn of_shape(name: &str, config: &LlamaConfig, choices: &Choices, ask: &Ask) -> Result<Question, RecipeError> {
    let recipe = choices.within(config.max_position_embeddings).resolve(super::shapes::parameters(config))?;
    // The first id that is free.
    let new = (recipe.template == Template::Lima).then_some(config.vocab_size as TokenId);
    let data = Data::lima();
    let micro_tokens = recipe.micro_batch_tokens.max(data.longest);
    Ok(question(name, config, new, data, micro_tokens, &recipe, choices, ask))
}

/// About a run that could begin.
pub fn of_run(prepared: &Prepared, options: &Options, choices: &Choices, ask: &Ask) -> Question {
    let (recipe, rows, base) = (&prepared.recipe, &prepared.train, prepared.base.checkpoint.config());
    let lengths = rows.iter().map(|e| (e.ids.len(), e.supervised_tokens()));
    let name = format!("{} examples of {}", rows.len(), options.data.display());
    let data = Data::of(name, lengths);
    let len = |row: usize| rows[row].ids.len();
    let largest = (0..recipe.epochs).flat_map(|epoch| {
        let order = order::permutation(recipe.seed, epoch, rows.len());
        let batches: Vec<Vec<usize>> = order.chunks(recipe.batch_size).map(<[usize]>::to_vec).collect();
        batches.into_iter().flat_map(|batch| order::micro_batches(&batch, recipe.micro_batch_tokens, len))
    });
    let micro_tokens = largest.map(|micro| micro.iter().map(|&row| len(row)).sum()).max().unwrap_or(0);
    let mut question =
        question(&options.base, base, prepared.renderer.new_token(), data, micro_tokens, recipe, choices, ask);
    question.answers = match (&options.samples, ask.gpus) {
        (Some(sampling), None) => {
            let limit = base.max_position_embeddings;
            let ids = samples::check(&prepared.prompts, prepared.renderer.prompts(), limit).unwrap_or_default();
            let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
            let tokens = limit.min(longest + sampling.max_tokens as usize);
            Some(Answers { weights: number(prepared.save_format), sequences: ids.len().min(samples::MAX_SEQS), tokens })
        }
        _ => None,
    };
    question
}

fn question(
    name: &str,
    base: &LlamaConfig,
    new: Option<TokenId>,
    data: Data,
    micro_tokens: usize,
    recipe: &Recipe,
    choices: &Choices,
    ask: &Ask,
) -> Question {
    let config = with_new_token(base.clone(), new);
    let training = match recipe.lora {
        None => Training::Full { weights: number(recipe.weights), moments: number(recipe.moments) },
        Some(lora) => Training::Lora {
            rank: lora.rank,
            base: match lora.base {
                Frozen::F32 if ask.gpus.is_some() => DType::BF16,
                Frozen::F32 => DType::F32,
                Frozen::Q8 => DType::Q8_0,
                Frozen::Q4 => DType::Q4_0,
            },
        },
    };
    // A machine that is only thought of may have what it takes; this one is to do what was said.
    let said = choices.weights.is_some() || choices.moments.is_some() || choices.lora_rank.is_some();
    Question {
        name: name.to_owned(),
        new_rows: config.vocab_size - base.vocab_size,
        config,
        data,
        epochs: recipe.epochs,
        batch: recipe.batch_size as u64,
        micro_tokens,
        rank: recipe.lora.map_or(RANK, |lora| lora.rank),
        chosen: (said || ask.gpus.is_none()).then_some(training),
        checkpointing: recipe.checkpointing,
        answers: None,
        device: ask.device(),
        layout: ask.layout,
        rate: ask.rate(),
        links: ask.links,
    }
}

fn number(number: Number) -> DType {
    match number {
        Number::F32 => DType::F32,
        Number::Bf16 => DType::BF16,
    }
}
