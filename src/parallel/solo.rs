//! One rank alone.

use super::{CommError, Communicator};

/// A group of one: every result is what it gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather(&self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn reduce_scatter(&self, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }

    fn abort(&self, _: &str) {}
}
