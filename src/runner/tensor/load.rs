//! From a checkpoint to the executors of its ranks: each reads its own part, and none ever has the whole.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Rank, Standing, TensorParallel};
use crate::engine::Executor;
use crate::model::config::LlamaConfig;
use crate::model::llama::Llama;
use crate::model::weights::{Blocks, Checkpoint, LoadError, Slice};
use crate::ops::cpu::kv::KvPool;
use crate::ops::cpu::{Cpu, CpuOptions};
use crate::parallel::{Communicator, Local, Share};
use crate::runner::load::Sizes;
use crate::runner::{CpuExecutor, Loaded, RunnerError, RunnerOptions};

/// The executors of a model's ranks, not at work yet.
pub struct RankExecutors {
    ranks: Vec<(CpuExecutor, Arc<dyn Communicator>)>,
    slices: Vec<Slice>,
}

impl RankExecutors {
    /// Only tokens below `limit` are sampled; see [`CpuExecutor::sample_below`].
    pub fn sample_below(&mut self, limit: usize) {
        // The first alone samples.
        if let Some((first, _)) = self.ranks.first_mut() {
            first.sample_below(limit);
        }
    }

    /// Makes room for LoRA adapters; see [`load_parts`](crate::runner::adapters::load_parts).
    pub fn enable_adapters(&mut self, slots: usize, max_rank: usize) {
        self.ranks.iter_mut().for_each(|(executor, _)| executor.enable_adapters(slots, max_rank));
    }

    /// What each rank has of the model.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Puts them to work.
    pub fn start(self) -> (Box<dyn Executor>, Standing) {
        let rank = |(executor, comm): (CpuExecutor, _)| Rank { executor: Box::new(executor), comm };
        let group = TensorParallel::start(self.ranks.into_iter().map(rank).collect());
        let standing = group.standing().clone();
        (Box::new(group), standing)
    }
}

/// Loads a model over so many threads. A rank that another waits for longer than `deadline` is taken for lost.
///
/// # Errors
/// As [`runner::load`](crate::runner::load())'s, and where the model cannot be cut over so many.
pub fn load(
    checkpoint: &Checkpoint,
    options: &RunnerOptions,
    ranks: usize,
    deadline: Option<Duration>,
    progress: impl FnMut(u64) + Send,
) -> Result<Loaded<RankExecutors>, RunnerError> {
    let local = Local::group(ranks, deadline).into_iter().map(|place| Arc::new(place) as Arc<dyn Communicator>);
    load_on(checkpoint, options, local.collect(), progress)
}

/// The same over these ranks, all of a group in order.
///
/// # Errors
/// As [`load`]'s.
pub fn load_on(
    checkpoint: &Checkpoint,
    options: &RunnerOptions,
    ranks: Vec<Arc<dyn Communicator>>,
    progress: impl FnMut(u64) + Send,
) -> Result<Loaded<RankExecutors>, RunnerError> {
    let config = checkpoint.config();
    let slices = Slice::all(config, ranks.len(), Blocks::of(checkpoint, options.dtype))?;
    let shapes: Vec<LlamaConfig> = slices.iter().map(|slice| slice.shape(config)).collect();
    let sizes = Sizes::new(checkpoint, options, |kv| shapes.iter().map(|s| KvPool::block_bytes(s, kv)).sum())?;

    let progress = Mutex::new((progress, vec![0u64; ranks.len()]));
    let told = |rank: usize, bytes: u64| {
        let mut told = progress.lock().unwrap_or_else(PoisonError::into_inner);
        told.1[rank] = bytes;
        let all = told.1.iter().sum();
        (told.0)(all);
    };
    let read = |rank: usize| -> Result<(Cpu, Llama<Cpu>), LoadError> {
        let (slice, comm) = (&slices[rank], Arc::clone(&ranks[rank]));
        // The processors are shared out; a rank has one at least.
        let threads = Share { rank, of: ranks.len() }.of(sizes.cpu.threads).len().max(1);
        let mut ops = Cpu::new(&shapes[rank], CpuOptions { threads, ..sizes.cpu }).over(comm, config.vocab_size);
        let model = Llama::load_parts(
            &mut ops,
            checkpoint,
            config,
            ranks.len(),
            |whole, name| slice.part(whole, name),
            |bytes| told(rank, bytes),
        )?;
        Ok((ops, model))
    };
    let made: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks.len()).map(|rank| scope.spawn(move || read(rank))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(join).collect::<Result<_, _>>()
    })?;

    let cache = sizes.settle(options)?;
    let mut weight_bytes = 0;
    let executor = |((mut ops, model), comm): ((Cpu, Llama<Cpu>), _)| {
        ops.allocate_cache(cache.num_blocks);
        weight_bytes += ops.weight_bytes() as u64;
        (CpuExecutor::new(ops, model, config), comm)
    };
    let ranks = made.into_iter().zip(ranks).map(executor).collect();
    Ok(sizes.loaded(RankExecutors { ranks, slices }, cache, weight_bytes))
}
