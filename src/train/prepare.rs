//! From flags to a run that can begin: base, recipe, examples, and a record of what it is made of.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::base::{Base, BaseError};
use super::checkpoint::default_format;
use super::checksum::Xxh64;
use super::data::{Conversation, DataErrors, Dataset, split};
use super::plan::shapes::{parameters, with_new_token};
use super::recipe::{Choices, Number, Recipe, RecipeError, difference};
use super::render::{Example, RenderError, Renderer, Template};
use super::report::Report;
use super::samples::{self, PromptsError, SampleError};
use crate::model::config::ConfigError;
use crate::parallel::Layout;

/// What a user decides beside the recipe: where things are, and what changes no number.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whatever the server's `--model` may name.
    pub base: String,
    /// Conversations to learn.
    pub data: PathBuf,
    /// Conversations to measure perplexity on.
    pub val_data: Option<PathBuf>,
    /// The run's directory.
    pub out: PathBuf,
    /// Steps after which the state is saved inside an epoch; it is at the end of each.
    pub save_every: Option<u64>,
    /// Epochs whose models are kept; all if `None`.
    pub keep: Option<usize>,
    /// Worker threads, which ranks share; one a processor if `None`.
    pub threads: Option<usize>,
    /// Ranks, and how they share the work.
    pub layout: Layout,
    /// Whether LoRA's result is saved as a whole model too, or as an adapter alone.
    pub merge: bool,
    /// Format of saved models; the base's if `None`.
    pub save_format: Option<Number>,
    /// Answers after each epoch; none if `None`.
    pub samples: Option<Sampling>,
    /// What utilisation is measured against, in FLOPs a second; measured if `None`.
    pub peak_flops: Option<f64>,
    /// Whether progress is shown on standard error.
    pub progress: bool,
}

/// Answers to dev prompts after each epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// One a line, or jsonl; the built-in ones if `None`.
    pub prompts: Option<PathBuf>,
    /// Tokens of an answer.
    pub max_tokens: u32,
}

