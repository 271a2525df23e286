//! What a run leaves on disk: states, models and answers.

use std::fs;
use std::io;
use std::path::Path;

use super::Run;
use crate::train::adapter;
use crate::train::checkpoint::{self, Directory};
use crate::train::error::TrainError;
use crate::train::events::Event;
use crate::train::samples;
use crate::train::state;
use crate::train::watch::metrics::{self, Line};

impl Run<'_> {
    pub(super) fn save_state(&mut self) -> Result<(), TrainError> {
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
    pub(super) fn finish_epoch(&mut self, step: u64) -> Result<(), TrainError> {
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
    pub(super) fn sample(&mut self, epoch: u32, step: u64, path: &Path) -> Result<(), TrainError> {
        let Some(sampling) = self.options.samples.as_ref().filter(|_| self.lead.is_some()) else { return Ok(()) };
        let settings = samples::Settings {
            max_tokens: sampling.max_tokens,
            seed: self.prepared.recipe.seed,
            threads: self.options.threads,
        };
        let answers = samples::answer(path, &self.prepared.prompts, &settings)?;
        self.tell(&Event::Samples { epoch, step, answers: &answers })
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
