//! The start of a run: its directory is opened by the process that has the first rank, which tells the others what is in
//! it; then each rank gets a thread.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use serde_json::{Map, Value};

use super::checkpoint::Directory;
use super::error::TrainError;
use super::output::Output;
use super::prepare::{Options, Prepared};
use super::state::State;
use super::trainer::{Outcome, Run};
use crate::model::weights::{Checkpoint, LoadError};
use crate::ops::quant::is_finite;
use crate::parallel::Ranks;

/// Trains to the end, or until `stop` is set: then the step is finished and the state saved. A run that is found in the
/// directory goes on from its state, however many ranks left it.
///
/// # Errors
/// The directory holds something else, a write fails, or the loss is no number any more. The last complete state and
/// models stay as they are.
pub fn train(prepared: &Prepared, options: &Options, stop: &AtomicBool) -> Result<Outcome, TrainError> {
    // A thread of this process is not lost without a word, and a micro-batch takes as long as it takes: no deadline.
    train_on(prepared, options, stop, Ranks::local(options.layout, None))
}

/// The same on these ranks, a thread each: all of a layout in order, or those of this process.
///
/// # Errors
/// As [`train`]'s; one that any rank meets ends all. Another process trains something else, or does not see the run's
/// directory.
pub fn train_on(
    prepared: &Prepared,
    options: &Options,
    stop: &AtomicBool,
    mut ranks: Vec<Ranks>,
) -> Result<Outcome, TrainError> {
    let opened = &Opened::among(prepared, options, &ranks).inspect_err(|error| abort(&ranks, &error.to_string()))?;
    if ranks.len() == 1
        && let Some(alone) = ranks.pop()
    {
        return rank(prepared, options, opened, stop, alone);
    }
    thread::scope(|scope| {
        let spawn = |of: Ranks| {
            let name = format!("rank {}", of.rank());
            thread::Builder::new().name(name).spawn_scoped(scope, move || rank(prepared, options, opened, stop, of))
        };
        // Ranks that find no thread are dropped, which ends the others.
        let threads = ranks.into_iter().map(spawn).collect::<Result<Vec<_>, _>>()?;
        let mut ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        let first = ended.next().unwrap_or_else(|| Ok(Ok(Outcome::Done)));
        // What befell another, the first has heard of. A panic stays one.
        ended.for_each(drop);
        first.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Ends the ranks of other processes: this one's cannot go on.
pub fn abort(ranks: &[Ranks], reason: &str) {
    ranks.iter().for_each(|rank| rank.world.abort(reason));
}

/// What one of the ranks does.
fn rank(
    prepared: &Prepared,
    options: &Options,
    opened: &Opened,
    stop: &AtomicBool,
    ranks: Ranks,
) -> Result<Outcome, TrainError> {
    let world = Arc::clone(&ranks.world);
    let ended = Run::begin(prepared, options, opened, ranks).and_then(|mut run| run.finish(stop));
    if let Err(error) = &ended {
        world.abort(&error.to_string());
    }
    ended
}

/// The run's directory and what is found there, for all ranks.
pub(super) struct Opened {
    pub output: Output,
    pub state: Option<State>,
}

/// What the first process tells the others.
#[derive(serde::Serialize, serde::Deserialize)]
struct Told {
    record: Map<String, Value>,
    /// Steps of the state that it goes on from.
    state: Option<u64>,
}

impl Opened {
    /// Opens the directory, or hears from the process that has.
    fn among(prepared: &Prepared, options: &Options, ranks: &[Ranks]) -> Result<Self, TrainError> {
        let Some(first) = ranks.first().filter(|first| ranks.len() < first.layout.ranks()) else {
            return Self::new(prepared, options);
        };
        if first.is_first() {
            let opened = Self::new(prepared, options)?;
            let told = Told { record: prepared.record.clone(), state: opened.state.as_ref().map(|state| state.step) };
            let told = serde_json::to_vec(&told).map_err(|e| TrainError::Watch(e.into()))?;
            first.world.broadcast_bytes(Some(&told))?;
            // What comes from the first does not wait for who takes it, so one thread can ask for all.
            ranks[1..].iter().try_for_each(|rank| rank.world.broadcast_bytes(None).map(drop))?;
            return Ok(opened);
        }
        let mut told = Vec::new();
        for rank in ranks {
            told = rank.world.broadcast_bytes(None)?;
        }
        let Told { record, state } = serde_json::from_slice(&told).map_err(|e| TrainError::Differs(e.to_string()))?;
        if let Some(what) = prepared.differs_from(&record) {
            return Err(TrainError::Differs(what));
        }
        let output = Output::beside(&options.out);
        let path = state.map(|step| output.state_at(step));
        if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
            return Err(TrainError::NotShared(path.clone()));
        }
        let state = path.map(|path| State::open(&path)).transpose()?;
        Ok(Self { output, state })
    }

    fn new(prepared: &Prepared, options: &Options) -> Result<Self, TrainError> {
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
        Ok(Self { output, state })
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
