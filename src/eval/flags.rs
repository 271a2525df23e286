//! Flags of `lima eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::ablate::Ablate;
use super::answers::Named;
use super::generate::Decoding;
use super::human::Human;
use super::judge::{Scale, Style};
use super::pairwise::Orders;
use super::select::Select;

/// `lima eval`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum Command {
    /// Answer prompts with a model, as LIMA's were answered
    Generate(Generate),
    /// Ask a judge which of two systems answers better
    Pairwise(Pairwise),
    /// Have answers scored from 1 to 6
    Likert(Scored),
    /// Have answers graded: excellent, pass or fail
    Absolute(Scored),
    /// Have answers judged safe or unsafe
    Safety(Scored),
    /// Have every turn of dialogues graded: excellent, pass or fail
    Dialogue(Scored),
    /// How much judges agree, people or models
    Agreement(Agreement),
    /// Choose an epoch of a run by its answers to dev prompts
    Select(Select),
    /// A page on which people say which of two answers is better, without being told whose they are
    Human(Human),
    /// Train on subsets of data and compare what comes of it: quality, diversity, quantity
    Ablate(Ablate),
}

/// The server that is asked.
#[derive(Args, Clone, Debug)]
pub struct Server {
    /// Address of any server of OpenAI's API
    #[arg(long, env = "LIMA_URL", default_value = "http://127.0.0.1:8000/v1")]
    pub url: String,
    /// Serve this model on this machine meanwhile, instead: whatever `lima --model` takes
    #[arg(long, value_name = "MODEL")]
    pub local: Option<String>,
    /// Key that the server wants
    #[arg(long, env = "LIMA_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// The server's name for the model [default: the first that it has]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Calls side by side
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Tries after the first, where the server is too busy, fails or breaks off
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub retries: u32,
    /// Seconds before the second try, doubled before each further one; a server's Retry-After may make it longer
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub backoff: f64,
}

/// Where a study is kept.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// Directory of the study: what was asked and said, verdicts, numbers, report. The same command goes on where it was
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Where replies are kept, to share them between studies [default: calls.jsonl in the directory]
    #[arg(long, value_name = "FILE")]
    pub cache: Option<PathBuf>,
}

/// How a judge is asked, whatever it is asked.
#[derive(Args, Clone, Debug)]
pub struct Judging {
    /// The judge's sampling temperature
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub judge_temperature: f64,
    /// The judge's longest answer, tokens
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub judge_max_tokens: u32,
    /// Hold the judge to the possible verdicts, without a word beside: for small ones (`structured_outputs`, as lima and
    /// vLLM have it)
    #[arg(long)]
    pub choice: bool,
}

/// How numbers are made.
#[derive(Args, Clone, Debug)]
pub struct Statistics {
    /// Resamples of prompts for each interval
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub bootstrap: u32,
}

impl Judging {
    /// Parameters of a call.
    pub fn params(&self, choices: &[&str]) -> Map<String, Value> {
        let mut params = Map::new();
        params.insert("temperature".into(), json!(self.judge_temperature));
        params.insert("max_tokens".into(), json!(self.judge_max_tokens));
        if self.choice {
            params.insert("structured_outputs".into(), json!({ "choice": choices }));
        }
        params
    }
}

/// `generate`.
#[derive(Args, Clone, Debug)]
pub struct Generate {
    /// Prompts: LIMA's or MT-Bench's jsonl, chats, or a line each
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Only the first N of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(flatten)]
    pub(super) decoding: Decoding,
}

/// `pairwise`.
#[derive(Args, Clone, Debug)]
pub struct Pairwise {
    /// Two systems or more: NAME=PATH of `generate`'s directory or of a file of answers. Numbers are the first one's
    #[arg(required = true, num_args = 2.., value_name = "NAME=PATH")]
    pub systems: Vec<Named>,
    /// How the judge is asked
    #[arg(long, value_enum, default_value_t = Style::Lima)]
    pub style: Style,
    /// File with instructions for the judge instead of the style's own
    #[arg(long, value_name = "FILE")]
    pub system: Option<PathBuf>,
    /// In which order answers are shown
    #[arg(long, value_enum, default_value_t = Orders::Both)]
    pub orders: Orders,
    /// Every system with every other, not only the first with the others
    #[arg(long)]
    pub all_pairs: bool,
    /// Of resamples, and of the order where it is one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(flatten)]
    pub(super) judging: Judging,
    #[command(flatten)]
    pub(super) statistics: Statistics,
}

/// `likert`, `absolute`, `safety` and `dialogue`.
#[derive(Args, Clone, Debug)]
pub struct Scored {
    /// Systems: NAME=PATH of `generate`'s directory or of a file of answers
    #[arg(required = true, value_name = "NAME=PATH")]
    pub systems: Vec<Named>,
    /// Verdicts about each answer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub judgments: u32,
    /// Of resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(flatten)]
    pub(super) judging: Judging,
    #[command(flatten)]
    pub(super) statistics: Statistics,
}

/// `agreement`.
#[derive(Args, Clone, Debug)]
pub struct Agreement {
    /// Verdicts: NAME=PATH of a directory of `pairwise`, or of a file that it or `human` wrote
    #[arg(required = true, value_name = "NAME=PATH")]
    pub judges: Vec<Named>,
    /// Report to write
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Of resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub(super) statistics: Statistics,
}

impl Command {
    /// What a command asks of single answers.
    pub(super) fn scored(&self) -> Option<(&Scored, Scale, bool)> {
        match self {
            Self::Likert(flags) => Some((flags, Scale::Likert, false)),
            Self::Absolute(flags) => Some((flags, Scale::Absolute, false)),
            Self::Safety(flags) => Some((flags, Scale::Safety, false)),
            Self::Dialogue(flags) => Some((flags, Scale::Absolute, true)),
            _ => None,
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0 to 3600 is needed".into()),
    }
}
