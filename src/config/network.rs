//! What has to do with clients and operators rather than with the model: limits, listeners, logs.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use super::{ByteSize, ConfigError, Options, traces, within};

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Certificate and key of HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain of certificates, PEM.
    pub certificates: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// The part of the configuration that is about clients and operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Port of the metrics, if they have their own.
    pub metrics_port: Option<u16>,
    /// HTTPS.
    pub tls: Option<TlsFiles>,
    /// Origins whose pages may ask.
    pub allowed_origins: Vec<String>,
    /// Prompt tokens that may wait; `None` is in proportion to the sequences that may.
    pub max_queued_tokens: Option<usize>,
    /// How long a request may wait; `None` is for ever.
    pub queue_timeout: Option<Duration>,
    /// How long it may take in all; `None` is for ever.
    pub request_timeout: Option<Duration>,
    /// Without a step for this long the server is not ready.
    pub watchdog_timeout: Duration,
    /// How long a connection may be without a whole request head.
    pub idle_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes of a request's headers.
    pub max_header_size: usize,
    /// Whether cached prefixes are found by the key that made them only.
    pub isolate_prefix_cache: bool,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Where spans of requests are posted, a whole URL.
    pub traces_endpoint: Option<String>,
}

/// Longest time that can be set.
const YEAR: usize = 365 * 86_400;

impl Network {
    /// Adds the defaults and checks every value.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn resolve(o: &Options) -> Result<Self, ConfigError> {
        let tls = match (&o.ssl_certfile, &o.ssl_keyfile) {
            (None, None) => None,
            (Some(certificates), Some(key)) => Some(TlsFiles { certificates: certificates.clone(), key: key.clone() }),
            (Some(_), None) => return Err(ConfigError("--ssl-certfile needs --ssl-keyfile too".into())),
            (None, Some(_)) => return Err(ConfigError("--ssl-keyfile needs --ssl-certfile too".into())),
        };
        let allowed_origins = o.allowed_origins.clone().unwrap_or_default();
        if let Some(wrong) = allowed_origins.iter().find(|origin| !is_origin(origin)) {
            let message =
                format!("--allowed-origins '{wrong}' is neither '*' nor an origin such as https://example.org");
            return Err(ConfigError(message));
        }
        let seconds = |flag: &str, value: Option<u64>, default: u64, least: usize| {
            let value = usize::try_from(value.unwrap_or(default)).unwrap_or(usize::MAX);
            within(flag, value, least, YEAR).map(|seconds| Duration::from_secs(seconds as u64))
        };
        let limit = |time: Duration| (!time.is_zero()).then_some(time);
        let tokens = |n| within("--max-queued-tokens", n, 1, 1 << 40);
        Ok(Self {
            metrics_port: o.metrics_port,
            tls,
            allowed_origins,
            max_queued_tokens: o.max_queued_tokens.map(tokens).transpose()?,
            queue_timeout: limit(seconds("--queue-timeout", o.queue_timeout, 300, 0)?),
            request_timeout: limit(seconds("--request-timeout", o.request_timeout, 3600, 0)?),
            watchdog_timeout: seconds("--watchdog-timeout", o.watchdog_timeout, 30, 1)?,
            idle_timeout: seconds("--idle-timeout", o.idle_timeout, 60, 1)?,
            max_connections: within("--max-connections", o.max_connections.unwrap_or(4096), 1, 1 << 20)?,
            max_header_size: within(
                "--max-header-size",
                o.max_header_size.unwrap_or(ByteSize(32 << 10)).0 as usize,
                1 << 10,
                1 << 24,
            )?,
            isolate_prefix_cache: o.isolate_prefix_cache.unwrap_or(false),
            log_format: o.log_format.unwrap_or(LogFormat::Text),
            traces_endpoint: traces::endpoint(o.otlp_traces_endpoint.as_deref(), |name| std::env::var(name).ok())?,
        })
    }

    /// For the table of the configuration.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let seconds = |time: Option<Duration>| time.map_or("none".into(), |t| format!("{}s", t.as_secs()));
        let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.into());
        let origins = (!self.allowed_origins.is_empty()).then(|| self.allowed_origins.join(", "));
        let tls = self.tls.as_ref().map(|tls| tls.certificates.display().to_string());
        let format = self.log_format.to_possible_value().map(|value| value.get_name().to_owned());
        vec![
            ("metrics-port", or(self.metrics_port.map(|p| p.to_string()), "as the API's")),
            ("ssl-certfile", or(tls, "none: plain HTTP")),
            ("allowed-origins", or(origins, "none")),
            ("max-queued-tokens", or(self.max_queued_tokens.map(|n| n.to_string()), "from the context")),
            ("queue-timeout", seconds(self.queue_timeout)),
            ("request-timeout", seconds(self.request_timeout)),
            ("watchdog-timeout", seconds(Some(self.watchdog_timeout))),
            ("idle-timeout", seconds(Some(self.idle_timeout))),
            ("max-connections", self.max_connections.to_string()),
            ("max-header-size", ByteSize(self.max_header_size as u64).to_string()),
            ("isolate-prefix-cache", self.isolate_prefix_cache.to_string()),
            ("log-format", or(format, "")),
            ("otlp-traces-endpoint", or(self.traces_endpoint.clone(), "none")),
        ]
    }
}

/// What a browser sends as `Origin`: scheme, host, and a port that is not the scheme's own.
fn is_origin(text: &str) -> bool {
    let host = text.split_once("://").map(|(_, host)| host);
    text == "*"
        || host
            .is_some_and(|h| !h.is_empty() && !h.contains('/') && h.bytes().all(|b| b.is_ascii_graphic() && b != b','))
}
