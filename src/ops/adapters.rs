//! Which adapter is in which slot.

use std::sync::Arc;

use super::{Batch, OpsError};
use crate::engine::AdapterSlot;

/// Loaded adapters of a backend, by slot.
pub struct Slots<A> {
    slots: Vec<Option<(AdapterSlot, Arc<A>)>>,
}

impl<A> Slots<A> {
    /// So many empty slots.
    pub fn new(count: usize) -> Self {
        Self { slots: (0..count).map(|_| None).collect() }
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Fills a slot.
    pub fn load(&mut self, slot: AdapterSlot, adapter: Arc<A>) -> Result<(), OpsError> {
        let count = self.slots.len();
        match self.slots.get_mut(slot.index as usize) {
            Some(place) => {
                *place = Some((slot, adapter));
                Ok(())
            }
            None => Err(OpsError::Limit(format!("adapter slot {} of {count}", slot.index))),
        }
    }

    /// Empties a slot, unless it has been filled again since.
    pub fn unload(&mut self, slot: AdapterSlot) {
        if self.get(slot).is_some() {
            self.slots[slot.index as usize] = None;
        }
    }

    /// The adapter of a slot, if it is the one of this generation.
    pub fn get(&self, slot: AdapterSlot) -> Option<&A> {
        let (now, adapter) = self.slots.get(slot.index as usize)?.as_ref()?;
        (*now == slot).then_some(adapter)
    }

    /// All that are loaded.
    pub fn iter(&self) -> impl Iterator<Item = &A> {
        self.slots.iter().flatten().map(|(_, adapter)| &**adapter)
    }

    /// Refuses a batch that names an adapter which is not loaded.
    pub fn check(&self, batch: &Batch<'_>) -> Result<(), OpsError> {
        match batch.spans.iter().filter_map(|s| s.adapter).find(|slot| self.get(*slot).is_none()) {
            Some(slot) => Err(OpsError::Limit(format!("adapter slot {} is not loaded", slot.index))),
            None => Ok(()),
        }
    }
}
