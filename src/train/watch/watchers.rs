//! One event to all that watch.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::flops::{ModelFlops, Peak};
use super::history::{History, Step};
use super::metrics::{Line, Metrics};
use super::progress::Progress;
use super::tfevents::{self, Events};
use super::{Options, page, replace};
use crate::train::events::{Answer, Begin, Event};
use crate::units::{count, number};

/// Between steps the report is written again no sooner than after this time.
const BETWEEN_REPORTS: Duration = Duration::from_secs(60);

/// The name of the report in a run's directory.
const REPORT: &str = "report.html";

/// Progress bar, `metrics.jsonl`, TensorBoard's events and `report.html` of a run.
pub struct Watchers {
    options: Options,
    peak: Peak,
    open: Option<Open>,
}

/// What there is once a run has begun.
struct Open {
    metrics: Metrics,
    events: Events,
    history: History,
    progress: Option<Progress>,
    flops: ModelFlops,
    report: PathBuf,
    reported: Instant,
}

impl Watchers {
    /// Makes no file yet. Measures the machine's peak if none is given, which takes some 50 ms.
    pub fn new(options: &Options) -> Self {
        let peak = options.peak_flops.map_or_else(|| Peak::measure(options.threads), Peak::given);
        Self { options: options.clone(), peak, open: None }
    }

    /// Records and shows an event. `Begin` opens the files, and cuts `metrics.jsonl` back to the step that is resumed at.
    ///
    /// # Errors
    /// A file cannot be written, or holds something else; the message names it.
    pub fn tell(&mut self, event: &Event<'_>) -> io::Result<()> {
        let time = now();
        if let Event::Begin(begin) = event {
            self.open = Some(Open::new(&self.options, begin, time)?);
        }
        let Some(open) = &mut self.open else { return Err(io::Error::other("a run begins with Event::Begin")) };
        let line = line(event, time, &self.peak, &open.flops);
        open.metrics.append(&line)?;
        for bytes in summaries(&line, time) {
            open.events.write(&bytes)?;
        }
        open.show(&line);
        let is_step = matches!(line, Line::Step { .. });
        open.history.add(line);
        if !is_step || open.reported.elapsed() >= BETWEEN_REPORTS {
            replace(&open.report, page(&open.history).as_bytes())?;
            open.reported = Instant::now();
        }
        Ok(())
    }
}

impl Open {
    fn new(options: &Options, begin: &Begin<'_>, time: f64) -> io::Result<Self> {
        let (metrics, lines) = Metrics::open(&options.out, begin.resumed_at)?;
        let first = if begin.resumed_at == 0 { 0 } else { begin.resumed_at + 1 };
        Ok(Self {
            metrics,
            events: Events::create(&options.out, time, first)?,
            history: lines.into_iter().collect(),
            progress: options.progress.then(|| Progress::new(begin.steps, begin.epochs, begin.resumed_at)),
            flops: ModelFlops::new(begin.config, begin.trained),
            report: options.out.join(REPORT),
            reported: Instant::now(),
        })
    }

    fn show(&mut self, line: &Line) {
        let Some(progress) = &mut self.progress else { return };
        match line {
            Line::Begin { step: 0, parameters, trained, steps, epochs, .. } => progress.say(&format!(
                "training {} of {} parameters: {steps} steps, {epochs} epochs",
                count(*trained),
                count(*parameters)
            )),
            Line::Begin { step, steps, .. } => progress.say(&format!("resumed after step {step} of {steps}")),
            Line::Step { report, tokens_per_second, mfu, .. } => {
                progress.step(&Step { report: *report, tokens_per_second: *tokens_per_second, mfu: *mfu });
            }
            Line::Validation { epoch, nll, perplexity, .. } => {
                progress.say(&format!("epoch {epoch}: validation loss {nll:.4}, perplexity {}", number(*perplexity)));
            }
            Line::Checkpoint { epoch, path, .. } => progress.say(&format!("epoch {epoch}: saved {path}")),
            Line::Samples { epoch, answers, .. } => {
                let ended = answers.iter().filter(|a| a.ended).count();
                let tokens: u64 = answers.iter().map(|a| u64::from(a.tokens)).sum();
                let of = answers.len();
                progress.say(&format!("epoch {epoch}: {of} sample answers, {tokens} tokens, {ended} of {of} ended"));
            }
            Line::End { reason, .. } => progress.end(reason),
        }
    }
}

