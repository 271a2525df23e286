//! A tensor in a memory-mapped file.

use std::ops::Range;

use crate::ops::quant::{DType, dequantize_row};

/// `rows x cols` numbers, row by row, borrowed from the file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Number format.
    pub dtype: DType,
    /// 1 for one-dimensional tensors.
    pub rows: usize,
    /// Values in a row.
    pub cols: usize,
    data: &'a [u8],
    row_bytes: usize,
    /// Head width where rows are stored pair by pair.
    interleaved: Option<usize>,
    /// Of a part: the first row, the bytes before it in a stored row, and the bytes of a stored row.
    first: usize,
    skip: usize,
    stride: usize,
}

impl<'a> TensorView<'a> {
    /// `data` is exactly the tensor's bytes. With `interleaved`, rows are in GGUF's order for heads
    /// of that many rows.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8], interleaved: Option<usize>) -> Option<Self> {
        let row_bytes = dtype.row_bytes(cols)?;
        let whole_heads = interleaved.is_none_or(|dim| dim > 0 && dim.is_multiple_of(2) && rows.is_multiple_of(dim));
        (row_bytes.checked_mul(rows)? == data.len() && whole_heads).then_some(Self {
            dtype,
            rows,
            cols,
            data,
            row_bytes,
            interleaved,
            first: 0,
            skip: 0,
            stride: row_bytes,
        })
    }

    /// Some rows and columns of it; `None` where the columns are not whole blocks of the format.
    ///
    /// # Panics
    /// If they are outside.
    pub fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Self> {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "{rows:?} x {cols:?} of {} x {}", self.rows, self.cols);
        let (skip, row_bytes) = (self.dtype.row_bytes(cols.start)?, self.dtype.row_bytes(cols.len())?);
        Some(Self {
            rows: rows.len(),
            cols: cols.len(),
            row_bytes,
            first: self.first + rows.start,
            skip: self.skip + skip,
            ..*self
        })
    }

    /// The stored bytes of row `i` in Hugging Face's order.
    ///
    /// GGUF stores the rows of a query or key head so that rotated pairs are neighbours: there,
    /// row `j` of a head's lower half is row `2j`, and of its upper half `2j + 1`. That is undone
    /// here.
    ///
    /// # Panics
    /// If `i` is not below `rows`.
    pub fn row(&self, i: usize) -> &'a [u8] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let i = self.first + i;
        let stored = match self.interleaved {
            None => i,
            Some(dim) => {
                let (head, within) = (i / dim * dim, i % dim);
                head + 2 * (within % (dim / 2)) + within / (dim / 2)
            }
        };
        &self.data[stored * self.stride + self.skip..][..self.row_bytes]
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Bytes of the tensor.
    pub fn num_bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Row `i` as numbers; `out` has `cols` values.
    pub fn read_row(&self, i: usize, out: &mut [f32]) {
        dequantize_row(self.dtype, self.row(i), out);
    }

    /// All numbers, row by row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (i, row) in out.chunks_exact_mut(self.cols).enumerate() {
            self.read_row(i, row);
        }
        out
    }
}
