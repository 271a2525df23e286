//! Flags, `LIMA_*` environment variables and a TOML file become one validated, immutable
//! [`Config`]. Flag over environment over file over default.

mod lora;
mod network;
mod options;
mod show;
mod traces;
mod values;

pub use lora::LoraModule;
pub use network::{LogFormat, Network, TlsFiles};
pub use options::Options;
pub use values::{ByteSize, Device, Dtype, KvCacheDtype, ToolCallParser};

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use options::read_file;

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// The command line with `-tp`, which clap has no word for, written out.
pub fn arguments(given: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    given.map(|argument| match argument.to_str().and_then(|text| text.strip_prefix("-tp")) {
        Some(rest) if rest.is_empty() || rest.starts_with('=') => format!("--tensor-parallel-size{rest}").into(),
        _ => argument,
    })
}

/// clap's error as one line: its first paragraph.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line: Vec<_> = text.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
    line.join(" ").trim_start_matches("error: ").to_owned()
}

/// A configuration that cannot be used: one line that names the flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// What is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(pub Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// The resolved configuration. `None` is "decided when the model is known".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Model specification.
    pub model: String,
    /// Names in the API; empty: derived from the model.
    pub served_model_name: Vec<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Keys that requests must bring, as they were given.
    pub api_key: Secrets,
    /// File of such keys.
    pub api_key_file: Option<PathBuf>,
    /// Where to run.
    pub device: Device,
    /// Format of the weights.
    pub dtype: Dtype,
    /// Context length, tokens.
    pub max_model_len: Option<usize>,
    /// Sequences computed at once.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
    /// Bytes of the KV pool.
    pub kv_cache_memory: Option<ByteSize>,
    /// Type of the KV cache.
    pub kv_cache_dtype: KvCacheDtype,
    /// Whether equal prefixes are computed once.
    pub prefix_caching: bool,
    /// Tokens guessed ahead at most; 0 is off.
    pub num_speculative_tokens: usize,
    /// Compute threads.
    pub threads: usize,
    /// Ranks that the model is cut over.
    pub tensor_parallel_size: usize,
    /// Sequences that may wait.
    pub max_queued_requests: usize,
    /// Seed of requests without one.
    pub seed: Option<u64>,
    /// How long running requests may go on after a signal.
    pub drain_timeout: Duration,
    /// Largest request body, bytes.
    pub max_body_size: usize,
    /// LoRA adapters to load at the start.
    pub lora_modules: Vec<LoraModule>,
    /// LoRA adapters loaded at once.
    pub max_loras: usize,
    /// Their largest rank.
    pub max_lora_rank: usize,
    /// Where clients may load adapters from.
    pub lora_root: Option<PathBuf>,
    /// Chat template file.
    pub chat_template: Option<PathBuf>,
    /// Format of calls.
    pub tool_call_parser: ToolCallParser,
    /// Clients and operators.
    pub network: Network,
    /// Whether `GET /` is the chat page.
    pub chat_page: bool,
}

impl Options {
    /// Adds the file, then the defaults, and checks every value.
    ///
    /// # Errors
    /// One line that names the flag, or the file and its key.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Options::default(),
        };
        let o = self.or(file);
        let network = Network::resolve(&o)?;
        let host = o.host.as_deref().unwrap_or("127.0.0.1");
        let ip: IpAddr = match host {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            host => host
                .trim_matches(['[', ']'])
                .parse()
                .map_err(|_| ConfigError(format!("--host '{host}' is not an IP address")))?,
        };
        let served_model_name = o.served_model_name.unwrap_or_default();
        if !served_model_name.iter().all(|n| lora::is_name(n)) {
            return Err(ConfigError("--served-model-name must not be empty nor hold white space".into()));
        }
        let device = o.device.unwrap_or(Device::Auto);
        if device == Device::Cuda {
            return Err(ConfigError("--device cuda: this build has no CUDA support; use --device cpu".into()));
        }
        let model = o.model.unwrap_or_else(|| DEFAULT_MODEL.into());
        if model.is_empty() {
            return Err(ConfigError("--model must not be empty".into()));
        }
        if let Some(path) = &o.chat_template
            && !path.is_file()
        {
            return Err(ConfigError(format!("--chat-template '{}' is not a file", path.display())));
        }
        let lora_modules = lora::parse(o.lora_modules.as_deref().unwrap_or_default())?;
        let max_loras = within("--max-loras", o.max_loras.unwrap_or(lora_modules.len().max(8)), 1, 1024)?;
        if lora_modules.len() > max_loras {
            let count = lora_modules.len();
            return Err(ConfigError(format!("--lora-modules names {count} adapters, --max-loras allows {max_loras}")));
        }
        if let Some(root) = &o.lora_root
            && !root.is_dir()
        {
            return Err(ConfigError(format!("--lora-root '{}' is not a folder", root.display())));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let max_body_size = o.max_body_size.unwrap_or(ByteSize(8 << 20)).0;
        Ok(Config {
            model,
            served_model_name,
            listen: SocketAddr::new(ip, o.port.unwrap_or(8000)),
            api_key: Secrets(o.api_key.unwrap_or_default()),
            api_key_file: o.api_key_file,
            device,
            dtype: o.dtype.unwrap_or(Dtype::Auto),
            max_model_len: o.max_model_len.map(|n| within("--max-model-len", n, 2, 1 << 24)).transpose()?,
            max_num_seqs: within("--max-num-seqs", o.max_num_seqs.unwrap_or(64), 1, 4096)?,
            max_num_batched_tokens: within(
                "--max-num-batched-tokens",
                o.max_num_batched_tokens.unwrap_or(512),
                1,
                1 << 20,
            )?,
            kv_cache_memory: o.kv_cache_memory,
            kv_cache_dtype: o.kv_cache_dtype.unwrap_or(KvCacheDtype::Auto),
            prefix_caching: !o.no_enable_prefix_caching && o.enable_prefix_caching.unwrap_or(true),
            num_speculative_tokens: within("--num-speculative-tokens", o.num_speculative_tokens.unwrap_or(0), 0, 64)?,
            threads: within("--threads", o.threads.unwrap_or(cores), 1, 1024)?,
            tensor_parallel_size: within("--tensor-parallel-size", o.tensor_parallel_size.unwrap_or(1), 1, 1024)?,
            max_queued_requests: within("--max-queued-requests", o.max_queued_requests.unwrap_or(1024), 1, 1 << 20)?,
            seed: o.seed,
            drain_timeout: Duration::from_secs(within(
                "--drain-timeout",
                o.drain_timeout.unwrap_or(30) as usize,
                0,
                86_400,
            )? as u64),
            max_body_size: within("--max-body-size", max_body_size as usize, 1 << 10, 1 << 30)?,
            lora_modules,
            max_loras,
            max_lora_rank: within("--max-lora-rank", o.max_lora_rank.unwrap_or(64), 1, 1024)?,
            lora_root: o.lora_root,
            chat_template: o.chat_template,
            tool_call_parser: o.tool_call_parser.unwrap_or(ToolCallParser::Auto),
            network,
            chat_page: !o.disable_chat_page.unwrap_or(false),
        })
    }
}

fn within(flag: &str, value: usize, min: usize, max: usize) -> Result<usize, ConfigError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError(format!("{flag} must be between {min} and {max}, not {value}")))
    }
}
