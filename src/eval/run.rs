//! What the commands do: read, ask, count, write, say.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::agreement::{FILE as VERDICTS, read as read_judge, table};
use super::answers::{FILE as ANSWERS, System, read_all};
use super::ask::{Asker, Patience};
use super::flags::{Agreement, Command, Generate, Options, Pairwise, Place, Scored, Server};
use super::generate::{Generated, generate};
use super::judge::Scale;
use super::local::{Local, identity, this_program};
use super::pairwise::{Comparison, Summary, by_pair, compare, ratings, summarise};
use super::score::{self, Scoring};
use super::store::{Store, replace, write_rows};
use super::{EvalError, ablate, human, prompts, report, select};
use crate::chat::Client;

/// Does what the flags say.
///
/// # Errors
/// One sentence; what was asked and answered until then is kept.
pub fn run(options: &Options) -> Result<(), EvalError> {
    match &options.command {
        Command::Generate(flags) => run_generate(flags),
        Command::Pairwise(flags) => run_pairwise(flags),
        Command::Agreement(flags) => run_agreement(flags),
        Command::Select(flags) => select::run(flags),
        Command::Human(flags) => human::run(flags),
        Command::Ablate(flags) => ablate::run(flags),
        command => match command.scored() {
            Some((flags, scale, every_turn)) => run_scored(flags, scale, every_turn),
            None => Ok(()),
        },
    }
}

/// Says a line on standard output, whoever still listens.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A server that can be asked, ours or another's.
pub(super) struct Backend {
    client: Client,
    who: String,
    /// The model's name there.
    pub(super) model: String,
    patience: Patience,
    /// Served as long as this lives.
    _local: Option<Local>,
}

impl Server {
    /// Finds the server, or starts one whose log goes into `dir`.
    pub(super) fn open(&self, dir: &Path) -> Result<Backend, EvalError> {
        let patience = Patience { retries: self.retries, backoff: Duration::from_secs_f64(self.backoff) };
        if let Some(model) = &self.local {
            return serve(model, dir, patience);
        }
        let client = Client::new(&self.url, self.api_key.as_deref())?;
        let model = match &self.model {
            Some(name) => name.clone(),
            None => client.first_model()?,
        };
        Ok(Backend { who: client.base().to_owned(), client, model, patience, _local: None })
    }
}

/// Serves a model of this machine.
pub(super) fn serve(model: &str, dir: &Path, patience: Patience) -> Result<Backend, EvalError> {
    let local = Local::start(&this_program()?, model, &dir.join("server.log"))?;
    let (client, name) = (local.client.clone(), local.model.clone());
    Ok(Backend { client, who: identity(model), model: name, patience, _local: Some(local) })
}

impl Backend {
    /// Asks it, and keeps what it says.
    pub(super) fn asker<'a>(&self, store: &'a Store) -> Asker<'a> {
        Asker {
            client: self.client.clone(),
            who: self.who.clone(),
            model: self.model.clone(),
            patience: self.patience,
            store,
            sleep: std::thread::sleep,
        }
    }
}

impl Place {
    /// Makes the directory, and opens what was said so far.
    pub(super) fn open(&self) -> Result<Store, EvalError> {
        fs::create_dir_all(&self.out).map_err(EvalError::at(&self.out))?;
        Store::open(&self.cache.clone().unwrap_or_else(|| self.out.join("calls.jsonl")))
    }

    /// A file of the study.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Verdicts, numbers and report.
    pub(super) fn write<V: Serialize, S: Serialize>(
        &self,
        verdicts: &[V],
        summary: &S,
        report: &str,
    ) -> Result<(), EvalError> {
        write_rows(&self.file(VERDICTS), verdicts)?;
        let path = self.file("summary.json");
        let text = serde_json::to_string_pretty(summary).map_err(EvalError::at(&path))?;
        replace(&path, (text + "\n").as_bytes())?;
        let path = self.file("report.html");
        replace(&path, report.as_bytes())?;
        say(&format!("report: {}", path.display()));
        Ok(())
    }
}

/// Reads prompts, at most so many.
pub(super) fn read_prompts(path: &Path, limit: Option<u32>) -> Result<Vec<prompts::Prompt>, EvalError> {
    let mut all = prompts::read(path)?;
    all.truncate(limit.map_or(usize::MAX, |n| n as usize));
    Ok(all)
}

/// Writes what was generated, and tells of what was refused.
pub(super) fn keep(generated: &Generated, path: &Path) -> Result<(), EvalError> {
    write_rows(path, &generated.answers)?;
    for (id, words) in &generated.refused {
        eprintln!("lima: prompt {id} has no answer: {words}");
    }
    Ok(())
}

fn run_generate(flags: &Generate) -> Result<(), EvalError> {
    let prompts = read_prompts(&flags.prompts, flags.limit)?;
    let store = flags.place.open()?;
    let backend = flags.server.open(&flags.place.out)?;
    let generated = generate(&backend.asker(&store), &prompts, &flags.decoding, flags.server.concurrency.into())?;
    let path = flags.place.file(ANSWERS);
    keep(&generated, &path)?;
    let answers = &generated.answers;
    let cut = answers.iter().flat_map(|a| &a.finish_reasons).filter(|r| r.as_deref() == Some("length")).count();
    let mean = answers.iter().map(|a| a.length()).sum::<usize>() / answers.len().max(1);
    say(&format!(
        "{} answers of {} to {} prompts in {}: {mean} characters on average, {cut} cut off at --max-tokens, {} refused",
        answers.len(),
        backend.model,
        prompts.len(),
        path.display(),
        generated.refused.len()
    ));
    Ok(())
}

