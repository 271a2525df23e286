//! The loop.
//!
//! A run is a function of its record (base, examples, recipe) and of nothing else: what is drawn is keyed by step, and
//! nothing depends on the time or on threads. So a run that goes on from a state does what it would have done.
//!
//! Order at the end of an epoch: the step is told, the validation rows are evaluated and told, the state is saved, the
//! model is saved and told, answers are generated and told. Whatever is the last of these, going on from the state does
//! the rest.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::adapter;
use super::checkpoint::Directory;
use super::error::TrainError;
use super::events::{Begin, Event, Memory, StepReport};
use super::model::{Gradients, LossSum, Model, Settings, StepKey, Tuning};
use super::optimizer::{self, AdamW, OptimizerError};
use super::order;
use super::output::Output;
use super::plan::shapes::parameters;
use super::prepare::{Options, Prepared, weight};
use super::render::Example;
use super::samples;
use super::schedule;
use super::state::{self, State};
use super::watch::metrics::{self, Line};
use super::watch::{self, Watchers};
use crate::model::weights::{Checkpoint, LoadError, Source};
use crate::ops::quant::is_finite;

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Done,
    /// It was asked to stop, and can be resumed.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// Trains to the end, or until `stop` is set: then the step is finished and the state saved. A run that is found in the
/// directory goes on from its state.
///
/// # Errors
/// The directory holds something else, a write fails, or the loss is no number any more. The last complete state and
/// models stay as they are.
pub fn train(prepared: &Prepared, options: &Options, stop: &AtomicBool) -> Result<Outcome, TrainError> {
    let mut run = Run::begin(prepared, options)?;
    let outcome = run.go_on(stop).map_err(|error| run.during(error))?;
    let (step, total) = (run.optimizer.steps(), run.steps);
    let epochs = prepared.recipe.epochs;
    let reason = match outcome {
        Outcome::Done => format!("all {epochs} epochs are done"),
        Outcome::Interrupted { .. } => {
            format!("stopped after step {step} of {total}; the same command goes on from there")
        }
    };
    run.watchers.tell(&Event::End { step, reason: &reason })?;
    Ok(outcome)
}

/// A run under way.
struct Run<'a> {
    prepared: &'a Prepared,
    options: &'a Options,
    directory: Directory<'a>,
    output: Output,
    model: Model,
    optimizer: AdamW,
    gradients: Gradients,
    threads: rayon::ThreadPool,
    watchers: Watchers,
    /// Of an epoch.
    steps_per_epoch: u64,
    /// Of all epochs.
    steps: u64,
    /// Steps of the state on disk.
    saved: Option<u64>,
}

impl<'a> Run<'a> {
    fn begin(prepared: &'a Prepared, options: &'a Options) -> Result<Self, TrainError> {
        let recipe = &prepared.recipe;
        let output = Output::open(&options.out)?;
        let state = output.state().map(|path| State::open(&path)).transpose()?;
        let differs = state.as_ref().and_then(|state| prepared.differs_from(&state.record));
        if let Some(what) = differs {
            return Err(TrainError::OtherRun { out: options.out.clone(), what });
        }
        if state.is_none() && !output.epochs().is_empty() {
            return Err(TrainError::NoState(options.out.clone()));
        }
        let base = &prepared.base;
        // Told before hours are spent.
        check_numbers(&base.checkpoint)?;
        Directory::new(base.checkpoint.config(), &prepared.renderer, prepared.save_format)?;
        let model = Model::load(base, prepared.renderer.new_token(), settings(prepared, options))?;
        let directory = Directory::new(model.config(), &prepared.renderer, prepared.save_format)?;
        let settings = optimizer::Settings::from(recipe);
        let optimizer = match &state {
            Some(state) => state.restore(model.parameters(), settings)?,
            None => AdamW::new(model.parameters(), settings),
        };
        let saved = state.map(|state| state.step);
        output.save_record(&prepared.record)?;

        let threads = rayon::ThreadPoolBuilder::new().num_threads(options.threads.unwrap_or(0)).build()?;
        let mut watchers = Watchers::new(&watch::Options {
            out: options.out.clone(),
            threads: threads.current_num_threads(),
            peak_flops: options.peak_flops,
            progress: options.progress,
        });
        let steps_per_epoch = order::batches(prepared.train.len(), recipe.batch_size) as u64;
        let steps = steps_per_epoch * u64::from(recipe.epochs);
        watchers.tell(&Event::Begin(Begin {
            base: &options.base,
            recipe: &prepared.record,
            config: model.config(),
            parameters: parameters(model.config()),
            trained: model.parameters().iter().map(|p| p.var.elem_count() as u64).sum(),
            steps,
            epochs: recipe.epochs,
            supervised_tokens_per_epoch: prepared.train.iter().map(|e| e.supervised_tokens() as u64).sum(),
            resumed_at: saved.unwrap_or(0),
        }))?;
        let gradients = Gradients::new(model.parameters())?;
        Ok(Self {
            prepared,
            options,
            directory,
            output,
            model,
            optimizer,
            gradients,
            threads,
            watchers,
            steps_per_epoch,
            steps,
            saved,
        })
    }

