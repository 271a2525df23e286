//! The span of one request.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use opentelemetry::trace::{Span as _, Status};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::Span;

use crate::engine::SamplingParams;
use crate::http::metrics::Timing;
use crate::http::traces::Generated;

tokio::task_local! {
    static SPAN: RequestSpan;
}

/// The span of a request. It ends with its last copy.
#[derive(Clone, Debug)]
pub struct RequestSpan(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    operation: &'static str,
    span: Mutex<Span>,
}

impl RequestSpan {
    pub(super) fn new(operation: &'static str, span: Span) -> Self {
        Self(Arc::new(Inner { operation, span: Mutex::new(span) }))
    }

    /// That of the request that is being handled, if it has one.
    pub fn current() -> Option<Self> {
        SPAN.try_with(Self::clone).ok()
    }

    /// Handles its request.
    pub async fn scope<T>(span: Option<Self>, handling: impl Future<Output = T>) -> T {
        match span {
            Some(span) => SPAN.scope(span, handling).await,
            None => handling.await,
        }
    }

    /// Works on its request, on a thread of its own.
    pub fn sync_scope<T>(span: Option<Self>, work: impl FnOnce() -> T) -> T {
        match span {
            Some(span) => SPAN.sync_scope(span, work),
            None => work(),
        }
    }

    fn span(&self) -> MutexGuard<'_, Span> {
        self.0.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its ids, in hexadecimal digits: of the trace, and its own.
    pub fn ids(&self) -> (String, String) {
        let span = self.span();
        let context = span.span_context();
        (context.trace_id().to_string(), context.span_id().to_string())
    }

    /// A label that the client gave the request.
    pub fn label(&self, name: &'static str, value: &str) {
        let key = if name == "user" { "user.id".to_owned() } else { format!("lima.request.{name}") };
        self.span().set_attribute(KeyValue::new(key, value.to_owned()));
    }

    /// The model that was asked for, by a name that is served.
    pub fn model(&self, name: &str) {
        let mut span = self.span();
        span.update_name(format!("{} {name}", self.0.operation));
        for key in ["gen_ai.request.model", "gen_ai.response.model"] {
            span.set_attribute(KeyValue::new(key, name.to_owned()));
        }
    }

    /// The id that the answer has.
    pub fn response(&self, id: &str) {
        self.span().set_attribute(KeyValue::new("gen_ai.response.id", id.to_owned()));
    }

    /// How text is to be generated, and how often.
    pub fn asked(&self, params: &SamplingParams, choices: usize) {
        let mut span = self.span();
        span.set_attributes([
            KeyValue::new("gen_ai.request.max_tokens", i64::from(params.max_tokens)),
            KeyValue::new("gen_ai.request.temperature", f64::from(params.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(params.top_p)),
            KeyValue::new("gen_ai.request.frequency_penalty", f64::from(params.frequency_penalty)),
            KeyValue::new("gen_ai.request.presence_penalty", f64::from(params.presence_penalty)),
            KeyValue::new("gen_ai.request.choice.count", choices as i64),
            KeyValue::new("gen_ai.request.n", choices as i64),
        ]);
        if params.top_k > 0 {
            span.set_attribute(KeyValue::new("gen_ai.request.top_k", i64::from(params.top_k)));
        }
    }

    /// What it came to.
    pub fn generated(&self, Generated { usage, timings: sequences, reasons }: Generated<'_>) {
        let (prompt, completion) = (usage.prompt_tokens as i64, usage.completion_tokens as i64);
        let mut attributes = vec![
            KeyValue::new("gen_ai.usage.input_tokens", prompt),
            KeyValue::new("gen_ai.usage.output_tokens", completion),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", usage.prompt_tokens_details.cached_tokens as i64),
            // vLLM's names for the same, and more.
            KeyValue::new("gen_ai.usage.prompt_tokens", prompt),
            KeyValue::new("gen_ai.usage.completion_tokens", completion),
            KeyValue::new("gen_ai.usage.num_sequences", sequences.len() as i64),
        ];
        if !reasons.is_empty() {
            let reasons: Vec<StringValue> = reasons.into_iter().map(StringValue::from).collect();
            attributes.push(KeyValue::new("gen_ai.response.finish_reasons", Value::Array(Array::String(reasons))));
        }
        let earliest = |of: fn(&Timing) -> Option<Instant>| sequences.iter().filter_map(|t| of(t)).min();
        let arrived = earliest(|t| Some(t.arrived()));
        let (scheduled, first) = (earliest(Timing::scheduled_at), earliest(Timing::first_token));
        let last = sequences.iter().filter_map(|t| t.last_token()).max();
        let latencies = [
            ("gen_ai.latency.time_in_queue", arrived, scheduled),
            ("gen_ai.latency.time_to_first_token", arrived, first),
            ("gen_ai.latency.e2e", arrived, Some(Instant::now())),
            ("gen_ai.latency.time_in_model_prefill", scheduled, first),
            ("gen_ai.latency.time_in_model_decode", first, last),
            ("gen_ai.latency.time_in_model_inference", scheduled, last),
        ];
        for (key, from, to) in latencies {
            if let (Some(from), Some(to)) = (from, to) {
                attributes.push(KeyValue::new(key, to.saturating_duration_since(from).as_secs_f64()));
            }
        }
        self.span().set_attributes(attributes);
    }

    /// The status of the response.
    pub fn responded(&self, status: u16) {
        self.span().set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
    }

    /// An error with this code; `is_ours` if it is not the client's.
    pub fn failed(&self, code: &'static str, is_ours: bool) {
        let mut span = self.span();
        span.set_attribute(KeyValue::new("error.type", code));
        if is_ours {
            span.set_status(Status::error(code));
        }
    }
}
