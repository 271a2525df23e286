//! What quality, diversity and quantity of data do: the same training on several subsets, and scores of what comes of it,
//! as in the paper's section 5.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::EvalError;
use super::answers::System;
use super::ask::Patience;
use super::flags::{Judging, Place, Server, Statistics};
use super::generate::{Decoding, generate};
use super::judge::Scale;
use super::local::this_program;
use super::report;
use super::run::{keep, read_prompts, say, sentence, serve};
use super::score::{Scoring, Summary, score, summarise};
use super::select::saved;
use super::stats::Resampler;
use super::store::{read_rows, replace};

/// Answers to each prompt in the paper's ablations.
const SAMPLES: u32 = 5;

/// `ablate`.
#[derive(Args, Clone, Debug)]
pub struct Ablate {
    /// The model to train
    #[arg(long, value_name = "MODEL")]
    pub base: String,
    /// Data to compare by quality or diversity: NAME=FILE, or NAME=FILE:SOURCE for the rows of one `source`. As many rows
    /// of each are drawn
    #[arg(long = "source", value_name = "NAME=FILE[:SOURCE]")]
    pub sources: Vec<Source>,
    /// Rows of each of them [default: those of the smallest]
    #[arg(long, value_name = "N", requires = "sources", value_parser = clap::value_parser!(u32).range(1..))]
    pub size: Option<u32>,
    /// Data to compare by quantity: FILE, or FILE:SOURCE
    #[arg(long, value_name = "FILE[:SOURCE]", requires = "sizes")]
    pub quantity: Option<String>,
    /// Numbers of rows; each subset is part of the next
    #[arg(long, value_name = "N,N,…", requires = "quantity", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub sizes: Vec<u32>,
    /// Test prompts
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Only the first N of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Which epoch answers [default: the last]
    #[arg(long, value_name = "N")]
    pub epoch: Option<u32>,
    /// The program that trains [default: `train` beside this one]
    #[arg(long, value_name = "FILE")]
    pub train: Option<PathBuf>,
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
    /// Flags of `train`, after `--`: the same for all
    #[arg(last = true)]
    pub train_flags: Vec<String>,
}

/// `NAME=FILE[:SOURCE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    rows: String,
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let safe = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.+".contains(c));
        match text.split_once('=') {
            Some((name, rows)) if safe(name) && !name.starts_with('.') && !rows.is_empty() => {
                Ok(Self { name: name.into(), rows: rows.into() })
            }
            _ => {
                Err("NAME=FILE or NAME=FILE:SOURCE is needed, with letters, digits, '-', '_', '.', '+' in the name"
                    .into())
            }
        }
    }
}

/// The lines of a file, or those of one source, as they are.
fn rows(of: &str) -> Result<Vec<String>, EvalError> {
    let (path, source) = match of.rsplit_once(':') {
        Some((path, source)) if !Path::new(of).exists() => (path, Some(source)),
        _ => (of, None),
    };
    let path = Path::new(path);
    let wanted = |row: &serde_json::Map<String, serde_json::Value>| {
        source.is_none_or(|source| row.get("source").and_then(|s| s.as_str()) == Some(source))
    };
    let rows: Vec<String> = read_rows(path)?
        .into_iter()
        .filter(|(_, row)| wanted(row))
        .map(|(_, row)| serde_json::Value::Object(row).to_string())
        .collect();
    match rows.is_empty() {
        true => Err(EvalError::File { path: path.into(), reason: "it has no such rows".into() }),
        false => Ok(rows),
    }
}

/// The first `size` of the rows in an order drawn by `seed`: a smaller subset is part of a larger one.
fn subset(rows: &[String], size: usize, seed: u64, of: &str) -> Result<Vec<String>, EvalError> {
    if rows.len() < size {
        return Err(EvalError::Usage(format!("'{of}' has {} rows, fewer than {size}", rows.len())));
    }
    let order = Resampler::new(seed).permutation(rows.len());
    Ok(order[..size].iter().map(|i| rows[*i].clone()).collect())
}

/// One model to be.
struct Variant {
    name: String,
    size: usize,
    rows: Vec<String>,
}

fn variants(flags: &Ablate) -> Result<(Vec<Variant>, Vec<Variant>), EvalError> {
    let seed = flags.decoding.seed;
    let mut named = Vec::new();
    for source in &flags.sources {
        named.push((source.name.clone(), source.rows.clone(), rows(&source.rows)?));
    }
    let smallest = named.iter().map(|(_, _, rows)| rows.len()).min().unwrap_or(0);
    let size = flags.size.map_or(smallest, |n| n as usize);
    let named = named
        .into_iter()
        .map(|(name, of, rows)| Ok(Variant { name, size, rows: subset(&rows, size, seed, &of)? }))
        .collect::<Result<Vec<_>, EvalError>>()?;
    let mut sized = Vec::new();
    if let Some(of) = &flags.quantity {
        let rows = rows(of)?;
        let mut sizes: Vec<usize> = flags.sizes.iter().map(|n| *n as usize).collect();
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            sized.push(Variant { name: format!("rows-{size}"), size, rows: subset(&rows, size, seed, of)? });
        }
    }
    let mut names: Vec<&str> = named.iter().chain(&sized).map(|v| v.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(EvalError::Usage(format!("two subsets are called '{}'", pair[0]))),
        None if names.is_empty() => {
            Err(EvalError::Usage("there is nothing to compare: give --source or --quantity".into()))
        }
        None => Ok((named, sized)),
    }
}

