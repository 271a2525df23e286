//! Scheduler and executor, one step at a time on the caller's thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::adapters::AdapterWeights;
use super::event::SeqEvent;
use super::executor::{Executor, ExecutorError, StepInput, Ticket};
use super::scheduler::{Scheduler, SchedulerConfig};
use super::stats::EngineStats;
use super::types::AdapterSlot;

/// Steps the engine may be ahead: a row takes its token from the step right before it.
const MAX_DEPTH: usize = 2;

/// The engine without its thread and channels. [`advance`](Self::advance) it until it is idle.
pub struct Core {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    depth: usize,
    /// Steps in flight and when each was started, oldest first.
    tickets: VecDeque<(Ticket, Instant)>,
    last_collected: Option<Instant>,
    input: StepInput,
    stats: Arc<EngineStats>,
}

impl Core {
    /// An engine with nothing to do.
    pub fn new(config: SchedulerConfig, executor: Box<dyn Executor>) -> Self {
        let depth = executor.depth().clamp(1, MAX_DEPTH);
        let mut scheduler = Scheduler::new(config);
        scheduler.limit_sampled(executor.max_sampled());
        Self {
            scheduler,
            executor,
            depth,
            tickets: VecDeque::with_capacity(depth),
            last_collected: None,
            input: StepInput::default(),
            stats: Arc::new(EngineStats::new(config.num_blocks)),
        }
    }

    /// The scheduler.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The scheduler, to add and abort sequences.
    pub fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// Its numbers.
    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }

    /// See [`Executor::max_adapters`].
    pub fn max_adapters(&self) -> usize {
        self.executor.max_adapters()
    }

    /// Hands an adapter to the executor.
    pub fn load_adapter(&mut self, slot: AdapterSlot, weights: Arc<AdapterWeights>) -> Result<(), ExecutorError> {
        let executor = &mut self.executor;
        let result = guard(|| executor.load_adapter(slot, weights));
        self.count_adapters();
        result
    }

    /// Lets the executor forget an adapter that no sequence has any more.
    pub fn unload_adapter(&mut self, slot: AdapterSlot) {
        self.executor.unload_adapter(slot);
        self.count_adapters();
    }

    fn count_adapters(&self) {
        let (count, bytes) = self.executor.adapters();
        self.stats.adapters.store(count, Relaxed);
        self.stats.adapter_bytes.store(bytes, Relaxed);
    }

    /// Why the executor can do no more, if that is so.
    pub fn lost(&self) -> Option<String> {
        self.executor.lost()
    }

    /// The last step started.
    pub fn last_input(&self) -> &StepInput {
        &self.input
    }

    /// One round of [`schedule`](Self::schedule), [`launch`](Self::launch), [`collect`](Self::collect).
    /// Returns false when nothing happened: no sequence is left and nothing is in flight.
    pub fn advance(&mut self, events: &mut Vec<SeqEvent>) -> bool {
        let scheduled = self.schedule(events);
        if scheduled {
            self.launch(events);
        }
        self.collect(scheduled, events) || scheduled
    }

    /// Chooses the next step, if one may be started; [`launch`](Self::launch) must follow.
    pub fn schedule(&mut self, events: &mut Vec<SeqEvent>) -> bool {
        self.tickets.len() < self.depth && self.scheduler.schedule(&mut self.input, events)
    }

    /// Copies gauges and counters to the stats.
    pub fn publish(&self) {
        self.stats.publish(&self.scheduler);
    }

    /// Starts the step just scheduled.
    pub fn launch(&mut self, events: &mut Vec<SeqEvent>) {
        let started = Instant::now();
        self.stats.step_started(self.input.num_tokens());
        let (executor, scheduler, input) = (&mut self.executor, &mut self.scheduler, &self.input);
        let ticket = guard(|| {
            executor.forward(input)?;
            match &mut scheduler.mask_tasks()[..] {
                [] => {}
                [one] => one.run(),
                several => executor.make_masks(several),
            }
            executor.sample(&scheduler.sample_input())
        });
        match ticket {
            Ok(ticket) => self.tickets.push_back((ticket, started)),
            Err(error) => {
                self.stats.step_failures.fetch_add(1, Relaxed);
                self.scheduler.fail_newest(&error.0, events);
            }
        }
    }

    /// Waits for the oldest step if enough are in flight, or none was `scheduled` this round. Returns
    /// whether it did.
    pub fn collect(&mut self, scheduled: bool, events: &mut Vec<SeqEvent>) -> bool {
        if scheduled && self.tickets.len() < self.depth {
            return false;
        }
        let Some((ticket, started)) = self.tickets.pop_front() else { return false };
        let executor = &mut self.executor;
        let result = guard(|| executor.collect(ticket));
        // Steps overlap: a step's own time begins where the one before it ended.
        let now = Instant::now();
        let since = self.last_collected.map_or(started, |last| last.max(started));
        self.last_collected = Some(now);
        match result {
            Ok(output) => {
                self.scheduler.observe(now - since);
                self.scheduler.update(output, events);
            }
            Err(error) => {
                self.stats.step_failures.fetch_add(1, Relaxed);
                self.scheduler.fail_oldest(&error.0, events);
            }
        }
        self.stats.step_completed(now - since);
        true
    }
}

/// Turns a panic of the executor into a failed step.
fn guard<T>(call: impl FnOnce() -> Result<T, ExecutorError>) -> Result<T, ExecutorError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        Err(ExecutorError(format!("the executor panicked: {}", message.unwrap_or("no message"))))
    })
}
