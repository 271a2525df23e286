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

use super::chat::{Identity, deadline};
use super::choice::Added;
use super::error::ApiError;
use super::generation::Generation;
use super::state::Stage;
use super::wire::{Chunk, ChunkChoice, Delta, Logprobs, Usage};

/// Events between the task and the connection.
const BUFFERED: usize = 16;

/// What the client asked to be told.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Usage in a last chunk, and `null` in the others.
    pub usage: bool,
    /// Log-probabilities.
    pub logprobs: bool,
    /// Time between comments on a silent stream.
    pub keep_alive: Duration,
}

/// The response that carries the stream.
pub fn respond(generation: Generation, identity: Identity, wants: Wants, stage: watch::Receiver<Stage>) -> Response {
    let (events, receiver) = mpsc::channel(BUFFERED);
    let writer = Writer { events, identity, wants, begun: vec![false; generation.len()] };
    tokio::spawn(writer.run(generation, stage));
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
    /// Which answers have had their first chunk.
    begun: Vec<bool>,
}

impl Writer {
    async fn run(mut self, mut generation: Generation, mut stage: watch::Receiver<Stage>) {
        let events = self.events.clone();
        // Returning drops the generation, which aborts what is unfinished.
        tokio::select! {
            _ = self.write(&mut generation) => {}
            () = events.closed() => {}
            () = deadline(&mut stage) => {
                // Without waiting: a client that does not read gets no word either.
                let _ = events.try_send(event(&ApiError::DrainDeadline.to_json()));
            }
        }
    }

    async fn write(&mut self, generation: &mut Generation) -> Result<(), Gone> {
        let mut silent_until = Instant::now() + self.wants.keep_alive;
        loop {
            let next = tokio::select! {
                next = generation.next() => next,
                () = sleep_until(silent_until) => {
                    self.send(Bytes::from_static(b": keep-alive\n\n")).await?;
                    silent_until = Instant::now() + self.wants.keep_alive;
                    continue;
                }
            };
            match next {
                None => break,
                Some(Err(error)) => return self.send(event(&error.to_json())).await,
                Some(Ok((index, added))) => {
                    if self.added(index, added).await? {
                        silent_until = Instant::now() + self.wants.keep_alive;
                    }
                }
            }
        }
        if self.wants.usage {
            self.chunk(Vec::new(), Some(Some(generation.usage()))).await?;
        }
        self.send(Bytes::from_static(b"data: [DONE]\n\n")).await
    }

    /// Whether anything was sent.
    async fn added(&mut self, index: usize, added: Added) -> Result<bool, Gone> {
        let mut sent = false;
        if !std::mem::replace(&mut self.begun[index], true) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), refusal: Some(None) };
            self.choice(index, delta, Vec::new(), None).await?;
            sent = true;
        }
        if !added.text.is_empty() || !added.logprobs.is_empty() {
            let delta = Delta { content: Some(added.text), ..Delta::default() };
            self.choice(index, delta, added.logprobs, None).await?;
            sent = true;
        }
        if let Some(reason) = added.finish_reason {
            self.choice(index, Delta::default(), Vec::new(), Some(reason)).await?;
            sent = true;
        }
        Ok(sent)
    }

    async fn choice(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Vec<super::wire::TokenLogprob>,
        finish_reason: Option<&'static str>,
    ) -> Result<(), Gone> {
        let logprobs =
            (self.wants.logprobs && !logprobs.is_empty()).then_some(Logprobs { content: logprobs, refusal: None });
        let choice = ChunkChoice { index: index as u32, delta, logprobs, finish_reason };
        self.chunk(vec![choice], self.wants.usage.then_some(None)).await
    }

    async fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>) -> Result<(), Gone> {
        let chunk = Chunk {
            id: &self.identity.id,
            object: "chat.completion.chunk",
            created: self.identity.created,
            model: &self.identity.model,
            choices,
            usage,
        };
        self.send(event(&serde_json::to_string(&chunk).expect("plain data serialises"))).await
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.events.send(bytes).await.map_err(|_| Gone)
    }
}

/// JSON text has no line breaks, so one `data:` line holds it.
fn event(json: &str) -> Bytes {
    Bytes::from(format!("data: {json}\n\n"))
}
