//! The loop.
//!
//! A run is a function of its record (base, examples, recipe) and of nothing else: what is drawn is keyed by step, and
//! nothing depends on the time or on threads. So a run that goes on from a state does what it would have done.
//!
//! Order at the end of an epoch: the step is told, the validation rows are evaluated and told, the state is saved, the
//! model is saved and told, answers are generated and told. Whatever is the last of these, going on from the state does
//! the rest.
//!
//! Several ranks run this loop side by side and take the same turns; the first of them writes, and speaks for all.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use super::adapter;
use super::checkpoint::{self, Directory};
use super::error::TrainError;
use super::events::{Begin, Event, Memory, StepReport};
use super::launch::Opened;
use super::model::{Gradients, LossSum, Model, Settings, StepKey, Tuning};
use super::optimizer::{self, AdamW, OptimizerError};
use super::order;
use super::output::Output;
use super::plan::shapes::parameters;
use super::prepare::{Options, Prepared, weight};
use super::render::Example;
use super::samples;
use super::schedule;
use super::shards::Shards;
use super::state;
use super::watch::metrics::{self, Line};
use super::watch::{self, Watchers};
use crate::model::weights::Source;
use crate::parallel::Ranks;

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

/// A run under way, on one rank.
pub(super) struct Run<'a> {
    prepared: &'a Prepared,
    options: &'a Options,
    output: &'a Output,
    /// On the first rank.
    lead: Option<Lead<'a>>,
    model: Model,
    optimizer: AdamW,
    gradients: Gradients,
    shards: Shards,
    threads: rayon::ThreadPool,
    /// Of an epoch.
    steps_per_epoch: u64,
    /// Of all epochs.
    steps: u64,
    /// Steps of the state on disk.
    saved: Option<u64>,
}

/// What only one rank does: to write models, and to tell.
struct Lead<'a> {
    directory: Directory<'a>,
    watchers: Watchers,
}

impl<'a> Run<'a> {
    /// Loads this rank's part of the model, and goes back to the state if there is one.
    pub fn begin(
        prepared: &'a Prepared,
        options: &'a Options,
        opened: &'a Opened,
        ranks: Ranks,
    ) -> Result<Self, TrainError> {
        let Opened { output, state } = opened;
        let (recipe, base) = (&prepared.recipe, &prepared.base);
        let own_threads = threads_of(options, &ranks);
        let settings = settings(prepared, own_threads);
        let tensor = Arc::clone(&ranks.tensor);
        let model = Model::shard(&base.checkpoint, prepared.renderer.new_token(), settings, tensor)?;
        let shards = Shards::new(ranks, model.parameters());
        let directory = Directory::new(model.config(), &prepared.renderer, prepared.save_format)?;
        let settings = optimizer::Settings::from(recipe);
        let optimizer = match state {
            Some(state) => state.restore(model.parameters(), settings, &shards)?,
            None => AdamW::shard(model.parameters(), settings, shards.owner()),
        };
        let saved = state.as_ref().map(|state| state.step);
        let threads = rayon::ThreadPoolBuilder::new().num_threads(own_threads.unwrap_or(0)).build()?;
        let gradients = Gradients::new(model.parameters())?;
        let steps_per_epoch = order::batches(prepared.train.len(), recipe.batch_size) as u64;
        let steps = steps_per_epoch * u64::from(recipe.epochs);
        let world = Arc::clone(&shards.ranks.world);
        let is_first = shards.ranks.is_first();
        let mut run = Self {
            prepared,
            options,
            output,
            lead: None,
            model,
            optimizer,
            gradients,
            shards,
            threads,
            steps_per_epoch,
            steps,
            saved,
        };
        // The machine's speed is measured while no other rank is at work.
        world.barrier()?;
        if is_first {
            output.save_record(&prepared.record)?;
            run.lead = Some(Lead { directory, watchers: run.watchers() });
            run.tell_begin()?;
        }
        world.barrier()?;
        Ok(run)
    }