fn run_pairwise(flags: &Pairwise) -> Result<(), EvalError> {
    let systems = read_all(&flags.systems)?;
    let system = flags.system.as_ref().map(|path| fs::read_to_string(path).map_err(EvalError::at(path))).transpose()?;
    let store = flags.place.open()?;
    let backend = flags.server.open(&flags.place.out)?;
    let how = Comparison {
        style: flags.style,
        system,
        orders: flags.orders,
        all_pairs: flags.all_pairs,
        params: flags.judging.params(flags.style.choices()),
        seed: flags.seed,
        at_once: flags.server.concurrency.into(),
    };
    let verdicts = compare(&backend.asker(&store), &systems, &how)?;
    let rounds = flags.statistics.bootstrap as usize;
    let summaries: Vec<Summary> =
        by_pair(&verdicts).iter().filter_map(|pair| summarise(pair, rounds, flags.seed)).collect();
    let ratings = if systems.len() > 2 { ratings(&verdicts, rounds, flags.seed) } else { None };
    for s in &summaries {
        let c = s.counts;
        let rates = s.rates.map_or_else(
            || "no verdict could be read".to_owned(),
            |r| {
                format!(
                    "win or tie {}, adjusted {} (95 %: {})",
                    report::percent(r.win_or_tie),
                    report::percent(r.adjusted),
                    report::percents(s.adjusted_interval)
                )
            },
        );
        say(&format!(
            "{} vs {}: {} wins, {} ties, {} losses, {} unread; {rates}",
            s.a, s.b, c.win, c.tie, c.lose, c.failed
        ));
        if let Some((same, of)) = s.consistent {
            say(&format!("  {same} of {of} verdicts are the same in both orders"));
        }
    }
    for rating in ratings.iter().flatten() {
        say(&format!("{:>7.0}  {} ({})", rating.rating, rating.system, report::numbers(rating.interval, 0)));
    }
    if systems.len() > 2 && ratings.is_none() {
        say("no ratings: some system never loses a point to the others, or never meets them");
    }
    let unpaired = unpaired(&systems);
    let mut about = vec![format!(
        "Judged by {} with the prompt of style '{}', {}.",
        backend.model,
        serde_json::to_value(flags.style).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default(),
        match how.orders {
            super::pairwise::Orders::Both => "in both orders; verdicts that disagree are a tie",
            super::pairwise::Orders::One => "in one order, drawn for each prompt",
        }
    )];
    if unpaired > 0 {
        let left = format!("{unpaired} answers have no counterpart and were left out.");
        say(&left);
        about.push(left);
    }
    let summary = serde_json::json!({ "pairs": summaries, "ratings": ratings, "left_out": unpaired });
    let html = report::pairwise(&summaries, ratings.as_deref(), &verdicts, &systems, &about);
    flags.place.write(&verdicts, &summary, &html)
}

/// First answers whose prompt not all systems have.
fn unpaired(systems: &[System]) -> usize {
    let all: Vec<_> = systems.iter().map(System::by_id).collect();
    all.iter().flat_map(|own| own.keys()).filter(|id| !all.iter().all(|other| other.contains_key(**id))).count()
}

fn run_scored(flags: &Scored, scale: Scale, every_turn: bool) -> Result<(), EvalError> {
    let systems = read_all(&flags.systems)?;
    let store = flags.place.open()?;
    let backend = flags.server.open(&flags.place.out)?;
    let how = Scoring {
        scale,
        every_turn,
        judgments: flags.judgments,
        params: flags.judging.params(scale.choices()),
        at_once: flags.server.concurrency.into(),
    };
    let scores = score::score(&backend.asker(&store), &systems, &how)?;
    let summaries = score::summarise(&scores, &systems, flags.statistics.bootstrap as usize, flags.seed);
    for s in &summaries {
        say(&sentence(s));
    }
    let about = [format!("Judged by {}.", backend.model)];
    let html = report::scores(&summaries, &scores, &systems, &about);
    flags.place.write(&scores, &summaries, &html)
}

/// A system's scores in a line.
pub(super) fn sentence(s: &score::Summary) -> String {
    let name = s.category.as_ref().map_or_else(|| s.system.clone(), |c| format!("{} ({c})", s.system));
    let what = match s.mean {
        Some(mean) => format!("mean {mean:.3} (95 %: {})", report::numbers(s.interval, 3)),
        None => {
            let share = |share: &score::Share| Some(format!("{} {}", share.grade, report::percent(share.part?)));
            s.shares.iter().filter_map(share).collect::<Vec<_>>().join(", ")
        }
    };
    let dialogues =
        s.fail_within_three.map_or_else(String::new, |(n, of)| format!("; {n} of {of} fail within three turns"));
    format!("{name}: {what}{dialogues}; {} graded, {} unread", s.graded, s.unread)
}

fn run_agreement(flags: &Agreement) -> Result<(), EvalError> {
    let mut judges = Vec::new();
    for named in &flags.judges {
        judges.extend(read_judge(named)?);
    }
    if judges.len() < 2 {
        return Err(EvalError::Usage("agreement needs two judges; the files have one".into()));
    }
    let table = table(&judges, flags.statistics.bootstrap as usize, flags.seed);
    for a in &table {
        let accuracy = a.accuracy.map_or("–".into(), report::percent);
        say(&format!(
            "{} and {}: {accuracy} (95 %: {}) of {} that both judged; {} the same, {} opposed",
            a.one,
            a.other,
            report::percents(a.interval),
            a.shared,
            a.same,
            a.opposed
        ));
    }
    match &flags.report {
        Some(path) => replace(path, report::agreement(&table).as_bytes()),
        None => Ok(()),
    }
}
