//! Flags.

use std::path::PathBuf;

use clap::Parser;
use serde_json::{Map, Value};

use super::client::Endpoint;
use super::lengths::Lengths;
use super::metrics::Slo;

/// Load test of OpenAI-compatible servers.
#[derive(Clone, Parser)]
#[command(name = "load", bin_name = "cargo bench --bench load --")]
pub struct Cli {
    /// Server under test: an address (default: starts lima)
    #[arg(long, value_name = "URL", conflicts_with_all = ["lima", "command"])]
    pub url: Option<String>,
    /// Server under test: starts lima with these flags
    #[arg(long, value_name = "FLAGS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub lima: Option<String>,
    /// Server under test: a command that is started; {port} is replaced by a free port
    #[arg(long, value_name = "COMMAND", conflicts_with = "lima")]
    pub command: Option<String>,
    /// Second server, compared in turn: an address
    #[arg(long, value_name = "URL", conflicts_with_all = ["against_lima", "against_command"])]
    pub against: Option<String>,
    /// Second server: starts lima with these flags
    #[arg(long, value_name = "FLAGS", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub against_lima: Option<String>,
    /// Second server: a command that is started
    #[arg(long, value_name = "COMMAND", conflicts_with = "against_lima")]
    pub against_command: Option<String>,
    /// Names of the servers in reports, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub names: Vec<String>,
    /// Model to ask for (default: the first that each server lists)
    #[arg(long)]
    pub model: Option<String>,
    /// Bearer token
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Part of the API
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub endpoint: Endpoint,
    /// Seconds a started server has to become ready
    #[arg(long, default_value_t = 600)]
    pub start_timeout: u64,

    /// Closed loop: users at once; a list is a sweep [default: 1]
    #[arg(long, value_delimiter = ',', value_name = "N,...", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub concurrency: Vec<u32>,
    /// Open loop: conversations a second; a list is a sweep; 'inf' is all at once
    #[arg(long, value_delimiter = ',', value_name = "R,...", value_parser = positive)]
    pub rate: Vec<f64>,
    /// Shape of the gamma-distributed gaps of an open loop: 1 is Poisson, less is burstier
    #[arg(long, default_value_t = 1.0, requires = "rate", value_parser = positive)]
    pub burstiness: f64,
    /// Conversations at each load and round [default: 64, or as many as --duration allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Seconds after which no conversation begins
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub duration: Option<f64>,
    /// Conversations before each load that do not count
    #[arg(long, default_value_t = 2)]
    pub warmup: u64,
    /// Rounds over all loads; two servers take turns within each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    /// Tokens of a prompt: N, LO-HI, lima, lima:SCALE
    #[arg(long, default_value = "128")]
    pub input: Lengths,
    /// Tokens of an answer, likewise
    #[arg(long, default_value = "128")]
    pub output: Lengths,
    /// Requests of a conversation, each after the answer to the one before
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub turns: u16,
    /// Tokens of a user's later turns [default: as --input]
    #[arg(long)]
    pub turn_input: Option<Lengths>,
    /// Seconds between an answer and the next turn
    #[arg(long, default_value_t = 0.0)]
    pub think: f64,
    /// Tokens of a system message that conversations share
    #[arg(long, default_value_t = 0)]
    pub shared_prefix: u32,
    /// Number of different shared prefixes
    #[arg(long, default_value_t = 1, requires = "shared_prefix")]
    pub prefix_groups: usize,
    /// Prompts of a file, a JSON object a line: 'messages', 'conversations' or 'prompt'
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "turn_input"])]
    pub prompts: Option<PathBuf>,
    /// Send a file's prompts again unchanged when it is used up
    #[arg(long, requires = "prompts")]
    pub allow_repeats: bool,
    /// Let answers end by themselves: --output is only the limit
    #[arg(long)]
    pub natural: bool,
    /// Fields added to each request, a JSON object
    #[arg(long, default_value = "{}", value_parser = object)]
    pub extra: Map<String, Value>,
    /// Part of the requests that are abandoned midway
    #[arg(long, default_value_t = 0.0, value_name = "FRACTION", value_parser = fraction)]
    pub disconnect: f64,
    /// Chunks after which they are [default: random, up to half the answer]
    #[arg(long, value_name = "CHUNKS", value_parser = clap::value_parser!(u32).range(1..))]
    pub disconnect_after: Option<u32>,
    /// Objectives of goodput in milliseconds: ttft:MS,tpot:MS,e2e:MS
    #[arg(long)]
    pub slo: Option<Slo>,
    /// Seconds a request may take
    #[arg(long, default_value_t = 600.0, value_parser = positive)]
    pub timeout: f64,
    /// Prompts, lengths, arrivals and disconnects depend on it alone
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Do not ask the server how many tokens the synthetic words make: one each
    #[arg(long)]
    pub no_calibrate: bool,
    /// Do not measure the tool itself
    #[arg(long)]
    pub no_overhead: bool,

    /// Everything, each request included
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Report with plots, one file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// One plot
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Cargo's
    #[arg(long, hide = true)]
    pub bench: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v| *v > 0.0).ok_or_else(|| "not a number above 0".into())
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| "not a number from 0 to 1".into())
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))
}

/// One step of a sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many users, each of whom waits for an answer before the next request.
    Closed(u32),
    /// So many conversations begun a second, whatever the server does.
    Open(f64),
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Closed(1) => f.write_str("1 user"),
            Self::Closed(n) => write!(f, "{n} users"),
            Self::Open(rate) => write!(f, "{rate}/s"),
        }
    }
}

impl Cli {
    /// The sweep.
    pub fn loads(&self) -> Vec<Load> {
        match (self.rate.as_slice(), self.concurrency.as_slice()) {
            ([], []) => vec![Load::Closed(1)],
            ([], users) => users.iter().map(|&n| Load::Closed(n)).collect(),
            (rates, _) => rates.iter().map(|&r| Load::Open(r)).collect(),
        }
    }
}
