//! `POST /v1/embeddings`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::chat::{deadline, respond};
use super::choice::engine_error;
use super::common;
use super::error::{ApiError, quote};
use super::fields::{self, Fields};
use super::generation::submit;
use super::intake;
use super::metrics::Timing;
use super::prompts::{self, Encoding};
use super::state::{App, ServedModel};
use super::target::Target;
use super::traces::Generated;
use super::wire::{Embedding, EmbeddingList, EmbeddingUsage, Usage, Vector};
use crate::engine::{self, EngineError, Event, EventStream, Pooling, SamplingParams, Task};

/// Inputs ready to be submitted.
pub(super) struct Prepared {
    name: String,
    base64: bool,
    normalize: bool,
    sequences: Vec<engine::Request>,
}

/// A vector for each input.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (model, prepared) = intake::prepared(&app, request, prepare).await?;
    let active = app.enter()?;
    let Prepared { name, base64, normalize, sequences } = prepared;
    if let Some(span) = &active.span {
        span.model(&name);
    }
    let lengths: Vec<usize> = sequences.iter().map(|s| s.prompt.len()).collect();
    let streams = submit(&model, sequences, "input")?;
    lengths.iter().for_each(|&tokens| model.metrics().accepted(tokens, 1, 0));

    let mut stage = app.watch_stage();
    let mut reads: Vec<_> = streams
        .into_iter()
        .map(|events| Read { model: &model, events, timing: Timing::new(arrived), done: false })
        .collect();
    if let Some(first) = reads.first_mut() {
        tokio::select! {
            begun = first.begun() => begun?,
            () = at(active.queue_until) => return Err(active.not_begun()),
            () = deadline(&mut stage) => return Err(ApiError::DrainDeadline),
        }
    }
    let all = async {
        let mut data = Vec::with_capacity(reads.len());
        for (index, read) in reads.iter_mut().enumerate() {
            let mut vector = read.pooled().await?;
            if normalize {
                normalise(&mut vector);
            }
            let embedding = match base64 {
                true => {
                    Vector::Base64(STANDARD.encode(vector.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()))
                }
                false => Vector::Float(vector),
            };
            data.push(Embedding { object: "embedding", index, embedding });
        }
        Ok(data)
    };
    let data = tokio::select! {
        data = all => data?,
        () = deadline(&mut stage) => return Err(ApiError::DrainDeadline),
        () = at(active.until) => return Err(active.too_long()),
    };
    let prompt_tokens = lengths.iter().sum();
    if let Some(span) = &active.span {
        let timings = reads.iter().map(|read| &read.timing).collect();
        span.generated(Generated { usage: Usage::new(prompt_tokens, 0, 0), timings, reasons: Vec::new() });
    }
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    respond(&EmbeddingList { object: "list", data, model: &name, usage })
}

pub(super) fn prepare(model: &ServedModel, body: &[u8]) -> Result<Prepared, ApiError> {
    let mut f = Fields::new("", fields::parse(body)?)?;
    let target = Target::require(&mut f, model)?;
    let inputs = prompts::parse(f.require("input")?, "input", model.vocab_size)?;
    // Documents come from anywhere: what looks like a special token in them is text.
    let encoding = Encoding::parse(&mut f, false)?;
    let base64 = choose(&mut f, "encoding_format", &[("float", false), ("base64", true)])?;
    let pooling = choose(&mut f, "pooling", &[("mean", Pooling::Mean), ("last", Pooling::Last)])?;
    let normalize = f.bool("normalize")?.unwrap_or(true);
    if f.take("dimensions").is_some() {
        let message = "is not supported: the model was not trained to have its embeddings shortened";
        return Err(ApiError::unsupported("dimensions", message));
    }
    common::labels(&mut f)?;
    f.finish()?;
    let params = Arc::new(SamplingParams::default());
    let sequence = |input| {
        let tokens = encoding.encode(model, input, "input")?;
        Ok(target.sequence(&tokens.into(), Task::Embed(pooling), Arc::clone(&params), None))
    };
    let sequences = inputs.iter().map(sequence).collect::<Result<_, ApiError>>()?;
    Ok(Prepared { name: target.name, base64, normalize, sequences })
}

/// Waits until then, or for ever.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// One of several words; the first is the default.
fn choose<T: Copy>(f: &mut Fields, name: &'static str, among: &[(&str, T)]) -> Result<T, ApiError> {
    let Some(word) = f.string(name)? else { return Ok(among[0].1) };
    among.iter().find(|(known, _)| *known == word).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = among.iter().map(|(known, _)| format!("'{known}'")).collect();
        ApiError::value(name, "invalid_value", format!("expected {}, but got '{}'", known.join(" or "), quote(&word)))
    })
}

/// Scales to length 1; a zero vector stays.
fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

/// An input on its way.
struct Read<'a> {
    model: &'a ServedModel,
    events: EventStream,
    timing: Timing,
    done: bool,
}

impl Read<'_> {
    /// Waits until the engine takes it up, which is the first that it tells.
    async fn begun(&mut self) -> Result<(), ApiError> {
        match self.events.recv().await {
            Some(Event::Scheduled { .. }) => {
                self.timing.scheduled(self.model.metrics());
                Ok(())
            }
            Some(Event::Failed(error)) => Err(self.failed(error)),
            _ => Err(self.failed(EngineError::Stopped)),
        }
    }

    fn failed(&mut self, error: EngineError) -> ApiError {
        self.done = true;
        let error = engine_error(error);
        self.timing.failed(self.model.metrics(), error.code());
        error
    }

    async fn pooled(&mut self) -> Result<Vec<f32>, ApiError> {
        loop {
            match self.events.recv().await {
                Some(Event::Pooled(vector)) => {
                    self.done = true;
                    self.timing.finished(self.model.metrics(), "stop");
                    return Ok(vector);
                }
                Some(Event::Failed(error)) => return Err(self.failed(error)),
                Some(Event::Finished(_)) | None => return Err(self.failed(EngineError::Stopped)),
                Some(Event::Scheduled { .. }) => self.timing.scheduled(self.model.metrics()),
                Some(Event::PromptLogprobs(_) | Event::Token(_)) => {}
            }
        }
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.timing.cancelled(self.model.metrics());
        }
    }
}
