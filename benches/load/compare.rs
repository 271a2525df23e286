//! Ratios between two servers, round by round.

use serde::Serialize;

use super::metrics::{Record, Slo, Summary};
use super::stats::median;

/// One number of both servers.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    pub load: String,
    pub metric: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Medians over rounds.
    pub first: f64,
    pub second: f64,
    /// How many times better the first server is: the median, smallest and largest of the rounds' ratios. Above 1,
    /// the first one is better, be it more tokens or less time.
    pub better: f64,
    pub low: f64,
    pub high: f64,
}

/// A number of a summary.
type Value = Box<dyn Fn(&Summary) -> Option<f64>>;

fn metrics(turns: usize, goodput: bool) -> Vec<(String, bool, Value)> {
    let mut all: Vec<(String, bool, Value)> = vec![
        ("output tok/s".into(), true, Box::new(|s| Some(s.output_tokens_per_second))),
        ("total tok/s".into(), true, Box::new(|s| Some(s.total_tokens_per_second))),
        ("requests/s".into(), true, Box::new(|s| Some(s.requests_per_second))),
    ];
    if goodput {
        all.push(("goodput, requests/s".into(), true, Box::new(|s| s.goodput)));
    }
    all.push(("TTFT p50, ms".into(), false, Box::new(|s| Some(s.ttft.as_ref()?.p50))));
    all.push(("TTFT p99, ms".into(), false, Box::new(|s| Some(s.ttft.as_ref()?.p99))));
    if turns > 1 {
        for i in 0..turns {
            let p50: Value = Box::new(move |s| Some(s.turns.iter().find(|t| t.turn == i + 1)?.ttft.as_ref()?.p50));
            all.push((format!("TTFT p50 of turn {}, ms", i + 1), false, p50));
        }
    }
    all.push(("TPOT p50, ms".into(), false, Box::new(|s| Some(s.tpot.as_ref()?.p50))));
    all.push(("TPOT p99, ms".into(), false, Box::new(|s| Some(s.tpot.as_ref()?.p99))));
    all.push(("ITL p99, ms".into(), false, Box::new(|s| Some(s.itl.as_ref()?.p99))));
    all.push(("E2E p50, ms".into(), false, Box::new(|s| Some(s.e2e.as_ref()?.p50))));
    all.push(("E2E p99, ms".into(), false, Box::new(|s| Some(s.e2e.as_ref()?.p99))));
    all
}

/// Compares the rounds of two servers at one load. A round in which either has no value is left out.
pub fn ratios(load: &str, first: &[&[Record]], second: &[&[Record]], slo: Option<Slo>) -> Vec<Ratio> {
    let summaries = |rounds: &[&[Record]]| -> Vec<Summary> { rounds.iter().map(|&r| Summary::of(&[r], slo)).collect() };
    let (first, second) = (summaries(first), summaries(second));
    let turns = first.iter().chain(&second).map(|s| s.turns.len()).max().unwrap_or(0);
    let ratio = |(metric, higher_is_better, value): (String, bool, Value)| {
        let pairs = first.iter().zip(&second).filter_map(|(a, b)| Some((value(a)?, value(b)?)));
        let pairs: Vec<(f64, f64)> = pairs.filter(|&(a, b)| a > 0.0 && b > 0.0).collect();
        let better: Vec<f64> = pairs.iter().map(|&(a, b)| if higher_is_better { a / b } else { b / a }).collect();
        Some(Ratio {
            load: load.to_owned(),
            metric,
            higher_is_better,
            first: median(&pairs.iter().map(|p| p.0).collect::<Vec<_>>())?,
            second: median(&pairs.iter().map(|p| p.1).collect::<Vec<_>>())?,
            better: median(&better)?,
            low: better.iter().copied().fold(f64::INFINITY, f64::min),
            high: better.iter().copied().fold(0.0, f64::max),
        })
    };
    metrics(turns, slo.is_some()).into_iter().filter_map(ratio).collect()
}
