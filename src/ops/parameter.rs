//! What is trained, and its gradients.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, Device, Error, InplaceOp1, Layout, Result, Storage, Tensor, Var};
use half::bf16;

/// A checkpoint's tensor, or the rows of it that are trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Hugging Face's name.
    pub name: String,
    /// How many rows; a norm has one.
    pub rows: usize,
}

/// One variable: a tensor of the checkpoint, or several that are one matrix in memory (q, k, v; gate, up).
#[derive(Clone, Debug)]
pub struct Parameter {
    /// F32 or BF16, `[rows, cols]`; of a norm `[cols]`.
    pub var: Var,
    /// The tensors, in the order of their rows.
    pub tensors: Vec<Part>,
    /// Whether weight decay is for it: matrices, not norms.
    pub decay: bool,
}

/// One F32 tensor a parameter, in the same order.
#[derive(Debug)]
pub struct Gradients {
    tensors: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Zeros.
    pub fn new(parameters: &[Parameter]) -> Result<Self> {
        let zeros = |p: &Parameter| Tensor::zeros(p.var.shape(), candle_core::DType::F32, &Device::Cpu).map(Some);
        Ok(Self { tensors: parameters.iter().map(zeros).collect::<Result<_>>()? })
    }

    /// Sets all to 0.
    pub fn zero(&mut self) -> Result<()> {
        (0..self.tensors.len()).try_for_each(|i| self.edit(i, |g| g.fill(0.0)))
    }

    /// In the parameters' order.
    pub fn tensors(&self) -> &[Option<Tensor>] {
        &self.tensors
    }

    /// The sum of the squares of some numbers of gradient `i`; 0 if there is none.
    pub fn sum_of_squares(&self, i: usize, numbers: Range<usize>) -> Result<f64> {
        self.tensors[i].as_ref().map_or(Ok(0.0), |tensor| read(tensor, |g| sum_of_squares(&g[numbers])))
    }

    /// Multiplies all by `factor`.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        let factor = factor as f32;
        (0..self.tensors.len()).try_for_each(|i| self.edit(i, |g| g.iter_mut().for_each(|v| *v *= factor)))
    }

    /// Lets `f` change the numbers of gradient `i`, if it has any.
    pub fn edit(&mut self, i: usize, f: impl FnOnce(&mut [f32])) -> Result<()> {
        match &self.tensors[i] {
            None => Ok(()),
            Some(tensor) => edit(tensor, f),
        }
    }
}

/// Partial sums in sixteen lanes, pieces added in order: fast, and the same on every machine.
fn sum_of_squares(values: &[f32]) -> f64 {
    values
        .chunks(4096)
        .map(|piece| {
            let mut lanes = [0f32; 16];
            let mut rows = piece.chunks_exact(16);
            for row in rows.by_ref() {
                lanes.iter_mut().zip(row).for_each(|(l, v)| *l += v * v);
            }
            let rest: f32 = rows.remainder().iter().map(|v| v * v).sum();
            lanes.iter().map(|l| f64::from(*l)).sum::<f64>() + f64::from(rest)
        })
        .sum()
}

/// The numbers of a contiguous F32 tensor in the CPU's memory.
///
/// # Errors
/// It is something else.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) => Ok(f(&values[from..to])),
        _ => Err(not("F32")),
    }
}

/// Those of a BF16 one.
///
/// # Errors
/// As [`read`]'s.
pub fn read_bf16<R>(tensor: &Tensor, f: impl FnOnce(&[bf16]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::BF16(values)), Some((from, to))) => Ok(f(&values[from..to])),
        _ => Err(not("BF16")),
    }
}

/// Changes the numbers of a contiguous F32 tensor in the CPU's memory in place.
///
/// # Errors
/// As [`read`]'s.
pub fn edit(tensor: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    in_place(tensor, |storage, layout| match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => {
            f(&mut values[from..to]);
            Ok(())
        }
        _ => Err(not("F32")),
    })
}

/// Those of a BF16 one.
///
/// # Errors
/// As [`read`]'s.
pub fn edit_bf16(tensor: &Tensor, f: impl FnOnce(&mut [bf16])) -> Result<()> {
    in_place(tensor, |storage, layout| match (storage, layout.contiguous_offsets()) {
        (CpuStorage::BF16(values), Some((from, to))) => {
            f(&mut values[from..to]);
            Ok(())
        }
        _ => Err(not("BF16")),
    })
}

fn not(what: &str) -> Error {
    Error::Msg(format!("a contiguous {what} tensor in the CPU's memory is needed"))
}

fn in_place(tensor: &Tensor, f: impl FnOnce(&mut CpuStorage, &Layout) -> Result<()>) -> Result<()> {
    struct InPlace<F>(RefCell<Option<F>>);
    impl<F: FnOnce(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for InPlace<F> {
        fn name(&self) -> &'static str {
            "in-place"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            self.0.borrow_mut().take().map_or(Ok(()), |f| f(storage, layout))
        }
    }
    tensor.inplace_op1(&InPlace(RefCell::new(Some(f))))
}
