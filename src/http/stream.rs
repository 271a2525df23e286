//! The streaming answer: server-sent events from a task of their own.
//!
//! The task writes into a short channel that the connection empties as the client reads. A slow
//! client so holds up the task, never the engine; one that goes away closes the channel, and the task
//! ends and drops the sequences.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::anthropic;
use super::chat::{Identity, deadline};
use super::choice::Added;
use super::completions::TextChunks;
use super::error::ApiError;
use super::generation::Generation;
use super::responses;
use super::state::Stage;
use super::tools::{CallParser, deltas, finish_reason};
use super::vocabulary::Vocabulary;
use super::wire::{Chunk, ChunkChoice, Delta, Logprobs, Usage};

/// Events between the task and the connection.
const BUFFERED: usize = 16;
/// How long a client may take to read what is left when the request's time is over.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// What the client asked to be told.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Usage in a last chunk, and `null` in the others.
    pub usage: bool,
    /// Time between comments on a silent stream.
    pub keep_alive: Duration,
}

/// What chunks look like.
pub enum Dialect {
    /// Chat completions.
    Chat(ChatChunks),
    /// Completions.
    Text(TextChunks),
    /// Responses.
    Responses(Box<responses::Answer>),
    /// Anthropic's messages.
    Messages(Box<anthropic::Answer>),
}

/// `usage` of a chunk: absent, `null`, or the counts.
pub type ChunkUsage = Option<Option<Usage>>;

impl Dialect {
    /// The events that tell of `added`.
    fn added(
        &mut self,
        identity: &Identity,
        index: usize,
        added: Added,
        wants: Wants,
        generation: &Generation,
    ) -> Vec<Bytes> {
        let usage = wants.usage.then_some(None);
        let chunks = match self {
            Self::Chat(chat) => chat.chunks(identity, index, added, usage),
            Self::Text(text) => text.chunks(identity, index, added, usage),
            Self::Responses(answer) => return own(answer.added(added)),
            Self::Messages(answer) => return own(answer.added(identity, added, generation.usage())),
        };
        chunks.iter().map(|chunk| event(chunk)).collect()
    }

    /// The end of a stream that went well.
    fn end(&mut self, identity: &Identity, wants: Wants, used: Usage) -> Vec<Bytes> {
        let usage = match self {
            Self::Chat(_) => ChatChunks::chunk(identity, Vec::new(), Some(Some(used))),
            Self::Text(_) => TextChunks::chunk(identity, Vec::new(), Some(Some(used))),
            Self::Responses(answer) => return own(answer.end(used)),
            Self::Messages(answer) => return own(answer.end(used)),
        };
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        if wants.usage { vec![event(&usage), done] } else { vec![done] }
    }

    /// The end of a stream that failed.
    fn failed(&mut self, error: &ApiError, used: Usage) -> Bytes {
        match self {
            Self::Chat(_) | Self::Text(_) => event(&error.to_json_with(used)),
            Self::Responses(answer) => Bytes::from(answer.failed(error, used)),
            Self::Messages(answer) => Bytes::from(answer.failed(error)),
        }
    }

    /// What keeps a silent stream open.
    fn keep_alive(&self) -> Bytes {
        Bytes::from_static(match self {
            Self::Messages(_) => anthropic::PING.as_bytes(),
            _ => b": keep-alive\n\n",
        })
    }
}

/// Chunks of a chat.
pub struct ChatChunks {
    /// Which answers have had their first chunk.
    begun: Vec<bool>,
    vocabulary: Vocabulary,
    logprobs: bool,
    /// What reads the calls of each answer, where functions may be called.
    calls: Vec<CallParser>,
}

impl ChatChunks {
    /// For so many answers, whose calls are read by `calls`.
    pub fn new(answers: usize, vocabulary: Vocabulary, logprobs: bool, calls: Option<CallParser>) -> Self {
        let calls = calls.map_or_else(Vec::new, |calls| vec![calls; answers]);
        Self { begun: vec![false; answers], vocabulary, logprobs, calls }
    }

    /// The JSON of the chunks that tell of `added`.
    fn chunks(&mut self, identity: &Identity, index: usize, added: Added, usage: ChunkUsage) -> Vec<String> {
        let choices = self.choices(index, added).into_iter();
        choices.map(|choice| Self::chunk(identity, vec![choice], usage)).collect()
    }