/// Trains on a subset, or goes on with it; the directory of the epoch that answers.
fn train(flags: &Ablate, variant: &Variant) -> Result<PathBuf, EvalError> {
    let dir = flags.place.file(&variant.name);
    fs::create_dir_all(&dir).map_err(EvalError::at(&dir))?;
    let data = dir.join("train.jsonl");
    let text: String = variant.rows.iter().map(|row| format!("{row}\n")).collect();
    // Unchanged where it is the same, so that a run goes on.
    if fs::read_to_string(&data).ok().as_deref() != Some(text.as_str()) {
        replace(&data, text.as_bytes())?;
    }
    let program = match &flags.train {
        Some(path) => path.clone(),
        None => this_program()?.with_file_name("train"),
    };
    let out = dir.join("run");
    let mut command = Command::new(&program);
    command.args(["--base", &flags.base, "--no-samples", "--data"]).arg(&data).arg("--out").arg(&out);
    let status = command.args(&flags.train_flags).status().map_err(EvalError::at(&program))?;
    if !status.success() {
        return Err(EvalError::Usage(format!("training on '{}' ended with {status}", variant.name)));
    }
    let epochs = saved(&out)?;
    let found = match flags.epoch {
        Some(epoch) => epochs.get(&epoch).cloned(),
        None => epochs.into_values().next_back(),
    };
    found.ok_or_else(|| EvalError::File { path: out, reason: "the epoch is not saved there".into() })
}

pub(super) fn run(flags: &Ablate) -> Result<(), EvalError> {
    let prompts = read_prompts(&flags.prompts, flags.limit)?;
    let (named, sized) = variants(flags)?;
    let store = flags.place.open()?;
    let at_once = flags.server.concurrency.into();
    let patience = Patience { retries: flags.server.retries, backoff: Duration::from_secs_f64(flags.server.backoff) };
    let decoding = Decoding { samples: flags.decoding.samples.or(Some(SAMPLES)), ..flags.decoding.clone() };
    let mut systems = Vec::new();
    for variant in named.iter().chain(&sized) {
        say(&format!("{}: {} rows", variant.name, variant.rows.len()));
        let path = train(flags, variant)?;
        let backend = serve(&path.to_string_lossy(), &flags.place.out, patience)?;
        let generated = generate(&backend.asker(&store), &prompts, &decoding, at_once)?;
        keep(&generated, &flags.place.file(&variant.name).join("answers.jsonl"))?;
        systems.push(System { name: variant.name.clone(), answers: generated.answers });
    }
    let judge = flags.server.open(&flags.place.out)?;
    let how = Scoring {
        scale: Scale::Likert,
        every_turn: false,
        judgments: 1,
        params: flags.judging.params(Scale::Likert.choices()),
        at_once,
    };
    let scores = score(&judge.asker(&store), &systems, &how)?;
    let rounds = flags.statistics.bootstrap as usize;
    let of = |variant: &Variant| -> Option<Summary> {
        let system = systems.iter().find(|system| system.name == variant.name)?;
        let own = summarise(&scores, std::slice::from_ref(system), rounds, decoding.seed).into_iter().next()?;
        say(&sentence(&own));
        Some(own)
    };
    let by_name: Vec<Summary> = named.iter().filter_map(of).collect();
    let by_size: Vec<(usize, Summary)> = sized.iter().filter_map(|v| Some((v.size, of(v)?))).collect();
    let about = [format!(
        "{} test prompts, {} answers to each, judged by {}. Every model was trained from {} in the same way.",
        prompts.len(),
        decoding.samples.unwrap_or(1),
        judge.model,
        flags.base
    )];
    let html = report::ablation(&by_name, &by_size, &about);
    flags.place.write(&scores, &json!({ "sources": by_name, "quantity": by_size }), &html)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn subsets_are_nested_and_of_a_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.jsonl");
        let row = |i: usize| json!({"conversations": [format!("q{i}"), "a"], "source": if i.is_multiple_of(2) { "x" } else { "y" }});
        fs::write(&path, (0..20).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
        let name = path.to_str().unwrap();
        assert_eq!(rows(name).unwrap().len(), 20);
        let even = rows(&format!("{name}:x")).unwrap();
        assert_eq!((even.len(), even[1].as_str()), (10, row(2).to_string().as_str()));
        assert!(rows(&format!("{name}:z")).unwrap_err().to_string().ends_with("it has no such rows"));
        let (small, large) = (subset(&even, 3, 7, "e").unwrap(), subset(&even, 8, 7, "e").unwrap());
        assert_eq!(large[..3], small);
        assert_ne!(small, subset(&even, 3, 8, "e").unwrap());
        assert!(subset(&even, 11, 7, "e").unwrap_err().to_string().contains("10 rows, fewer than 11"));
    }

    #[test]
    fn names_of_sources() {
        let source = |text: &str| text.parse::<Source>();
        assert_eq!(source("a=b.jsonl:c").unwrap(), Source { name: "a".into(), rows: "b.jsonl:c".into() });
        for text in ["a", "=b", "a=", "../a=b", "a/b=c", ".=b"] {
            assert!(source(text).is_err(), "{text}");
        }
    }
}
