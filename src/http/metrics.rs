//! Prometheus metrics: vLLM's names where the meaning is the same, `lima:` for the rest.

mod exposition;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use super::caller::Caller;
use super::state::App;
use super::tenant::{Queued, Tenant};
use crate::engine::EngineStats;

/// Seconds; from 1 ms, because a small model on a near CPU answers in a few.
const LATENCY: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 128.0];

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each metric is registered once");
    collector
}

fn text(registry: &Registry) -> Vec<u8> {
    let mut out = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut out).expect("a Vec takes all");
    out
}

/// Metrics of the routes, there before any model.
pub struct HttpMetrics {
    registry: Registry,
    requests: IntCounterVec,
    errors: IntCounterVec,
}

impl HttpMetrics {
    pub(super) fn new() -> Self {
        let registry = Registry::new();
        let opts = Opts::new("lima:http_requests_total", "HTTP responses by route and status.");
        let requests = IntCounterVec::new(opts, &["route", "status"]).expect("a valid metric");
        let opts = Opts::new("lima:http_errors_total", "Errors told to clients, by route and code.");
        let errors = IntCounterVec::new(opts, &["route", "code"]).expect("a valid metric");
        Self { requests: register(&registry, requests), errors: register(&registry, errors), registry }
    }

    /// Counts a response; `route` is the pattern, never the path. With the code of the error that it tells.
    pub fn response(&self, route: &str, status: u16, error: Option<&str>) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        if let Some(code) = error {
            self.errors.with_label_values(&[route, code]).inc();
        }
    }

    /// In Prometheus' text format.
    pub fn encode(&self) -> Vec<u8> {
        text(&self.registry)
    }
}

/// Reads a number of the engine.
type Read<T> = fn(&EngineStats) -> T;

/// Metrics of a model's engine.
pub struct EngineMetrics {
    /// The label.
    model: String,
    registry: Registry,
    gauges: Vec<(Gauge, Read<f64>)>,
    /// Counters that the engine keeps; brought up to date at each scrape.
    counters: Mutex<Vec<(IntCounter, Read<u64>)>>,
    success: IntCounterVec,
    outcomes: IntCounterVec,
    cancelled: IntCounterVec,
    ttft: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
}

