//! Rows, spread over the workers.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use crate::ops::cpu::pool::Pool;

/// Rows that a worker takes at once. Sums over rows are made chunk by chunk, so it is part of their order.
pub(super) const CHUNK: usize = 32;

/// Memory that workers share, each writing its own part.
#[derive(Clone, Copy)]
pub(super) struct Ptr(*mut f32);

// SAFETY: whoever writes through it says why no one else uses that part.
unsafe impl Send for Ptr {}
// SAFETY: as above.
unsafe impl Sync for Ptr {}

impl Ptr {
    pub fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }
    /// For what is only read through it.
    pub fn of(slice: &[f32]) -> Self {
        Self(slice.as_ptr().cast_mut())
    }
    pub fn at(self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// Calls `f(worker, chunk, rows)` for every [`CHUNK`] of `0..rows`.
pub(super) fn each(pool: &mut Pool, rows: usize, f: impl Fn(usize, usize, Range<usize>) + Sync) {
    let cursor = AtomicUsize::new(0);
    pool.run(|worker| {
        worker.each(&cursor, rows.div_ceil(CHUNK), 1, |chunk| {
            f(worker.id, chunk, chunk * CHUNK..(chunk * CHUNK + CHUNK).min(rows));
        });
    });
}