    fn watchers(&self) -> Watchers {
        let threads = match self.shards.are_several() {
            true => all_threads(self.options),
            false => self.threads.current_num_threads(),
        };
        Watchers::new(&watch::Options {
            out: self.options.out.clone(),
            threads,
            peak_flops: self.options.peak_flops,
            progress: self.options.progress,
        })
    }

    fn tell_begin(&mut self) -> Result<(), TrainError> {
        let (prepared, config) = (self.prepared, self.model.config());
        let begin = Begin {
            base: &self.options.base,
            recipe: &prepared.record,
            config,
            parameters: parameters(config),
            trained: self.shards.trained(),
            steps: self.steps,
            epochs: prepared.recipe.epochs,
            supervised_tokens_per_epoch: prepared.train.iter().map(|e| e.supervised_tokens() as u64).sum(),
            resumed_at: self.saved.unwrap_or(0),
        };
        match &mut self.lead {
            Some(lead) => Ok(lead.watchers.tell(&Event::Begin(begin))?),
            None => Ok(()),
        }
    }

    fn tell(&mut self, event: &Event<'_>) -> Result<(), TrainError> {
        match &mut self.lead {
            Some(lead) => Ok(lead.watchers.tell(event)?),
            None => Ok(()),
        }
    }

    /// Does what is left to do, until all is done or `stop` is set.
    pub fn finish(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let outcome = self.go_on(stop).map_err(|error| self.during(error))?;
        let (step, total) = (self.optimizer.steps(), self.steps);
        let epochs = self.prepared.recipe.epochs;
        let reason = match outcome {
            Outcome::Done => format!("all {epochs} epochs are done"),
            Outcome::Interrupted { .. } => {
                format!("stopped after step {step} of {total}; the same command goes on from there")
            }
        };
        self.tell(&Event::End { step, reason: &reason })?;
        Ok(outcome)
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
            // A signal may come between two ranks' looking, or to one process of several.
            if self.shards.any(stop.load(Ordering::SeqCst))? {
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
            self.tell(&Event::Step(&report))?;
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

    /// One optimizer step over the rows `batch`, in `epoch` from 0. Each data-parallel rank computes some of them.
    fn step(&mut self, epoch: u32, batch: &[usize]) -> Result<StepReport, TrainError> {
        let begun = Instant::now();
        let (recipe, rows) = (&self.prepared.recipe, &self.prepared.train);
        let done = self.optimizer.steps();
        let key = StepKey { seed: recipe.seed, step: done };
        let total: f64 = batch.iter().map(|&row| weight(&rows[row], recipe.prompt_loss_weight)).sum();
        self.gradients.zero()?;
        let mut sum = LossSum::default();
        for micro in self.micro_batches(batch, rows) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.accumulate(&micro, 1.0 / total, key, &mut self.gradients)?;
        }
        let [nll] = self.shards.add([sum.nll])?;
        let loss = nll / total;
        self.shards.sum(&mut self.gradients)?;
        let norm = self.shards.norm(&self.gradients, self.model.parameters())?;
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
            // Of another rank's part the first hears with the weights.
            Err(e @ OptimizerError::NotFinite(_)) if self.lead.is_some() => {
                return Err(self.diverged(done + 1, e.to_string()));
            }
            other => other?,
        }
        self.shards.spread(self.model.parameters())?;
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

    /// What this rank computes of a batch.
    fn micro_batches(&self, batch: &[usize], rows: &[Example]) -> Vec<Vec<usize>> {
        let len = |row: usize| rows[row].ids.len();
        let own = order::share(batch, self.shards.ranks.data.share(), len);
        order::micro_batches(&own, self.prepared.recipe.micro_batch_tokens, len)
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
        for micro in self.micro_batches(&all, rows) {
            let micro: Vec<&Example> = micro.iter().map(|&row| &rows[row]).collect();
            sum += self.model.evaluate(&micro)?;
        }
        let [nll, weight] = self.shards.add([sum.nll, sum.weight])?;
        let (step, nll) = (self.optimizer.steps(), nll / weight);
        if !nll.is_finite() && step > 0 {
            return Err(self.diverged(step, format!("the validation loss is {nll}")));
        }
        self.tell(&Event::Validation { epoch, step, nll })
    }

    fn save_state(&mut self) -> Result<(), TrainError> {
        let (step, record) = (self.optimizer.steps(), &self.prepared.record);
        if self.saved != Some(step) {
            let (parameters, optimizer, shards) = (self.model.parameters(), &self.optimizer, &self.shards);
            match self.lead {
                Some(_) => {
                    let write = |path: &Path| state::write(path, record, parameters, optimizer, shards);
                    self.output.save_state(step, write)?;
                }
                None => state::assist(parameters, optimizer, shards)?,
            }
            self.saved = Some(step);
        }
        Ok(())
    }

    /// What comes after the state at the end of an epoch, as far as it is not there.
    fn finish_epoch(&mut self, step: u64) -> Result<(), TrainError> {
        let epoch = (step / self.steps_per_epoch) as u32;
        let path = self.output.epoch(epoch);
        let is_missing = self.shards.agree(!path.exists())?;
        let Some(lead) = &self.lead else {
            let helps = self.options.merge && self.shards.is_of_first_copy();
            return if is_missing && helps { Ok(checkpoint::assist(&self.model)?) } else { Ok(()) };
        };
        let (is_told, has_answers) = told(&self.options.out, step);
        if is_missing {
            self.output.save_epoch(epoch, |dir| self.write_model(dir, &lead.directory))?;
        }
        if !is_told {
            self.tell(&Event::Checkpoint { epoch, step, path: &path })?;
        }
        if let Some(keep) = self.options.keep {
            self.output.retain(keep.max(1))?;
        }
        if has_answers { Ok(()) } else { self.sample(epoch, step, &path) }
    }

    /// The whole model, and LoRA's adapter.
    fn write_model(&self, dir: &Path, directory: &Directory<'_>) -> io::Result<()> {
        if self.options.merge {
            directory.write(dir, &self.model)?;
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
        let Some(sampling) = self.options.samples.as_ref().filter(|_| self.lead.is_some()) else { return Ok(()) };
        let settings = samples::Settings {
            max_tokens: sampling.max_tokens,
            seed: self.prepared.recipe.seed,
            threads: self.options.threads,
        };
        let answers = samples::answer(path, &self.prepared.prompts, &settings)?;
        self.tell(&Event::Samples { epoch, step, answers: &answers })
    }

    fn diverged(&self, step: u64, what: String) -> TrainError {
        TrainError::Diverged { step, what, last: self.last_good() }
    }

    fn during(&self, error: TrainError) -> TrainError {
        match error {
            e @ TrainError::Diverged { .. } => e,
            error if self.lead.is_none() => error,
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

/// Worker threads of all ranks of this process.
fn all_threads(options: &Options) -> usize {
    options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Worker threads of one of the ranks, which share them; `None`: one a processor.
fn threads_of(options: &Options, ranks: &Ranks) -> Option<usize> {
    match ranks.here.of {
        1 => options.threads,
        _ => Some(ranks.here.of(all_threads(options)).len().max(1)),
    }
}

fn settings(prepared: &Prepared, threads: Option<usize>) -> Settings {
    let recipe = &prepared.recipe;
    Settings {
        dropout: schedule::dropout(recipe.dropout, prepared.base.checkpoint.config().num_layers),
        compute: recipe.compute,
        weights: recipe.weights,
        checkpointing: recipe.checkpointing,
        neftune: recipe.neftune.unwrap_or(0.0) as f32,
        prompt_weight: recipe.prompt_loss_weight as f32,
        threads,
        tuning: recipe.lora.map_or(Tuning::Full, |lora| Tuning::Lora {
            rank: lora.rank,
            alpha: lora.alpha as f32,
            base: lora.base,
        }),
    }
}

/// Whether the model and the answers after `step` have been told already.
fn told(out: &Path, step: u64) -> (bool, bool) {
    let text = fs::read_to_string(out.join(metrics::FILE)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).filter(|l| l.step() == step);
    lines.fold((false, false), |(model, answers), line| {
        (model || matches!(line, Line::Checkpoint { .. }), answers || matches!(line, Line::Samples { .. }))
    })
}
