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

mod saving;
mod step;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::checkpoint::Directory;
use super::error::TrainError;
use super::events::{Begin, Event};
use super::launch::Opened;
use super::model::{Gradients, Model, Settings, Tuning};
use super::optimizer::{self, AdamW};
use super::order;
use super::output::Output;
use super::plan::shapes::parameters;
use super::prepare::{Options, Prepared};
use super::schedule;
use super::shards::Shards;
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
