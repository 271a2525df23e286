//! Where the numbers of a tensor-parallel rank are in the whole.

use std::ops::Range;

use super::Part;
use crate::model::weights::shard::Cut;
use crate::parallel::{CommError, Communicator};

/// Tensors stacked by rows, cut alike over ranks: the part that each rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    cut: Cut,
    /// Rows of each tensor on a rank.
    parts: Vec<usize>,
    /// Columns on a rank.
    cols: usize,
    ranks: usize,
}

impl Stack {
    /// Of these tensors, of which each of `ranks` ranks has so many rows, and `len` numbers.
    pub fn new(parts: &[Part], len: usize, ranks: usize) -> Self {
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        // A name that LoRA gives is no checkpoint tensor's.
        let cut = if ranks == 1 { Cut::Whole } else { parts.first().map_or(Cut::Whole, |part| Cut::of(&part.name)) };
        Self { cut, parts: parts.iter().map(|part| part.rows).collect(), cols: len / rows.max(1), ranks }
    }

    /// Whether every rank has all of it.
    pub fn is_whole(&self) -> bool {
        self.cut == Cut::Whole
    }

    /// Rows and columns of the whole.
    pub fn shape(&self) -> [usize; 2] {
        let (rows, cols) = (self.parts.iter().sum::<usize>(), self.cols);
        match self.cut {
            Cut::Whole => [rows, cols],
            Cut::Rows => [rows * self.ranks, cols],
            Cut::Columns => [rows, cols * self.ranks],
        }
    }

    /// Numbers of the whole.
    pub fn count(&self) -> usize {
        self.shape().into_iter().product()
    }

    /// Numbers of a rank's part.
    pub fn count_here(&self) -> usize {
        self.parts.iter().sum::<usize>() * self.cols
    }

    /// Pieces in a row of what `rank` has, in order, and where each begins in the whole.
    pub fn runs(&self, rank: usize) -> Vec<(Range<usize>, usize)> {
        let (rows, cols) = (self.parts.iter().sum::<usize>(), self.cols);
        match self.cut {
            Cut::Whole => vec![(0..rows * cols, 0)],
            Cut::Columns => {
                (0..rows).map(|row| (row * cols..(row + 1) * cols, (row * self.ranks + rank) * cols)).collect()
            }
            Cut::Rows => {
                let mut before = 0;
                let run = |&rows: &usize| {
                    let (here, there) = (before * cols, (before * self.ranks + rank * rows) * cols);
                    before += rows;
                    (here..here + rows * cols, there)
                };
                self.parts.iter().map(run).collect()
            }
        }
    }

    /// The whole, from this rank's numbers and those of the others of its tensor group.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn gather(&self, own: Vec<f32>, tensor: &dyn Communicator) -> Result<Vec<f32>, CommError> {
        if self.is_whole() {
            return Ok(own);
        }
        let len = own.len();
        let mut all = vec![0.0; len * self.ranks];
        all[tensor.rank() * len..][..len].copy_from_slice(&own);
        drop(own);
        tensor.all_gather(&mut all)?;
        let mut whole = vec![0.0; all.len()];
        for (rank, from) in all.chunks_exact(len.max(1)).enumerate() {
            for (here, there) in self.runs(rank) {
                whole[there..there + here.len()].copy_from_slice(&from[here]);
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of the whole is one rank's, and a rank's are in order.
    #[test]
    fn runs_cover_the_whole_once() {
        let part = |name: &str, rows| Part { name: format!("model.layers.0.{name}.weight"), rows };
        let qkv = [part("self_attn.q_proj", 6), part("self_attn.k_proj", 2), part("self_attn.v_proj", 2)];
        for (parts, cols, shape) in [
            (&qkv[..], 5, [30, 5]),
            (&[part("mlp.down_proj", 4)], 6, [4, 18]),
            (&[part("input_layernorm", 1)], 7, [1, 7]),
        ] {
            let rows: usize = parts.iter().map(|p| p.rows).sum();
            let stack = Stack::new(parts, rows * cols, 3);
            assert_eq!((stack.shape(), stack.count()), (shape, shape[0] * shape[1]));
            let mut seen = vec![0; stack.count()];
            for rank in 0..3 {
                let mut next = 0;
                for (here, there) in stack.runs(rank) {
                    assert_eq!(here.start, next);
                    next = here.end;
                    seen[there..there + here.len()].iter_mut().for_each(|n| *n += 1);
                }
                assert_eq!(next, rows * cols);
            }
            let times = if stack.is_whole() { 3 } else { 1 };
            assert!(seen.iter().all(|n| *n == times), "{stack:?}");
        }
        // The second rank's keys come after its queries, and after the first rank's keys.
        let stack = Stack::new(&qkv, 50, 3);
        assert_eq!(stack.runs(1), [(0..30, 30), (30..40, 100), (40..50, 130)]);
        assert_eq!(Stack::new(&qkv, 50, 1).runs(0), [(0..50, 0)]);
    }
}