impl EngineMetrics {
    pub(super) fn new(model: &str) -> Self {
        let registry = Registry::new();
        let labelled = |name: &str, help: &str| {
            Opts::new(format!("vllm:{name}"), help).const_label("model_name", model).const_label("engine", "0")
        };
        let own = |name: &str, help: &str| {
            Opts::new(format!("lima:{name}"), help).const_label("model_name", model).const_label("engine", "0")
        };
        let gauge =
            |opts: Opts, read: Read<f64>| (register(&registry, Gauge::with_opts(opts).expect("a valid metric")), read);
        let counter = |opts: Opts, read: Read<u64>| {
            (register(&registry, IntCounter::with_opts(opts).expect("a valid metric")), read)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts { common_opts: labelled(name, help), buckets: buckets.to_vec() };
            register(&registry, Histogram::with_opts(opts).expect("a valid metric"))
        };
        let mut gauges = vec![
            gauge(labelled("num_requests_running", "Sequences being computed."), |s| s.running.load(Relaxed) as f64),
            gauge(labelled("num_requests_waiting", "Sequences waiting to be computed."), |s| s.waiting() as f64),
            gauge(own("queued_prompt_tokens", "Prompt tokens of the sequences that were never computed yet."), |s| {
                s.queued_prompt_tokens.load(Relaxed) as f64
            }),
            gauge(own("stalled_seconds", "Time without a step completing while there is work."), |s| {
                s.stalled_for().as_secs_f64()
            }),
            gauge(labelled("kv_cache_usage_perc", "Part of the KV blocks that sequences hold, 0 to 1."), |s| {
                s.blocks_in_use.load(Relaxed) as f64 / s.blocks_total.load(Relaxed).max(1) as f64
            }),
            gauge(own("lora_adapters", "LoRA adapters loaded."), |s| s.adapters.load(Relaxed) as f64),
            gauge(own("lora_adapter_bytes", "Memory of the LoRA adapters."), |s| s.adapter_bytes.load(Relaxed) as f64),
        ];
        let blocks = GaugeVec::new(own("kv_blocks", "KV blocks by state."), &["state"]).expect("a valid metric");
        register(&registry, blocks.clone());
        let states: [(&str, Read<f64>); 3] = [
            ("in_use", |s| s.blocks_in_use.load(Relaxed) as f64),
            ("cached", |s| s.blocks_cached.load(Relaxed) as f64),
            ("free", |s| s.blocks_free.load(Relaxed).saturating_sub(s.blocks_cached.load(Relaxed)) as f64),
        ];
        gauges.extend(states.map(|(state, read)| (blocks.with_label_values(&[state]), read)));
        let counters = vec![
            counter(labelled("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."), |s| {
                s.prefix_cache_queries.load(Relaxed)
            }),
            counter(labelled("prefix_cache_hits_total", "Prompt tokens found in the prefix cache."), |s| {
                s.prefix_cache_hits.load(Relaxed)
            }),
            counter(labelled("num_preemptions_total", "Sequences preempted."), |s| s.preemptions.load(Relaxed)),
            counter(labelled("prompt_tokens_total", "Prompt tokens taken up."), |s| s.prompt_tokens.load(Relaxed)),
            counter(labelled("prompt_tokens_cached_total", "Prompt tokens that were not computed again."), |s| {
                s.cached_prompt_tokens.load(Relaxed)
            }),
            counter(labelled("generation_tokens_total", "Tokens generated."), |s| s.generation_tokens.load(Relaxed)),
            counter(labelled("spec_decode_num_drafts_total", "Steps of sequences with drafts."), |s| {
                s.drafts.load(Relaxed)
            }),
            counter(labelled("spec_decode_num_draft_tokens_total", "Tokens drafted."), |s| {
                s.draft_tokens.load(Relaxed)
            }),
            counter(labelled("spec_decode_num_accepted_tokens_total", "Drafted tokens that were right."), |s| {
                s.accepted_draft_tokens.load(Relaxed)
            }),
            counter(own("prefill_tokens_total", "Positions computed of prompts and resumed sequences."), |s| {
                s.prefill_tokens.load(Relaxed)
            }),
            counter(own("decode_tokens_total", "Positions computed of decoding sequences, without drafts."), |s| {
                s.decode_tokens.load(Relaxed)
            }),
            counter(own("steps_total", "Engine steps completed."), |s| s.steps.load(Relaxed)),
            counter(own("step_failures_total", "Engine steps that failed."), |s| s.step_failures.load(Relaxed)),
            counter(own("sequences_failed_total", "Sequences that ended in an error."), |s| {
                s.finished_failed.load(Relaxed)
            }),
        ];
        let success = labelled("request_success_total", "Sequences that ended, by reason.");
        let success = IntCounterVec::new(success, &["finished_reason"]).expect("a valid metric");
        let outcomes = own("sequences_total", "Sequences that ended, by outcome and reason.");
        let outcomes = IntCounterVec::new(outcomes, &["outcome", "reason"]).expect("a valid metric");
        let cancelled = own("requests_cancelled_total", "Sequences whose client went away, by stage.");
        let cancelled = IntCounterVec::new(cancelled, &["stage"]).expect("a valid metric");
        for reason in ["stop", "length", "abort"] {
            success.with_label_values(&[reason]);
        }
        for reason in ["stop", "length"] {
            outcomes.with_label_values(&["completed", reason]);
        }
        for stage in ["queued", "prefill", "decode"] {
            cancelled.with_label_values(&[stage]);
            outcomes.with_label_values(&["cancelled", stage]);
        }
        Self {
            success: register(&registry, success),
            outcomes: register(&registry, outcomes),
            cancelled: register(&registry, cancelled),
            ttft: histogram("time_to_first_token_seconds", "From arrival to the first token.", LATENCY),
            inter_token: histogram("inter_token_latency_seconds", "From token to token.", LATENCY),
            per_output_token: histogram(
                "request_time_per_output_token_seconds",
                "Mean time per token after the first, of each sequence.",
                LATENCY,
            ),
            e2e: histogram("e2e_request_latency_seconds", "From arrival to the end.", LATENCY),
            queue: histogram("request_queue_time_seconds", "From arrival to the first step.", LATENCY),
            inference: histogram("request_inference_time_seconds", "From the first step to the end.", LATENCY),
            prefill: histogram("request_prefill_time_seconds", "From the first step to the first token.", LATENCY),
            decode: histogram("request_decode_time_seconds", "From the first token to the end.", LATENCY),
            prompt_tokens: histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS),
            generation_tokens: histogram("request_generation_tokens", "Tokens generated for a sequence.", TOKENS),
            params_n: histogram("request_params_n", "Choices asked for.", CHOICES),
            params_max_tokens: histogram("request_params_max_tokens", "Completion limit.", TOKENS),
            gauges,
            counters: Mutex::new(counters),
            registry,
            model: model.to_owned(),
        }
    }

    /// Counts an accepted request.
    pub fn accepted(&self, prompt_tokens: usize, n: u32, max_tokens: u32) {
        self.prompt_tokens.observe(prompt_tokens as f64);
        self.params_n.observe(f64::from(n));
        self.params_max_tokens.observe(f64::from(max_tokens));
    }

    /// In Prometheus' text format.
    pub fn encode(&self, stats: &EngineStats) -> Vec<u8> {
        for (gauge, read) in &self.gauges {
            gauge.set(read(stats));
        }
        // Locked, so that two scrapes at once do not both add the same difference.
        let counters = self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (counter, read) in counters.iter() {
            counter.inc_by(read(stats).saturating_sub(counter.get()));
        }
        let mut out = text(&self.registry);
        exposition::steps(&mut out, &self.model, stats);
        out
    }
}

