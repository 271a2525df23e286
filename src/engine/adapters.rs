//! LoRA adapters as the engine sees them: slots, and leases that keep a slot filled.
//!
//! Whoever may start sequences with an adapter, and every such sequence, holds a lease. When the last one goes, the
//! engine thread is told to unload the slot, and the slot may be filled again.

use std::any::Any;
use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::executor::ExecutorError;
use super::handle::{Command, EngineHandle, Lifecycle, Shared};
use super::types::AdapterSlot;

/// An adapter's weights, in the form of the executor they are for.
pub type AdapterWeights = dyn Any + Send + Sync;

/// Why an adapter was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// Every slot is taken.
    #[error("{0} LoRA adapters are loaded, and --max-loras allows no more")]
    Full(usize),
    /// The executor did not take it.
    #[error("{0}")]
    Executor(ExecutorError),
    /// The engine is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// Keeps an adapter loaded. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdapterLease(Arc<Held>);

impl AdapterLease {
    /// The slot to compute with.
    pub fn slot(&self) -> AdapterSlot {
        self.0.slot
    }

    /// A lease that unloads nothing: for driving a scheduler or an executor by hand.
    pub fn detached(slot: AdapterSlot) -> Self {
        Self(Arc::new(Held { slot, home: None }))
    }
}

struct Held {
    slot: AdapterSlot,
    home: Option<(Arc<Shared>, Sender<Command>)>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slot.fmt(f)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((shared, commands)) = &self.home {
            // In this order: whoever takes the slot next sends its load after this. An engine that is gone holds
            // no adapters.
            let _ = commands.send(Command::UnloadAdapter(self.slot));
            shared.adapters.give_back(self.slot.index);
        }
    }
}

/// Which slots are free.
pub(super) struct SlotTable {
    max: usize,
    state: Mutex<(Vec<u32>, u64)>,
}

impl SlotTable {
    pub fn new(max: usize) -> Self {
        Self { max, state: Mutex::new(((0..max as u32).rev().collect(), 0)) }
    }

    fn take(&self) -> Option<AdapterSlot> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let index = state.0.pop()?;
        state.1 += 1;
        Some(AdapterSlot { index, generation: state.1 })
    }

    fn give_back(&self, index: u32) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.push(index);
    }
}

/// A slot that is kept for an adapter while its weights are read. Dropping it frees the slot.
pub struct AdapterReservation {
    /// `None` once the adapter has it.
    slot: Option<AdapterSlot>,
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

impl fmt::Debug for AdapterReservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slot.fmt(f)
    }
}

impl AdapterReservation {
    /// Puts the adapter into its slot, between two steps. Waits for the engine thread, for a step at most: not for
    /// async code.
    pub fn load(mut self, weights: Arc<AdapterWeights>) -> Result<AdapterLease, AdapterError> {
        let slot = self.slot.take().expect("an adapter takes its slot once");
        let lease = AdapterLease(Arc::new(Held { slot, home: Some((self.shared.clone(), self.commands.clone())) }));
        let (reply, answer) = channel();
        self.commands.send(Command::LoadAdapter { slot, weights, reply }).map_err(|_| AdapterError::Stopped)?;
        match answer.recv() {
            Ok(Ok(())) => Ok(lease),
            Ok(Err(error)) => Err(AdapterError::Executor(error)),
            Err(_) => Err(AdapterError::Stopped),
        }
    }
}

impl Drop for AdapterReservation {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.shared.adapters.give_back(slot.index);
        }
    }
}

impl EngineHandle {
    /// Keeps a free slot, before the weights that are to go there are read.
    pub fn reserve_adapter(&self) -> Result<AdapterReservation, AdapterError> {
        if self.shared.lifecycle() == Lifecycle::Stopped {
            return Err(AdapterError::Stopped);
        }
        let adapters = &self.shared.adapters;
        let slot = Some(adapters.take().ok_or(AdapterError::Full(adapters.max))?);
        Ok(AdapterReservation { slot, shared: self.shared.clone(), commands: self.commands.clone() })
    }

    /// Puts an adapter that is read already into a free slot; see [`AdapterReservation::load`].
    pub fn load_adapter(&self, weights: Arc<AdapterWeights>) -> Result<AdapterLease, AdapterError> {
        self.reserve_adapter()?.load(weights)
    }

    /// Adapters that may be loaded at once.
    pub fn max_adapters(&self) -> usize {
        self.shared.adapters.max
    }
}
