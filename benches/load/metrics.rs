//! From what was seen of requests to the numbers that are reported.

use std::collections::BTreeMap;

use serde::Serialize;

use super::client::{Exchange, Outcome};
use super::stats::Distribution;

/// One request. Times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    pub conversation: u64,
    /// From 0.
    pub turn: usize,
    /// Since the point began.
    pub start: f64,
    /// How long after its time an open loop sent it.
    pub lag: Option<f64>,
    /// From sending to the first chunk with text.
    pub ttft: Option<f64>,
    /// From sending to the end of the stream.
    pub e2e: f64,
    /// From the first chunk with text to the last, for each token after the first.
    pub tpot: Option<f64>,
    /// Between successive chunks with text.
    #[serde(skip)]
    pub itl: Vec<f64>,
    pub prompt_tokens: Option<u64>,
    pub cached_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Record {
    /// `wanted` is the answer's forced length: any other is a failure.
    pub fn new(seen: &Exchange, since: std::time::Instant, wanted: Option<u32>) -> Self {
        let ms = |from: std::time::Instant, to: std::time::Instant| (to - from).as_secs_f64() * 1e3;
        let mut outcome = seen.outcome.clone();
        if outcome == Outcome::Ok {
            let why = seen.finish.as_deref().unwrap_or("none");
            match (seen.usage, wanted) {
                (None, _) => outcome = Outcome::failed("no usage", "the server did not count its tokens"),
                (Some(usage), Some(wanted)) if usage.completion_tokens != u64::from(wanted) => {
                    let detail = format!("{} of {wanted} tokens, finish_reason {why}", usage.completion_tokens);
                    outcome = Outcome::failed("wrong length", detail);
                }
                _ => {}
            }
        }
        let output = seen.usage.map(|u| u.completion_tokens);
        let (first, last) = (seen.chunks.first(), seen.chunks.last());
        let tpot = match (first, last, output) {
            (Some(&first), Some(&last), Some(n @ 2..)) if seen.chunks.len() > 1 => {
                Some(ms(first, last) / (n - 1) as f64)
            }
            _ => None,
        };
        Self {
            conversation: 0,
            turn: 0,
            start: ms(since, seen.sent),
            lag: None,
            ttft: first.map(|&t| ms(seen.sent, t)),
            e2e: ms(seen.sent, seen.end),
            tpot,
            itl: seen.chunks.windows(2).map(|w| ms(w[0], w[1])).collect(),
            prompt_tokens: seen.usage.map(|u| u.prompt_tokens),
            cached_tokens: seen.usage.and_then(|u| u.cached()),
            output_tokens: output,
            outcome,
        }
    }

    fn ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

/// Objectives a request must meet to be good, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Slo {
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub e2e: Option<f64>,
}

impl Slo {
    /// A value that was not seen meets no bound, but a time per output token that cannot exist (one token) does.
    pub fn met(&self, record: &Record) -> bool {
        let within = |bound: Option<f64>, value: Option<f64>| bound.is_none_or(|b| value.is_some_and(|v| v <= b));
        let one_token = record.output_tokens == Some(1);
        record.ok()
            && within(self.ttft, record.ttft)
            && (one_token || within(self.tpot, record.tpot))
            && within(self.e2e, Some(record.e2e))
    }
}

impl std::str::FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let bound = part.split_once(':').and_then(|(name, ms)| Some((name, ms.parse::<f64>().ok()?)));
            match bound.filter(|(_, ms)| *ms > 0.0) {
                Some(("ttft", ms)) => slo.ttft = Some(ms),
                Some(("tpot", ms)) => slo.tpot = Some(ms),
                Some(("e2e", ms)) => slo.e2e = Some(ms),
                _ => return Err(format!("'{part}' is not an objective: ttft:MS, tpot:MS or e2e:MS")),
            }
        }
        Ok(slo)
    }
}

/// What one turn of the conversations did.
#[derive(Clone, Debug, Serialize)]
pub struct TurnSummary {
    /// From 1.
    pub turn: usize,
    pub prompt_tokens: f64,
    /// `None` where the server does not tell.
    pub cached_tokens: Option<f64>,
    pub ttft: Option<Distribution>,
    pub tpot: Option<Distribution>,
    pub e2e: Option<Distribution>,
}

