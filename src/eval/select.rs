//! Which epoch to keep: the one whose answers to dev prompts are scored best. Validation perplexity stands beside it and
//! decides nothing, as it rises while answers get better.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::EvalError;
use super::answers::System;
use super::ask::Patience;
use super::flags::{Judging, Place, Server, Statistics};
use super::generate::{Decoding, generate};
use super::judge::Scale;
use super::report;
use super::run::{keep, read_prompts, say, sentence, serve};
use super::score::{Scoring, Summary, score, summarise};
use super::store::{read_rows, replace};

/// `select`.
#[derive(Args, Clone, Debug)]
pub struct Select {
    /// The run: what `train --out` wrote
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Epochs to compare, of those that were saved
    #[arg(long, value_name = "FIRST-LAST", default_value = "5-10", value_parser = range)]
    pub epochs: (u32, u32),
    /// Dev prompts
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Only the first N of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Verdicts about each answer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub judgments: u32,
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) server: Server,
    #[command(flatten)]
    pub(super) judging: Judging,
    #[command(flatten)]
    pub(super) decoding: Decoding,
    #[command(flatten)]
    pub(super) statistics: Statistics,
}

/// An epoch's numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u32,
    /// Its directory.
    pub path: PathBuf,
    /// Scores of its answers.
    pub summary: Summary,
    /// On the run's validation data, if it has some.
    pub perplexity: Option<f64>,
}

fn range(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last => Ok((first, last)),
        _ => Err("an epoch or a range of them, such as 5-10, is needed".into()),
    }
}

/// Directories of saved epochs, ascending.
pub(super) fn saved(run: &Path) -> Result<BTreeMap<u32, PathBuf>, EvalError> {
    let entries = std::fs::read_dir(run).map_err(EvalError::at(run))?;
    let numbered = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_prefix("epoch-")?.parse().ok()?;
        Some((number, path))
    };
    Ok(entries.filter_map(|entry| numbered(entry.ok()?.path())).collect())
}

/// Validation perplexity by epoch; of several lines about one epoch the last counts.
fn perplexities(run: &Path) -> Result<BTreeMap<u32, f64>, EvalError> {
    let path = run.join("metrics.jsonl");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let of = |row: serde_json::Map<String, serde_json::Value>| {
        let is = row.get("event")?.as_str()? == "validation";
        is.then(|| Some((u32::try_from(row.get("epoch")?.as_u64()?).ok()?, row.get("perplexity")?.as_f64()?)))?
    };
    Ok(read_rows(&path)?.into_iter().filter_map(|(_, row)| of(row)).collect())
}

/// The best mean, of equal ones the earliest.
fn best(epochs: &[Epoch]) -> Option<u32> {
    let known = epochs.iter().filter_map(|e| Some((e.summary.mean?, e.epoch)));
    known.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, epoch)| epoch)
}

pub(super) fn run(flags: &Select) -> Result<(), EvalError> {
    let (first, last) = flags.epochs;
    let epochs: Vec<(u32, PathBuf)> = saved(&flags.run)?.range(first..=last).map(|(n, p)| (*n, p.clone())).collect();
    if epochs.is_empty() {
        let reason = format!("no epoch from {first} to {last} is saved there");
        return Err(EvalError::File { path: flags.run.clone(), reason });
    }
    let perplexities = perplexities(&flags.run)?;
    let prompts = read_prompts(&flags.prompts, flags.limit)?;
    let store = flags.place.open()?;
    let at_once = flags.server.concurrency.into();
    let patience = Patience { retries: flags.server.retries, backoff: Duration::from_secs_f64(flags.server.backoff) };
    let mut systems = Vec::new();
    for (epoch, path) in &epochs {
        let backend = serve(&path.to_string_lossy(), &flags.place.out, patience)?;
        let generated = generate(&backend.asker(&store), &prompts, &flags.decoding, at_once)?;
        let name = format!("epoch-{epoch:02}");
        keep(&generated, &flags.place.file(&format!("answers-{name}.jsonl")))?;
        systems.push(System { name, answers: generated.answers });
    }
    let judge = flags.server.open(&flags.place.out)?;
    let how = Scoring {
        scale: Scale::Likert,
        every_turn: false,
        judgments: flags.judgments,
        params: flags.judging.params(Scale::Likert.choices()),
        at_once,
    };
    let scores = score(&judge.asker(&store), &systems, &how)?;
    let mut compared = Vec::new();
    for ((epoch, path), system) in epochs.into_iter().zip(&systems) {
        let own =
            summarise(&scores, std::slice::from_ref(system), flags.statistics.bootstrap as usize, flags.decoding.seed);
        if let Some(summary) = own.into_iter().next() {
            let perplexity = perplexities.get(&epoch).copied();
            let beside = perplexity.map_or_else(String::new, |p| format!("; perplexity {p:.3}"));
            say(&format!("{}{beside}", sentence(&summary)));
            compared.push(Epoch { epoch, path, summary, perplexity });
        }
    }
    let chosen = best(&compared).ok_or_else(|| EvalError::Usage("no verdict of the judge could be read".into()))?;
    say(&format!("chosen: epoch {chosen}, {}", flags.run.join(format!("epoch-{chosen:02}")).display()));
    let about = [format!(
        "Dev prompts: {}. Judged by {}. The best mean is chosen, of equal ones the earliest.",
        prompts.len(),
        judge.model
    )];
    let html = report::selection(&compared, chosen, &about);
    replace(&flags.place.file("selection.json"), (json!({"epoch": chosen}).to_string() + "\n").as_bytes())?;
    flags.place.write(&scores, &compared, &html)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!((range("5-10"), range("7")), (Ok((5, 10)), Ok((7, 7))));
        assert!(range("10-5").is_err() && range("0").is_err() && range("x").is_err());
    }

    #[test]
    fn what_a_run_has() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["epoch-02", "epoch-10", "state", "epoch-x"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(saved(dir.path()).unwrap().into_keys().collect::<Vec<_>>(), [2, 10]);
        assert!(perplexities(dir.path()).unwrap().is_empty());
        let lines = "{\"event\":\"step\",\"step\":1}\n{\"event\":\"validation\",\"epoch\":1,\"perplexity\":9.5}\n\
                     {\"event\":\"validation\",\"epoch\":2,\"perplexity\":null}\n\
                     {\"event\":\"validation\",\"epoch\":1,\"perplexity\":9.25}\n";
        std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        assert_eq!(perplexities(dir.path()).unwrap(), BTreeMap::from([(1, 9.25)]));
    }
}