    fn go_on(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let recipe = &self.prepared.recipe;
        match self.optimizer.steps() {
            0 => self.before_training()?,
            step if step.is_multiple_of(self.steps_per_epoch) => self.finish_epoch(step)?,
            _ => {}
        }
        let mut shuffled = None;
        while self.optimizer.steps() < self.steps {
            let done = self.optimizer.steps();
            if stop.load(Ordering::SeqCst) {
                self.save_state()?;
                return Ok(Outcome::Interrupted { step: done });
            }
            let epoch = (done / self.steps_per_epoch) as u32;
            let order = match shuffled.take() {
                Some((of, order)) if of == epoch => order,
                _ => order::permutation(recipe.seed, epoch, self.prepared.train.len()),
            };
            let batch = order::batch(&order, recipe.batch_size, (done % self.steps_per_epoch) as usize);
            let report = self.step(epoch, batch)?;
            shuffled = Some((epoch, order));
            self.watchers.tell(&Event::Step(&report))?;
            if report.step.is_multiple_of(self.steps_per_epoch) {
                self.validate(epoch + 1)?;
                self.save_state()?;
                self.finish_epoch(report.step)?;
            } else if self.options.save_every.is_some_and(|every| report.step.is_multiple_of(every)) {
                self.save_state()?;
            }
        }
        Ok(Outcome::Done)
    }

