//! Questions from flags.

use std::path::Path;

use anyhow::{Context, bail};

use super::{KvFormat, Machine, Plan, Question, Step, WeightFormat};
use crate::config::ByteSize;
use crate::hub::{self, ModelSource};
use crate::model::config::LlamaConfig;
use crate::model::shapes::{self, NAMES};
use crate::model::weights::Checkpoint;

/// `lima plan`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A name such as llama-65b (65b, 30b, 13b, 7b, 1.1b, 135m), a config.json or its folder, a .gguf file, or as for --model
    pub model: String,
    /// Devices: 8xh100-80, 4xh200, l40s, … or cpu, which is this machine's; several to compare
    #[arg(long, value_name = "DEVICES", num_args = 1.., value_delimiter = ',', default_value = "h100-80")]
    pub device: Vec<String>,
    /// Bytes of each device that may be used [default: all that a program can have]
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<ByteSize>,
    /// Ranks that the model is cut over (-tp) [default: every number that divides the devices]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub tensor_parallel_size: Option<u16>,
    /// Formats of the weights to look at [default: bf16, int8 and int4; with --device cpu f32 too]
    #[arg(long, value_name = "FORMAT", num_args = 1.., value_delimiter = ',')]
    pub dtype: Vec<WeightFormat>,
    /// Of keys and values [default: bf16]
    #[arg(long, value_name = "FORMAT")]
    pub kv_cache_dtype: Option<KvFormat>,
    /// Longest prompt plus completion: one such sequence must fit [default: what the model allows]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1 << 24))]
    pub max_model_len: Option<u32>,
    /// Tokens of a sequence, on average, for the number of sequences and for speeds
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub context: u32,
    /// Sequences computed at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub max_num_seqs: u16,
    /// Tokens computed in one step
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_num_batched_tokens: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The shape that a name, a file or a folder stands for.
///
/// # Errors
/// There is none, or it is refused.
pub fn model(name: &str) -> anyhow::Result<LlamaConfig> {
    let path = Path::new(name);
    let config = path.join("config.json");
    if path.is_dir() && config.is_file() {
        return Ok(shapes::shape(&config.display().to_string())?);
    }
    if path.extension().is_some_and(|e| e == "json") || shapes::is_known(name) {
        return Ok(shapes::shape(name)?);
    }
    if path.exists() {
        return Ok(Checkpoint::open(path)?.config().clone());
    }
    let source: ModelSource = match name.parse() {
        Ok(ModelSource::Path(_)) | Err(_) => bail!("{name}: {} are known, or the path of a model", NAMES.join(", ")),
        Ok(source) => source,
    };
    let path = hub::resolve(&source, &hub::terminal_progress())?;
    Ok(Checkpoint::open(path)?.config().clone())
}

/// Whose answers are shown together.
pub struct Plans {
    /// One for each machine.
    pub plans: Vec<Plan>,
    /// Whether as JSON.
    pub json: bool,
}

impl Options {
    /// Works out the plans.
    ///
    /// # Errors
    /// There is no such model or device, or a length is beyond the model's.
    pub fn plans(&self) -> anyhow::Result<Plans> {
        let config = model(&self.model)?;
        let limit = config.max_position_embeddings;
        let max_model_len = self.max_model_len.map_or(limit, |n| n as usize);
        if max_model_len > limit {
            bail!("--max-model-len {max_model_len} is more than the {limit} positions of the model");
        }
        let question = |text: &String| -> anyhow::Result<Question> {
            let machine: Machine = text.parse().map_err(anyhow::Error::msg).context("--device")?;
            let limit = self.device_memory.map(|bytes| bytes.0);
            let usual = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4];
            let mut formats = match self.dtype.is_empty() {
                true => usual[usize::from(!machine.device.is_cpu)..].to_vec(),
                false => self.dtype.clone(),
            };
            formats.sort_unstable();
            formats.dedup();
            Ok(Question {
                name: self.model.clone(),
                config: config.clone(),
                machine: Machine { limit, ..machine },
                formats,
                kv: self.kv_cache_dtype.unwrap_or(KvFormat::Bf16),
                ranks: self.tensor_parallel_size.map(usize::from),
                context: (self.context as usize).min(max_model_len),
                max_model_len,
                step: Step { tokens: self.max_num_batched_tokens as usize, sequences: usize::from(self.max_num_seqs) },
            })
        };
        let questions = self.device.iter().map(question).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Plans { plans: questions.into_iter().map(Plan::new).collect(), json: self.json })
    }
}