/// A server under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub requests: usize,
    pub succeeded: usize,
    pub disconnected: usize,
    /// By kind.
    pub failed: BTreeMap<String, usize>,
    /// An example of each kind.
    pub examples: BTreeMap<String, String>,
    /// From the first request's start to the last one's end, in seconds, summed over rounds.
    pub seconds: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: Option<u64>,
    pub output_tokens: u64,
    pub requests_per_second: f64,
    pub output_tokens_per_second: f64,
    pub total_tokens_per_second: f64,
    /// Requests a second that met the objectives, if there are any.
    pub goodput: Option<f64>,
    pub ttft: Option<Distribution>,
    pub tpot: Option<Distribution>,
    pub itl: Option<Distribution>,
    pub e2e: Option<Distribution>,
    pub lag: Option<Distribution>,
    pub turns: Vec<TurnSummary>,
}

fn distribution<'a>(records: &[&'a Record], value: impl Fn(&'a Record) -> Option<f64>) -> Option<Distribution> {
    Distribution::of(records.iter().filter_map(|r| value(r)).collect())
}

/// The time between the first start and the last end, in seconds.
fn span(records: &[Record]) -> f64 {
    let first = records.iter().map(|r| r.start).fold(f64::INFINITY, f64::min);
    let last = records.iter().map(|r| r.start + r.e2e).fold(0.0, f64::max);
    if records.is_empty() { 0.0 } else { (last - first) / 1e3 }
}

impl Summary {
    /// Over the requests of all rounds of a load. Latencies and tokens are those of requests that succeeded.
    pub fn of(rounds: &[&[Record]], slo: Option<Slo>) -> Self {
        let all: Vec<&Record> = rounds.iter().flat_map(|r| r.iter()).collect();
        let good: Vec<&Record> = all.iter().copied().filter(|r| r.ok()).collect();
        let (mut failed, mut examples) = (BTreeMap::new(), BTreeMap::new());
        for record in &all {
            if let Outcome::Failed { kind, detail } = &record.outcome {
                *failed.entry(kind.clone()).or_insert(0) += 1;
                examples.entry(kind.clone()).or_insert_with(|| detail.clone());
            }
        }
        let seconds: f64 = rounds.iter().map(|r| span(r)).sum();
        let rate = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let sum = |of: &[&Record], value: fn(&Record) -> Option<u64>| of.iter().filter_map(|r| value(r)).sum::<u64>();
        let cached =
            |of: &[&Record]| of.iter().any(|r| r.cached_tokens.is_some()).then(|| sum(of, |r| r.cached_tokens));
        let (prompt, output) = (sum(&good, |r| r.prompt_tokens), sum(&good, |r| r.output_tokens));
        let last_turn = good.iter().map(|r| r.turn).max();
        let turns = (0..=last_turn.unwrap_or(0)).filter_map(|turn| {
            let of: Vec<&Record> = good.iter().copied().filter(|r| r.turn == turn).collect();
            (!of.is_empty()).then(|| TurnSummary {
                turn: turn + 1,
                prompt_tokens: sum(&of, |r| r.prompt_tokens) as f64 / of.len() as f64,
                cached_tokens: cached(&of).map(|n| n as f64 / of.len() as f64),
                ttft: distribution(&of, |r| r.ttft),
                tpot: distribution(&of, |r| r.tpot),
                e2e: distribution(&of, |r| Some(r.e2e)),
            })
        });
        Self {
            requests: all.len(),
            succeeded: good.len(),
            disconnected: all.iter().filter(|r| r.outcome == Outcome::Disconnected).count(),
            failed,
            examples,
            seconds,
            prompt_tokens: prompt,
            cached_tokens: cached(&good),
            output_tokens: output,
            requests_per_second: rate(good.len() as f64),
            output_tokens_per_second: rate(output as f64),
            total_tokens_per_second: rate((prompt + output) as f64),
            goodput: slo.map(|slo| rate(all.iter().filter(|r| slo.met(r)).count() as f64)),
            ttft: distribution(&good, |r| r.ttft),
            tpot: distribution(&good, |r| r.tpot),
            itl: Distribution::of(good.iter().flat_map(|r| r.itl.iter().copied()).collect()),
            e2e: distribution(&good, |r| Some(r.e2e)),
            lag: distribution(&all, |r| r.lag),
            turns: turns.collect(),
        }
    }

    /// Requests that failed.
    pub fn failures(&self) -> usize {
        self.failed.values().sum()
    }
}
