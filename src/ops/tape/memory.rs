//! Memory of activations, used again: fresh pages from the system would cost as much as computing into them.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ops::cpu::buffer::Buffer;

/// Gives blocks of `[rows, width]` numbers and takes them back when they are dropped.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Store>>);

#[derive(Default)]
struct Store {
    /// Rows of a block.
    rows: usize,
    /// Rows there is room for in every block given out or kept here.
    room: usize,
    spare: HashMap<usize, Vec<Buffer<f32>>>,
}

/// Numbers, not initialised by this pass.
pub(super) struct Block {
    data: Option<Buffer<f32>>,
    rows: usize,
    room: usize,
    width: usize,
    home: Memory,
}

impl Memory {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks have so many rows from now on.
    pub fn set_rows(&self, rows: usize) {
        let mut store = self.store();
        store.rows = rows;
        if rows > store.room {
            store.room = rows.next_multiple_of(64);
            store.spare.clear();
        }
    }

    /// A block whose content is whatever was there before.
    pub fn take(&self, width: usize) -> Block {
        let mut store = self.store();
        let (rows, room) = (store.rows, store.room);
        let spare = store.spare.get_mut(&width).and_then(Vec::pop);
        drop(store);
        let data = spare.unwrap_or_else(|| Buffer::zeroed(room * width));
        Block { data: Some(data), rows, room, width, home: self.clone() }
    }
}

impl Block {
    pub fn width(&self) -> usize {
        self.width
    }
}

impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.data.as_ref().map_or(&[], |data| &data[..self.rows * self.width])
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.width;
        self.data.as_mut().map_or(&mut [], |data| &mut data[..len])
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut store = self.home.store();
        // Blocks from before the room grew are let go.
        if let Some(data) = self.data.take().filter(|_| store.room == self.room) {
            store.spare.entry(self.width).or_default().push(data);
        }
    }
}
