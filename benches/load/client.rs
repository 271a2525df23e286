//! One streamed request to an OpenAI-compatible server, and what was seen of it when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::sse::SseParser;

/// Which of the API's two ways to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    Chat,
    Completions,
}

/// A server under load.
#[derive(Clone)]
pub struct Target {
    /// What reports call it.
    pub name: String,
    /// Ends in `/v1`.
    base: String,
    pub model: String,
    api_key: Option<String>,
    client: reqwest::Client,
}

/// The server's count of tokens.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens that a prefix cache answered for, if the server tells.
    pub fn cached(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// On purpose.
    Disconnected,
    /// `kind` is what failures are counted by.
    Failed {
        kind: String,
        detail: String,
    },
}

impl Outcome {
    pub fn failed(kind: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Failed { kind: kind.into(), detail: detail.into() }
    }
}

/// What was seen of a request.
pub struct Exchange {
    pub sent: Instant,
    /// When each chunk with text came.
    pub chunks: Vec<Instant>,
    pub end: Instant,
    pub text: String,
    pub usage: Option<Usage>,
    pub finish: Option<String>,
    pub outcome: Outcome,
}

/// The parts of a chunk that matter here.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}

impl Target {
    /// A server at this address, which may end in `/v1`. Without a model's name, the first that the server lists.
    pub async fn connect(
        name: Option<String>,
        url: &str,
        model: Option<String>,
        api_key: Option<String>,
    ) -> Result<Self> {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        if !base.starts_with("http://") {
            bail!("{url}: the address must begin with http:// (this tool has no TLS)");
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            // A connection each, as from so many users. Kept-alive ones lose requests where a server closes them
            // unannounced after a stream, as llama.cpp's does.
            .pool_max_idle_per_host(0)
            .connect_timeout(Duration::from_secs(10))
            .build()?;
        let base = format!("{base}/v1");
        let mut target = Self { name: String::new(), base, model: String::new(), api_key, client };
        target.model = match model {
            Some(model) => model,
            None => target.first_model().await.with_context(|| format!("{url}: cannot list its models"))?,
        };
        target.name = name.unwrap_or_else(|| url.trim_start_matches("http://").to_owned());
        Ok(target)
    }

    async fn first_model(&self) -> Result<String> {
        let mut request = self.client.get(format!("{}/models", self.base)).timeout(Duration::from_secs(30));
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let list: Value = request.send().await?.error_for_status()?.json().await?;
        list["data"][0]["id"].as_str().map(str::to_owned).context("the list has no model")
    }

    /// The body of a request. `transcript` is the chat so far, `(role, text)` each.
    pub fn body(
        &self,
        endpoint: Endpoint,
        transcript: &[(&'static str, String)],
        max_tokens: u32,
        ignore_eos: bool,
        extra: &Map<String, Value>,
    ) -> Value {
        let mut body = json!({
            "model": self.model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": max_tokens,
            "temperature": 0,
        });
        match endpoint {
            Endpoint::Chat => {
                let message = |(role, text): &(&str, String)| json!({"role": role, "content": text});
                body["messages"] = transcript.iter().map(message).collect();
            }
            Endpoint::Completions => {
                let texts: Vec<&str> = transcript.iter().map(|(_, text)| text.as_str()).collect();
                body["prompt"] = texts.join("\n").into();
            }
        }
        if ignore_eos {
            body["ignore_eos"] = true.into();
        }
        for (name, value) in extra {
            body[name.as_str()] = value.clone();
        }
        body
    }

    /// Sends a request and reads its stream to the end, or until `cut` chunks with text have come.
    pub async fn exchange(&self, endpoint: Endpoint, body: &Value, cut: Option<u32>, timeout: Duration) -> Exchange {
        let path = match endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        };
        let mut request = self.client.post(format!("{}/{path}", self.base)).json(body);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let sent = Instant::now();
        let mut seen = Exchange {
            sent,
            chunks: Vec::new(),
            end: sent,
            text: String::new(),
            usage: None,
            finish: None,
            outcome: Outcome::Ok,
        };
        let outcome = tokio::time::timeout(timeout, read(request, cut, &mut seen)).await;
        seen.end = Instant::now();
        seen.outcome =
            outcome.unwrap_or_else(|_| Outcome::failed("timeout", format!("no end within {} s", timeout.as_secs())));
        seen
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn read(request: reqwest::RequestBuilder, cut: Option<u32>, seen: &mut Exchange) -> Outcome {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(e) if e.is_connect() => return Outcome::failed("no connection", chain(&e)),
        Err(e) => return Outcome::failed("request failed", chain(&e)),
    };
    let status = response.status();
    if !status.is_success() {
        let text = response.text().await.unwrap_or_default();
        let message = serde_json::from_str::<Value>(&text).ok();
        let message = message.as_ref().and_then(|v| v["error"]["message"].as_str());
        let detail: String = message.unwrap_or(&text).chars().take(300).collect();
        return Outcome::failed(format!("HTTP {}", status.as_u16()), detail);
    }
    let (mut parser, mut done, mut problem) = (SseParser::default(), false, None);
    loop {
        let bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(e) => return Outcome::failed("stream broke off", chain(&e)),
        };
        let now = Instant::now();
        parser.push(&bytes, |data| {
            if data == "[DONE]" {
                done = true;
                return;
            }
            match serde_json::from_str::<Chunk>(data) {
                Ok(chunk) => take(chunk, now, seen, &mut problem),
                Err(e) => problem = Some(Outcome::failed("not understood", format!("{e}: {data:.200}"))),
            }
        });
        if let Some(problem) = problem {
            return problem;
        }
        if cut.is_some_and(|cut| seen.chunks.len() >= cut as usize) {
            // Dropping the response closes the connection.
            return Outcome::Disconnected;
        }
    }
    if done { Outcome::Ok } else { Outcome::failed("stream broke off", "it ended without [DONE]") }
}

fn take(chunk: Chunk, now: Instant, seen: &mut Exchange, problem: &mut Option<Outcome>) {
    if let Some(error) = chunk.error {
        let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
        *problem = Some(Outcome::failed("error in the stream", message));
        return;
    }
    if chunk.usage.is_some() {
        // llama.cpp and others may send it more than once; the last one is complete.
        seen.usage = chunk.usage;
    }
    let Some(choice) = chunk.choices.into_iter().next() else { return };
    let content = choice.delta.content.or(choice.text).unwrap_or_default();
    let reasoning = choice.delta.reasoning_content.unwrap_or_default();
    if !content.is_empty() || !reasoning.is_empty() {
        seen.chunks.push(now);
    }
    seen.text.push_str(&content);
    if choice.finish_reason.is_some() {
        seen.finish = choice.finish_reason;
    }
}