/// Seconds since 1970, to the millisecond.
fn now() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_secs_f64() * 1e3).round() / 1e3
}

fn line(event: &Event<'_>, time: f64, peak: &Peak, flops: &ModelFlops) -> Line {
    match *event {
        Event::Begin(begin) => Line::Begin {
            time,
            step: begin.resumed_at,
            base: begin.base.to_owned(),
            recipe: begin.recipe.clone(),
            parameters: begin.parameters,
            trained: begin.trained,
            steps: begin.steps,
            epochs: begin.epochs,
            supervised_tokens_per_epoch: begin.supervised_tokens_per_epoch,
            peak_flops: peak.flops,
            peak_source: peak.source.clone(),
        },
        Event::Step(report) => {
            let flops = flops.of(report.tokens, report.supervised, report.pairs);
            // A clock that stood still makes no rate.
            let seconds = report.seconds.max(1e-9);
            let (tokens_per_second, mfu) = (report.tokens as f64 / seconds, flops / seconds / peak.flops);
            Line::Step { time, report: *report, tokens_per_second, flops, mfu }
        }
        Event::Validation { epoch, step, nll } => Line::Validation { time, step, epoch, nll, perplexity: nll.exp() },
        Event::Checkpoint { epoch, step, path } => {
            Line::Checkpoint { time, step, epoch, path: path.display().to_string() }
        }
        Event::Samples { epoch, step, answers } => Line::Samples { time, step, epoch, answers: answers.to_vec() },
        Event::End { step, reason } => Line::End { time, step, reason: reason.to_owned() },
    }
}

/// A line as TensorBoard's events.
fn summaries(line: &Line, time: f64) -> Vec<Vec<u8>> {
    match line {
        Line::Begin { step, recipe, .. } => vec![tfevents::text(time, *step, "recipe", &markdown_table(recipe))],
        Line::Step { report, tokens_per_second, mfu, .. } => {
            let mut values = vec![
                ("train/loss", report.loss),
                ("train/learning_rate", report.lr),
                ("train/gradient_norm", report.grad_norm),
                ("train/epoch", f64::from(report.epoch)),
                ("speed/tokens_per_second", *tokens_per_second),
                ("speed/mfu", *mfu),
            ];
            values.extend(report.memory.resident.map(|b| ("memory/resident_bytes", b as f64)));
            values.extend(report.memory.peak.map(|b| ("memory/peak_bytes", b as f64)));
            vec![tfevents::scalars(time, report.step, &values)]
        }
        Line::Validation { step, nll, perplexity, .. } => {
            let values = [("validation/loss", *nll), ("validation/perplexity", *perplexity)];
            vec![tfevents::scalars(time, *step, &values)]
        }
        Line::Samples { step, epoch, answers, .. } => {
            let text = |(i, Answer { prompt, text, .. }): (usize, &Answer)| {
                let markdown = format!("**Epoch {epoch}.** {prompt}\n\n---\n\n{text}");
                tfevents::text(time, *step, &format!("samples/{:02}", i + 1), &markdown)
            };
            answers.iter().enumerate().map(text).collect()
        }
        Line::Checkpoint { .. } | Line::End { .. } => Vec::new(),
    }
}

fn markdown_table(recipe: &Map<String, Value>) -> String {
    let mut out = String::from("| | |\n|---|---|\n");
    for (name, value) in page::flatten(recipe) {
        out += &format!("| {name} | {} |\n", value.replace('|', "\\|"));
    }
    out
}