    /// One optimizer step over the rows `batch`, in `epoch` from 0.
    fn step(&mut self, epoch: u32, batch: &[usize]) -> Result<StepReport, TrainError> {
        let begun = Instant::now();
        let (recipe, rows) = (&self.prepared.recipe, &self.prepared.train);
        let done = self.optimizer.steps();
        let key = StepKey { seed: recipe.seed, step: done };
        let total: f64 = batch.iter().map(|&row| weight(&rows[row], recipe.prompt_loss_weight)).sum();
        self.gradients.zero()?;
        let mut sum = LossSum::default();
        for micro in order::micro_batches(batch, recipe.micro_batch_tokens, |row| rows[row].ids.len()) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.accumulate(&micro, 1.0 / total, key, &mut self.gradients)?;
        }
        let loss = sum.nll / total;
        let norm = self.gradients.global_norm()?;
        for (name, value) in [("loss", loss), ("norm of the gradient", norm)] {
            if !value.is_finite() {
                return Err(self.diverged(done + 1, format!("the {name} is {value}")));
            }
        }
        // As PyTorch's clip_grad_norm_.
        if let Some(most) = recipe.clip.filter(|most| norm > *most) {
            self.gradients.scale(most / (norm + 1e-6))?;
        }
        let lr = schedule::learning_rate(recipe, done, self.steps);
        let (optimizer, parameters) = (&mut self.optimizer, self.model.parameters());
        let gradients = &self.gradients;
        match self.threads.install(|| optimizer.step(parameters, gradients, lr)) {
            Err(e @ OptimizerError::NotFinite(_)) => return Err(self.diverged(done + 1, e.to_string())),
            other => other?,
        }
        let lens = || batch.iter().map(|&row| rows[row].ids.len() as u64);
        Ok(StepReport {
            step: done + 1,
            epoch: epoch + 1,
            loss,
            lr,
            grad_norm: norm,
            tokens: lens().sum(),
            supervised: batch.iter().map(|&row| rows[row].supervised_tokens() as u64).sum(),
            pairs: lens().map(|n| n * (n + 1) / 2).sum(),
            seconds: begun.elapsed().as_secs_f64(),
            memory: Memory::now(),
        })
    }

    /// Perplexity and answers of the base, to compare with.
    fn before_training(&mut self) -> Result<(), TrainError> {
        self.validate(0)?;
        let base = &self.prepared.base;
        let can_chat = base.tokenizer.renderer().is_ok_and(|r| r.template().is_some());
        match base.checkpoint.source() {
            Source::HuggingFace(path) | Source::Gguf(path) if can_chat => self.sample(0, 0, &path.clone()),
            _ => Ok(()),
        }
    }

    /// Measures perplexity, which is told and decides nothing.
    fn validate(&mut self, epoch: u32) -> Result<(), TrainError> {
        let rows = &self.prepared.validation;
        if rows.is_empty() {
            return Ok(());
        }
        let all: Vec<usize> = (0..rows.len()).collect();
        let mut sum = LossSum::default();
        for micro in order::micro_batches(&all, self.prepared.recipe.micro_batch_tokens, |row| rows[row].ids.len()) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.evaluate(&micro)?;
        }
        let (step, nll) = (self.optimizer.steps(), sum.nll / sum.weight);
        if !nll.is_finite() && step > 0 {
            return Err(self.diverged(step, format!("the validation loss is {nll}")));
        }
        Ok(self.watchers.tell(&Event::Validation { epoch, step, nll })?)
    }

    fn save_state(&mut self) -> Result<(), TrainError> {
        let (step, record) = (self.optimizer.steps(), &self.prepared.record);
        if self.saved != Some(step) {
            let (parameters, optimizer) = (self.model.parameters(), &self.optimizer);
            self.output.save_state(step, |path| state::write(path, record, parameters, optimizer))?;
            self.saved = Some(step);
        }
        Ok(())
    }

    /// What comes after the state at the end of an epoch, as far as it is not there.
    fn finish_epoch(&mut self, step: u64) -> Result<(), TrainError> {
        let epoch = (step / self.steps_per_epoch) as u32;
        let path = self.output.epoch(epoch);
        let (is_told, has_answers) = told(&self.options.out, step);
        if !path.exists() {
            self.output.save_epoch(epoch, |dir| self.write_model(dir))?;
        }
        if !is_told {
            self.watchers.tell(&Event::Checkpoint { epoch, step, path: &path })?;
        }
        if let Some(keep) = self.options.keep {
            self.output.retain(keep.max(1))?;
        }
        if has_answers { Ok(()) } else { self.sample(epoch, step, &path) }
    }

    /// The whole model, and LoRA's adapter.
    fn write_model(&self, dir: &Path) -> io::Result<()> {
        if self.options.merge {
            self.directory.write(dir, &self.model)?;
        }
        if let Some(lora) = self.prepared.recipe.lora {
            let dir = dir.join("adapter");
            fs::create_dir(&dir)?;
            adapter::write(&dir, &self.options.base, lora, self.model.parameters())?;
            fs::File::open(&dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Answers of the model at `path` to the dev prompts.
    fn sample(&mut self, epoch: u32, step: u64, path: &Path) -> Result<(), TrainError> {
        let Some(sampling) = &self.options.samples else { return Ok(()) };
        let settings = samples::Settings {
            max_tokens: sampling.max_tokens,
            seed: self.prepared.recipe.seed,
            threads: self.options.threads,
        };
        let answers = samples::answer(path, &self.prepared.prompts, &settings)?;
        Ok(self.watchers.tell(&Event::Samples { epoch, step, answers: &answers })?)
    }

    fn diverged(&self, step: u64, what: String) -> TrainError {
        TrainError::Diverged { step, what, last: self.last_good() }
    }

    fn during(&self, error: TrainError) -> TrainError {
        match error {
            e @ TrainError::Diverged { .. } => e,
            error => TrainError::During { error: Box::new(error), last: self.last_good() },
        }
    }

    /// What there is to go back to, as a clause.
    fn last_good(&self) -> String {
        let model = self.output.epochs().pop().map(|epoch| self.output.epoch(epoch).display().to_string());
        match (model, self.saved) {
            (Some(model), Some(step)) => format!("the last good model is {model}, the last state that of step {step}"),
            (None, Some(step)) => format!("no model was saved yet, the last state is that of step {step}"),
            (_, None) => "nothing was saved yet".to_owned(),
        }
    }
}

fn settings(prepared: &Prepared, options: &Options) -> Settings {
    let recipe = &prepared.recipe;
    Settings {
        dropout: schedule::dropout(recipe.dropout, prepared.base.checkpoint.config().num_layers),
        compute: recipe.compute,
        weights: recipe.weights,
        checkpointing: recipe.checkpointing,
        neftune: recipe.neftune.unwrap_or(0.0) as f32,
        prompt_weight: recipe.prompt_loss_weight as f32,
        threads: options.threads,
        tuning: recipe.lora.map_or(Tuning::Full, |lora| Tuning::Lora {
            rank: lora.rank,
            alpha: lora.alpha as f32,
            base: lora.base,
        }),
    }
}

/// Refuses weights that are NaN or infinite, those that no data would reach included.
fn check_numbers(checkpoint: &Checkpoint) -> Result<(), LoadError> {
    for name in checkpoint.names() {
        let view = checkpoint.tensor(name)?;
        if let Some(row) = (0..view.rows).find(|&row| !is_finite(view.dtype, view.row(row))) {
            return Err(checkpoint.tensor_error(name, format!("has numbers that are not finite in row {row}")));
        }
        checkpoint.release(name);
    }
    Ok(())
}

/// Whether the model and the answers after `step` have been told already.
fn told(out: &Path, step: u64) -> (bool, bool) {
    let text = fs::read_to_string(out.join(metrics::FILE)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).filter(|l| l.step() == step);
    lines.fold((false, false), |(model, answers), line| {
        (model || matches!(line, Line::Checkpoint { .. }), answers || matches!(line, Line::Samples { .. }))
    })
}