/// Why a run cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] DataErrors),
    /// No base, or a broken one.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A constant out of its range.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A base that the template does not fit.
    #[error(transparent)]
    Renderer(RenderError),
    /// A conversation that cannot be rendered.
    #[error("{}: {error}", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// With the line.
        error: RenderError,
    },
    /// Rows, but no token of the assistant's in what is left of them.
    #[error("{}: there is nothing to learn: no row has a supervised token within --max-tokens {max_tokens}", path.display())]
    NothingToLearn {
        /// The file.
        path: PathBuf,
        /// The limit.
        max_tokens: usize,
    },
    /// More positions than the base has.
    #[error("--max-tokens is {max_tokens}, and the base was made for {positions} positions")]
    TooLong {
        /// Asked for.
        max_tokens: usize,
        /// The base's.
        positions: usize,
    },
    /// An adapter alone has no place for new rows.
    #[error("--merge off needs --template base: an adapter has no place for the new token's rows")]
    NewRows,
    /// Without a model there is nobody to answer.
    #[error("--merge off needs --no-samples: answers are those of a whole model")]
    NoModel,
    /// Two ways to hold rows out.
    #[error("--val-data and --val-split exclude each other")]
    TwoValidations,
    /// Ranks that would have nothing to do.
    #[error("--data-parallel-size is {ranks}, more than the {examples} examples of --batch-size")]
    Batch {
        /// Asked for.
        ranks: usize,
        /// Of a step.
        examples: usize,
    },
    /// A shape that does not divide.
    #[error("--tensor-parallel-size {ranks}: {error}")]
    Divide {
        /// Asked for.
        ranks: usize,
        /// Which size.
        error: ConfigError,
    },
    /// Adapters are not cut.
    #[error(
        "--tensor-parallel-size does not go with --lora-rank, whose matrices are not cut; --data-parallel-size does"
    )]
    LoraOverRanks,
    /// Dev prompts that cannot be read.
    #[error(transparent)]
    Prompts(#[from] PromptsError),
    /// Dev prompts that the model cannot answer.
    #[error(transparent)]
    Samples(#[from] SampleError),
}

/// A run that can begin.
#[derive(Debug)]
pub struct Prepared {
    /// The base, its weights not read yet.
    pub base: Base,
    /// Its tokenizer, with the recipe's template.
    pub renderer: Renderer,
    /// All constants.
    pub recipe: Recipe,
    /// What is in the data.
    pub report: Report,
    /// Rows that have something to learn; at least one. `row` is the place in the file.
    pub train: Vec<Example>,
    /// Rows held out, likewise; may be empty.
    pub validation: Vec<Example>,
    /// Dev prompts.
    pub prompts: Vec<String>,
    /// Format of saved models.
    pub save_format: Number,
    /// What is in `recipe.json`: base, data, a checksum of the rendered examples, the recipe.
    pub record: Map<String, Value>,
}

/// Names of the record that may differ when a run is resumed: what they stand for is compared by its content.
const PATHS: [&str; 2] = ["data", "val-data"];
const EXAMPLES: &str = "examples";

impl Prepared {
    /// Reads and checks everything but weights.
    ///
    /// # Errors
    /// Something that was given is wrong; nothing has been written.
    pub fn new(options: &Options, choices: &Choices) -> Result<Self, PrepareError> {
        let data = Dataset::read(&options.data)?;
        let held_out = options.val_data.as_deref().map(Dataset::read).transpose()?;
        let base = Base::open(&options.base)?;
        let shape = base.checkpoint.config();
        let recipe = choices.within(shape.max_position_embeddings).resolve(parameters(shape))?;
        if held_out.is_some() && recipe.val_split > 0 {
            return Err(PrepareError::TwoValidations);
        }
        if !options.merge && recipe.template == Template::Lima {
            return Err(PrepareError::NewRows);
        }
        if !options.merge && options.samples.is_some() {
            return Err(PrepareError::NoModel);
        }
        let Layout { tensor, data: ranks } = options.layout;
        if ranks > recipe.batch_size {
            return Err(PrepareError::Batch { ranks, examples: recipe.batch_size });
        }
        if tensor > 1 && recipe.lora.is_some() {
            return Err(PrepareError::LoraOverRanks);
        }
        let (max_tokens, positions) = (recipe.max_tokens, shape.max_position_embeddings);
        if max_tokens > positions {
            return Err(PrepareError::TooLong { max_tokens, positions });
        }
        let renderer = Renderer::new(&base, recipe.template).map_err(PrepareError::Renderer)?;
        let divided = with_new_token(shape.clone(), renderer.new_token()).divided(tensor);
        divided.map_err(|error| PrepareError::Divide { ranks: tensor, error })?;
        let all = examples(&renderer, &data.path, &data.conversations, &recipe)?;
        let report = Report::new(&data, &all, max_tokens);
        let (train, validation) = match &held_out {
            Some(other) => (all, examples(&renderer, &other.path, &other.conversations, &recipe)?),
            None if recipe.val_split > 0 => {
                let (train, held) = split(data.conversations, recipe.val_split, recipe.seed);
                (examples(&renderer, &data.path, &train, &recipe)?, examples(&renderer, &data.path, &held, &recipe)?)
            }
            None => (all, Vec::new()),
        };
        let train = learnable(train, &recipe);
        let validation = learnable(validation, &recipe);
        if train.is_empty() {
            return Err(PrepareError::NothingToLearn { path: options.data.clone(), max_tokens });
        }
        let prompts = match &options.samples {
            Some(sampling) => samples::read(sampling.prompts.as_deref())?,
            None => Vec::new(),
        };
        samples::check(&prompts, renderer.prompts(), positions)?;
        let record = record(options, &recipe, &train, &validation);
        let save_format = options.save_format.unwrap_or_else(|| default_format(&base.checkpoint));
        Ok(Self { base, renderer, recipe, report, train, validation, prompts, save_format, record })
    }

    /// Why a run that is made of `old` cannot go on as this one: the constant that differs.
    pub fn differs_from(&self, old: &Map<String, Value>) -> Option<String> {
        let compared = |record: &Map<String, Value>| {
            let mut record = record.clone();
            PATHS.iter().for_each(|name| _ = record.shift_remove(*name));
            // The checksum says least, and goes last.
            let examples = record.shift_remove(EXAMPLES);
            record.extend(examples.map(|value| (EXAMPLES.to_owned(), value)));
            record
        };
        difference(&compared(old), &compared(&self.record))
    }
}

/// Renders conversations; each gets its place for `row`.
fn examples(
    renderer: &Renderer,
    path: &Path,
    conversations: &[Conversation],
    recipe: &Recipe,
) -> Result<Vec<Example>, PrepareError> {
    let render = |(row, conversation): (usize, &Conversation)| {
        let example = renderer.example(conversation, recipe.max_tokens);
        let example = example.map_err(|error| PrepareError::Conversation { path: path.to_owned(), error })?;
        Ok(Example { row: row as u32, ..example })
    };
    conversations.iter().enumerate().map(render).collect()
}

/// Leaves out rows of which nothing would be learnt: those whose answers were cut off.
fn learnable(examples: Vec<Example>, recipe: &Recipe) -> Vec<Example> {
    examples.into_iter().filter(|example| weight(example, recipe.prompt_loss_weight) > 0.0).collect()
}

/// What the tokens of an example count together. The first is not predicted.
pub fn weight(example: &Example, prompt_loss_weight: f64) -> f64 {
    // The model has it in F32.
    let prompt = f64::from(prompt_loss_weight as f32);
    example.supervised.iter().skip(1).map(|supervised| if *supervised { 1.0 } else { prompt }).sum()
}

fn record(options: &Options, recipe: &Recipe, train: &[Example], validation: &[Example]) -> Map<String, Value> {
    let mut hash = Xxh64::default();
    for examples in [train, validation] {
        hash.update(&(examples.len() as u64).to_le_bytes());
        for example in examples {
            hash.update(&(example.ids.len() as u64).to_le_bytes());
            example.ids.iter().for_each(|id| hash.update(&id.to_le_bytes()));
            example.supervised.iter().for_each(|s| hash.update(&[u8::from(*s)]));
        }
    }
    let path = |path: &Path| Value::from(path.display().to_string());
    let mut record = Map::new();
    record.insert("base".into(), options.base.clone().into());
    record.insert("data".into(), path(&options.data));
    record.insert("val-data".into(), options.val_data.as_deref().map_or(Value::Null, path));
    record.insert(EXAMPLES.into(), format!("{} xxh64:{:016x}", train.len(), hash.finish()).into());
    record.extend(recipe.to_json());
    record
}
