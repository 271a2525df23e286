//! What a fake executor has done, and levers to disturb it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::executor::StepInput;
use crate::engine::types::SamplingParams;

/// Sequences that [`FakeControl::begun`] remembers.
const MAX_BEGUN: usize = 64;

/// How a step should fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `forward` answers an error.
    Forward,
    /// `forward` panics.
    Panic,
    /// `sample` answers an error.
    Sample,
    /// `collect` answers an error.
    Collect,
    /// This row fails (modulo the number of rows).
    Row(usize),
}

/// What a [`FakeExecutor`](super::FakeExecutor) has done, and levers to disturb it. Cheap to clone; works from any thread.
#[derive(Clone, Default)]
pub struct FakeControl(Arc<Control>);

#[derive(Default)]
struct Control {
    forwards: AtomicU64,
    rows: AtomicU64,
    tokens: AtomicU64,
    max_rows: AtomicU64,
    max_masks: AtomicU64,
    begun: Mutex<VecDeque<Arc<SamplingParams>>>,
    faults: Mutex<HashMap<u64, Fault>>,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Default)]
struct Gate {
    /// Forward passes that may start; `None` is any number.
    permits: Option<u64>,
    delay: Duration,
}

impl FakeControl {
    /// Forward passes started.
    pub fn forwards(&self) -> u64 {
        self.0.forwards.load(Relaxed)
    }

    /// Rows of all of them.
    pub fn rows(&self) -> u64 {
        self.0.rows.load(Relaxed)
    }

    /// Token positions computed.
    pub fn tokens(&self) -> u64 {
        self.0.tokens.load(Relaxed)
    }

    /// Rows of the largest step.
    pub fn max_rows(&self) -> u64 {
        self.0.max_rows.load(Relaxed)
    }

    /// Masks that a step worked out together at most.
    pub fn max_masks(&self) -> u64 {
        self.0.max_masks.load(Relaxed)
    }

    pub(super) fn count_masks(&self, masks: usize) {
        self.0.max_masks.fetch_max(masks as u64, Relaxed);
    }

    /// Parameters of the sequences that sampled their first token, in this order; the last few.
    pub fn begun(&self) -> Vec<Arc<SamplingParams>> {
        lock(&self.0.begun).iter().cloned().collect()
    }

    pub(super) fn begins(&self, params: &Arc<SamplingParams>) {
        let mut begun = lock(&self.0.begun);
        if begun.len() == MAX_BEGUN {
            begun.pop_front();
        }
        begun.push_back(Arc::clone(params));
    }

    /// Makes the step with this number fail.
    pub fn inject(&self, step: u64, fault: Fault) {
        lock(&self.0.faults).insert(step, fault);
    }

    /// How this step is to fail.
    pub(super) fn take_fault(&self, step: u64) -> Option<Fault> {
        lock(&self.0.faults).remove(&step)
    }

    /// Makes each forward pass take at least this long.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.0.gate).delay = delay;
    }

    /// Holds forward passes back until [`open`](Self::open) or [`permit`](Self::permit).
    pub fn hold(&self) {
        lock(&self.0.gate).permits = Some(0);
    }

    /// Lets this many more forward passes start.
    pub fn permit(&self, more: u64) {
        let mut gate = lock(&self.0.gate);
        gate.permits = Some(gate.permits.unwrap_or(0) + more);
        self.0.opened.notify_all();
    }

    /// Lets all forward passes go.
    pub fn open(&self) {
        lock(&self.0.gate).permits = None;
        self.0.opened.notify_all();
    }

    pub(super) fn pass_gate(&self) {
        let mut gate = lock(&self.0.gate);
        while gate.permits == Some(0) {
            gate = self.0.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(permits) = &mut gate.permits {
            *permits -= 1;
        }
        let delay = gate.delay;
        drop(gate);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
    }

    pub(super) fn count(&self, step: &StepInput) {
        self.0.forwards.fetch_add(1, Relaxed);
        self.0.rows.fetch_add(step.rows.len() as u64, Relaxed);
        self.0.tokens.fetch_add(step.num_tokens() as u64, Relaxed);
        self.0.max_rows.fetch_max(step.rows.len() as u64, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