/// Everything there is, in Prometheus' text format.
pub fn everything(app: &App) -> Vec<u8> {
    let mut out = app.metrics.encode();
    exposition::process(&mut out, app.connections.count());
    if let Some(auth) = &app.auth {
        exposition::keys(&mut out, &auth.tenants());
    }
    if let Some(model) = app.model() {
        out.extend(model.metrics().encode(model.engine.stats()));
        exposition::cache_config(&mut out, &model.names[0], model.engine.config());
    }
    out
}

/// When things happened to a sequence, on whose account.
#[derive(Debug)]
pub struct Timing {
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    tokens: usize,
    tenant: Option<Arc<Tenant>>,
    /// While it waits.
    queued: Option<Queued>,
}

impl Timing {
    /// A sequence of the caller, whose request arrived then.
    pub fn new(arrived: Instant) -> Self {
        let tenant = Caller::current().tenant().cloned();
        let queued = tenant.as_ref().map(Tenant::wait);
        Self { arrived, scheduled: None, first_token: None, last_token: None, tokens: 0, tenant, queued }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// When the request came.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// When the engine took it up.
    pub fn scheduled_at(&self) -> Option<Instant> {
        self.scheduled
    }

    /// When its first token came.
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// When its last token so far came.
    pub fn last_token(&self) -> Option<Instant> {
        self.last_token
    }

    /// Whether the engine has taken it up.
    pub fn is_scheduled(&self) -> bool {
        self.scheduled.is_some()
    }

    /// Its first step.
    pub fn scheduled(&mut self, metrics: &EngineMetrics) {
        let now = Instant::now();
        metrics.queue.observe((now - self.arrived).as_secs_f64());
        self.scheduled = Some(now);
        self.queued = None;
    }

    /// A token.
    pub fn token(&mut self, metrics: &EngineMetrics) {
        let now = Instant::now();
        match self.last_token {
            None => metrics.ttft.observe((now - self.arrived).as_secs_f64()),
            Some(last) => metrics.inter_token.observe((now - last).as_secs_f64()),
        }
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.tokens += 1;
        if let Some(tenant) = &self.tenant {
            tenant.generated();
        }
    }

    /// The end, with a reason of the API.
    pub fn finished(&self, metrics: &EngineMetrics, reason: &str) {
        let now = Instant::now();
        let seconds = |d: Duration| d.as_secs_f64();
        metrics.success.with_label_values(&[reason]).inc();
        metrics.outcomes.with_label_values(&["completed", reason]).inc();
        metrics.e2e.observe(seconds(now - self.arrived));
        metrics.generation_tokens.observe(self.tokens as f64);
        let (Some(scheduled), Some(first)) = (self.scheduled, self.first_token) else { return };
        metrics.inference.observe(seconds(now - scheduled));
        metrics.prefill.observe(seconds(first - scheduled));
        metrics.decode.observe(seconds(now - first));
        if let (Some(last), 2..) = (self.last_token, self.tokens) {
            metrics.per_output_token.observe(seconds(last - first) / (self.tokens - 1) as f64);
        }
    }

    /// It ended in an error with this code.
    pub fn failed(&self, metrics: &EngineMetrics, code: &str) {
        metrics.outcomes.with_label_values(&["failed", code]).inc();
    }

    /// The client went away, or its time was up.
    pub fn cancelled(&self, metrics: &EngineMetrics) {
        let stage = match (self.scheduled, self.first_token) {
            (None, _) => "queued",
            (Some(_), None) => "prefill",
            (Some(_), Some(_)) => "decode",
        };
        metrics.cancelled.with_label_values(&[stage]).inc();
        metrics.success.with_label_values(&["abort"]).inc();
        metrics.outcomes.with_label_values(&["cancelled", stage]).inc();
    }
}