    /// What the chunks that tell of `added` say, one choice each.
    pub fn choices(&mut self, index: usize, added: Added) -> Vec<ChunkChoice> {
        let mut choices = Vec::new();
        let mut push = |delta, logprobs, finish_reason| {
            choices.push(ChunkChoice { index: index as u32, delta, logprobs, finish_reason });
        };
        if !std::mem::replace(&mut self.begun[index], true) {
            let content = Some(String::new());
            let delta = Delta { role: Some("assistant"), content, refusal: Some(None), ..Delta::default() };
            push(delta, None, None);
        }
        let content: Vec<_> = added.tokens.into_iter().map(|t| self.vocabulary.token_logprob(t)).collect();
        let mut logprobs = (self.logprobs && !content.is_empty()).then_some(Logprobs { content, refusal: None });
        let mut calls = 0;
        if let Some(parser) = self.calls.get_mut(index) {
            let mut parts = parser.push(&added.text);
            if added.finish_reason.is_some() {
                parts.extend(parser.finish());
            }
            calls = parser.calls() as usize;
            deltas(parts).for_each(|delta| push(delta, logprobs.take(), None));
            if logprobs.is_some() {
                push(Delta { content: Some(String::new()), ..Delta::default() }, logprobs, None);
            }
        } else if !added.text.is_empty() || logprobs.is_some() {
            push(Delta { content: Some(added.text), ..Delta::default() }, logprobs, None);
        }
        if let Some(reason) = added.finish_reason {
            push(Delta::default(), None, Some(finish_reason(reason, calls)));
        }
        choices
    }

    fn chunk(identity: &Identity, choices: Vec<ChunkChoice>, usage: ChunkUsage) -> String {
        let chunk = Chunk {
            id: &identity.id,
            object: "chat.completion.chunk",
            created: identity.created,
            model: &identity.model,
            choices,
            usage,
        };
        serde_json::to_string(&chunk).expect("plain data serialises")
    }
}

/// The response that carries the stream.
pub fn respond(
    generation: Generation,
    identity: Identity,
    dialect: Dialect,
    wants: Wants,
    stage: watch::Receiver<Stage>,
) -> Response {
    let (events, receiver) = mpsc::channel(BUFFERED);
    let writer = Writer { events, identity, wants, dialect };
    tokio::spawn(writer.run(generation, stage).in_current_span());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies such as nginx otherwise collect the events.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(Receiver(receiver))).into_response()
}

struct Receiver(mpsc::Receiver<Bytes>);

impl Stream for Receiver {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(Ok))
    }
}

/// The client is gone.
struct Gone;

struct Writer {
    events: mpsc::Sender<Bytes>,
    identity: Identity,
    wants: Wants,
    dialect: Dialect,
}

impl Writer {
    async fn run(mut self, mut generation: Generation, mut stage: watch::Receiver<Stage>) {
        let events = self.events.clone();
        let until = generation.until().map(|at| at + LAST_WORDS);
        // Returning drops the generation, which aborts what is unfinished.
        tokio::select! {
            _ = self.write(&mut generation) => {}
            () = events.closed() => {}
            // The answer has ended by itself at its time; the client has not read it to the end.
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            () = deadline(&mut stage) => {
                // Without waiting: a client that does not read gets no word either.
                let _ = events.try_send(self.failed(&ApiError::DrainDeadline, &generation));
            }
        }
    }

    async fn write(&mut self, generation: &mut Generation) -> Result<(), Gone> {
        let mut silent_until = Instant::now() + self.wants.keep_alive;
        loop {
            let next = tokio::select! {
                next = generation.next() => next,
                () = sleep_until(silent_until) => {
                    self.send(self.dialect.keep_alive()).await?;
                    silent_until = Instant::now() + self.wants.keep_alive;
                    continue;
                }
            };
            match next {
                None => break,
                Some(Err(error)) => {
                    let last = self.failed(&error, generation);
                    return self.send(last).await;
                }
                Some(Ok((index, added))) => {
                    for event in self.dialect.added(&self.identity, index, added, self.wants, generation) {
                        self.send(event).await?;
                        silent_until = Instant::now() + self.wants.keep_alive;
                    }
                }
            }
        }
        for event in self.dialect.end(&self.identity, self.wants, generation.usage()) {
            self.send(event).await?;
        }
        Ok(())
    }

    /// The event of an error that ends the stream.
    fn failed(&mut self, error: &ApiError, generation: &Generation) -> Bytes {
        generation.failed(error);
        self.dialect.failed(error, generation.usage())
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.events.send(bytes).await.map_err(|_| Gone)
    }
}

/// Events that are written already.
fn own(events: String) -> Vec<Bytes> {
    if events.is_empty() { Vec::new() } else { vec![Bytes::from(events)] }
}

/// JSON text has no line breaks, so one `data:` line holds it.
fn event(json: &str) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}
