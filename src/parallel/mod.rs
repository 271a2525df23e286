//! Ranks that compute one thing together, and how they exchange numbers.
//!
//! [`Communicator`] is what a rank sees of its group. [`Solo`] is a group of one, [`Local`] one of threads of this
//! process, [`Tcp`] one of processes, which read their place from their launcher's environment ([`World`]) and meet at a
//! [`Store`]. Every result is a function of what the ranks gave: sums are made in rank order, so neither threads nor
//! timing nor how a slice is cut change a bit.

mod layout;
mod local;
mod solo;
mod store;
mod tcp;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod world;

use std::time::Duration;

pub use self::layout::{Layout, Ranks, Share};
pub use self::local::Local;
pub use self::solo::Solo;
pub use self::store::{Hello, ID_BYTES, Server, Store, StoreError};
pub use self::tcp::{Pulse, Tcp};
pub use self::world::{Explicit, Launcher, PORT, World, WorldError};

/// A group of ranks, seen by one of them.
///
/// All ranks of a group make the same calls in the same order, with slices of the same length. A slice is cut into a part
/// for each rank by [`Share::of`]. Calls work in place, and return when this rank's numbers are there and no other needs
/// its slice any more. Once a call has failed, so do all later ones, on every rank.
pub trait Communicator: Send + Sync {
    /// Which of them this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are; at least one.
    fn world_size(&self) -> usize;

    /// Replaces the numbers by their sums over all ranks.
    ///
    /// # Errors
    /// A rank is lost, or the ranks' calls differ.
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// Each rank has made its part; all get all parts.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn all_gather(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// Replaces this rank's part by its sums over all ranks. The other parts are left as they are.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn reduce_scatter(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// [`Communicator::all_gather`] of several slices, each cut for itself.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn all_gather_each(&self, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        slices.iter_mut().try_for_each(|slice| self.all_gather(slice))
    }

    /// [`Communicator::reduce_scatter`] of several slices, each cut for itself: one exchange where one costs time.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn reduce_scatter_each(&self, slices: &mut [&mut [f32]]) -> Result<(), CommError> {
        slices.iter_mut().try_for_each(|slice| self.reduce_scatter(slice))
    }

    /// Gives all ranks what `root` has.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<(), CommError>;

    /// Waits for all ranks, however long one of them works alone: no deadline holds here.
    ///
    /// # Errors
    /// A rank is lost.
    fn barrier(&self) -> Result<(), CommError>;

    /// Says that this rank ends with an error: the calls of all others fail with it.
    fn abort(&self, reason: &str);

    /// This rank's share of what the group divides.
    fn share(&self) -> Share {
        Share { rank: self.rank(), of: self.world_size() }
    }

    /// Gives all ranks the bytes of rank 0, which alone passes some.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn broadcast_bytes(&self, bytes: Option<&[u8]>) -> Result<Vec<u8>, CommError> {
        // Their bits as F32, which are only copied: the length first.
        let bits =
            |bytes: &[u8]| f32::from_bits(u32::from_le_bytes(std::array::from_fn(|i| *bytes.get(i).unwrap_or(&0))));
        let given = bytes.unwrap_or_default();
        let mut len = [f32::from_bits(given.len() as u32)];
        self.broadcast(0, &mut len)?;
        let len = len[0].to_bits() as usize;
        let mut words: Vec<f32> = given.chunks(4).map(bits).collect();
        words.resize(len.div_ceil(4), 0.0);
        self.broadcast(0, &mut words)?;
        let mut told: Vec<u8> = words.iter().flat_map(|word| word.to_bits().to_le_bytes()).collect();
        told.truncate(len);
        Ok(told)
    }

    /// [`Communicator::all_reduce`] in F64, for a few numbers.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]'s.
    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), CommError> {
        let (ranks, n) = (self.world_size(), values.len());
        if ranks == 1 {
            return Ok(());
        }
        // Their bits as two F32 each, which are only copied.
        let halves = |v: &f64| [(v.to_bits() >> 32) as u32, v.to_bits() as u32].map(f32::from_bits);
        let mut all = vec![0f32; 2 * n * ranks];
        let own: Vec<f32> = values.iter().flat_map(halves).collect();
        all[2 * n * self.rank()..][..2 * n].copy_from_slice(&own);
        self.all_gather(&mut all)?;
        let whole = |pair: &[f32]| f64::from_bits(u64::from(pair[0].to_bits()) << 32 | u64::from(pair[1].to_bits()));
        for (i, value) in values.iter_mut().enumerate() {
            *value =
                (1..ranks).fold(whole(&all[2 * i..][..2]), |sum, rank| sum + whole(&all[2 * (rank * n + i)..][..2]));
        }
        Ok(())
    }
}

/// Ranks cannot go on together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A rank ended with an error.
    #[error("rank {rank} failed: {reason}")]
    Failed {
        /// Which, of the world.
        rank: usize,
        /// In its words.
        reason: String,
    },
    /// A rank panicked.
    #[error("rank {rank} panicked")]
    Panicked {
        /// Which, of the world.
        rank: usize,
    },
    /// A rank is no longer there.
    #[error("rank {rank} has ended while others wait for it")]
    Left {
        /// Which, of the world.
        rank: usize,
    },
    /// A rank did not come.
    #[error("rank {rank} has not answered within {deadline:?}")]
    Stalled {
        /// The first that is missing, of the world.
        rank: usize,
        /// How long was waited.
        deadline: Duration,
    },
    /// A rank's process is gone, or the way to it.
    #[error("rank {rank} is lost: {reason}")]
    Lost {
        /// Which, of the world.
        rank: usize,
        /// How that was noticed.
        reason: String,
    },
    /// Ranks cannot meet.
    #[error(transparent)]
    Meet(#[from] StoreError),
    /// Ranks cannot connect.
    #[error("{0}")]
    Network(String),
    /// Processes would have different numbers of ranks.
    #[error("{ranks} ranks cannot be shared evenly by {processes} processes")]
    Divide {
        /// Of the layout.
        ranks: usize,
        /// Of the job.
        processes: usize,
    },
    /// The ranks' calls do not belong together.
    #[error("ranks disagree: {0}")]
    Mismatch(String),
}
