//! What each rank has of a model that several train together, and how they exchange it.
//!
//! Tensor-parallel ranks hold parts of the matrices (`Stack`). Ranks of a data group hold the same parts and compute
//! different examples; each keeps AdamW's means of its share of every parameter's numbers, and changes those (ZeRO-1,
//! Rajbhandari et al., arXiv 1910.02054): gradients are summed share by share, and weights gathered after the step.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::DType;
use half::bf16;

use super::model::stack::Stack;
use super::model::{Gradients, Parameter};
use super::optimizer::Owner;
use crate::ops::parameter::{edit, edit_bf16, read, read_bf16};
use crate::parallel::{CommError, Ranks};

/// Numbers could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Other ranks are lost.
    #[error(transparent)]
    Ranks(#[from] CommError),
    /// Tensors of another kind.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A rank's part of a model's parameters.
pub struct Shards {
    /// The groups it is in.
    pub ranks: Ranks,
    /// By the parameters' order.
    stacks: Vec<Stack>,
}

impl Shards {
    /// Of parameters that are this rank's parts.
    pub fn new(ranks: Ranks, parameters: &[Parameter]) -> Self {
        let of = |p: &Parameter| Stack::new(&p.tensors, p.var.elem_count(), ranks.layout.tensor);
        let stacks = parameters.iter().map(of).collect();
        Self { ranks, stacks }
    }

    /// Whether there is more than one rank.
    pub fn are_several(&self) -> bool {
        self.ranks.layout.ranks() > 1
    }

    /// Whether this rank has a part of the first copy of the model: its data group's first.
    pub fn is_of_first_copy(&self) -> bool {
        self.ranks.data.rank() == 0
    }

    /// What the optimizer of this rank does.
    pub fn owner(&self) -> Owner {
        Owner { data: self.ranks.data.share(), tensor: self.ranks.tensor.share() }
    }

    /// The numbers of a parameter whose means this rank keeps.
    pub fn part(&self, parameter: &Parameter) -> Range<usize> {
        self.owner().data.of(parameter.var.elem_count())
    }

    /// Numbers of a parameter, whole.
    pub fn count(&self, at: usize) -> usize {
        self.stacks[at].count()
    }

    /// Numbers of all parameters, whole.
    pub fn trained(&self) -> u64 {
        self.stacks.iter().map(|stack| stack.count() as u64).sum()
    }

    /// The shape of a parameter, whole.
    pub fn shape(&self, at: usize, parameter: &Parameter) -> Vec<usize> {
        match parameter.var.rank() {
            1 => parameter.var.dims().to_vec(),
            _ => self.stacks[at].shape().to_vec(),
        }
    }

    /// Parameters in a row that are exchanged at once, as an exchange takes time however few numbers it has.
    fn buckets(&self) -> Vec<Range<usize>> {
        /// Numbers, unless a single parameter has more.
        const BUCKET: usize = 1 << 20;
        let (mut buckets, mut size) = (Vec::<Range<usize>>::new(), 0);
        for (i, stack) in self.stacks.iter().enumerate() {
            size += stack.count_here();
            match buckets.last_mut() {
                Some(bucket) if size <= BUCKET => bucket.end = i + 1,
                _ => {
                    buckets.push(i..i + 1);
                    size = stack.count_here();
                }
            }
        }
        buckets
    }

    /// Sums the gradients of all examples: each rank gets its part of every parameter's.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn sum(&self, gradients: &mut Gradients) -> Result<(), ShardError> {
        if self.ranks.layout.data == 1 {
            return Ok(());
        }
        for bucket in self.buckets() {
            if bucket.len() == 1 {
                let mut done = Ok(());
                gradients.edit(bucket.start, |g| done = self.ranks.data.reduce_scatter(g))?;
                done?;
                continue;
            }
            let mut all = vec![Vec::new(); bucket.len()];
            for (copy, i) in all.iter_mut().zip(bucket.clone()) {
                gradients.edit(i, |g| *copy = g.to_vec())?;
            }
            let mut slices: Vec<&mut [f32]> = all.iter_mut().map(Vec::as_mut_slice).collect();
            self.ranks.data.reduce_scatter_each(&mut slices)?;
            for (copy, i) in all.iter().zip(bucket) {
                gradients.edit(i, |g| g.copy_from_slice(copy))?;
            }
        }
        Ok(())
    }

    /// The Euclidean norm of all gradients together, the same on all ranks.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn norm(&self, gradients: &Gradients, parameters: &[Parameter]) -> Result<f64, ShardError> {
        let mut sum = 0.0;
        for (i, (parameter, stack)) in parameters.iter().zip(&self.stacks).enumerate() {
            // What every tensor-parallel rank has counts once.
            if self.ranks.tensor.rank() == 0 || !stack.is_whole() {
                sum += gradients.sum_of_squares(i, self.part(parameter))?;
            }
        }
        let mut sum = [sum];
        self.ranks.world.all_reduce_f64(&mut sum)?;
        Ok(sum[0].sqrt())
    }

    /// Gives all ranks of the data group the weights that each has changed.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn spread(&self, parameters: &[Parameter]) -> Result<(), ShardError> {
        if self.ranks.layout.data == 1 {
            return Ok(());
        }
        let data = &*self.ranks.data;
        for bucket in self.buckets() {
            let parameters = &parameters[bucket];
            if let [alone] = parameters
                && alone.var.dtype() == DType::F32
            {
                let mut done = Ok(());
                edit(alone.var.as_tensor(), |w| done = data.all_gather(w))?;
                done?;
                continue;
            }
            // Every BF16 is an F32.
            let mut all = parameters.iter().map(weights).collect::<candle_core::Result<Vec<_>>>()?;
            let mut slices: Vec<&mut [f32]> = all.iter_mut().map(Vec::as_mut_slice).collect();
            data.all_gather_each(&mut slices)?;
            for (parameter, wide) in parameters.iter().zip(all) {
                let tensor = parameter.var.as_tensor();
                match tensor.dtype() {
                    DType::BF16 => {
                        edit_bf16(tensor, |w| w.iter_mut().zip(wide).for_each(|(w, v)| *w = bf16::from_f32(v)))?;
                    }
                    _ => edit(tensor, |w| w.copy_from_slice(&wide))?,
                }
            }
        }
        Ok(())
    }

    /// Sums numbers of the ranks' examples.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn add<const N: usize>(&self, mut numbers: [f64; N]) -> Result<[f64; N], CommError> {
        self.ranks.data.all_reduce_f64(&mut numbers)?;
        Ok(numbers)
    }

    /// Tells all ranks what the first knows.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn agree(&self, known: bool) -> Result<bool, CommError> {
        let mut told = [f32::from(u8::from(known))];
        self.ranks.world.broadcast(0, &mut told)?;
        Ok(told[0] != 0.0)
    }

    /// Whether any rank says so.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn any(&self, here: bool) -> Result<bool, CommError> {
        let mut count = [f32::from(u8::from(here))];
        self.ranks.world.all_reduce(&mut count)?;
        Ok(count[0] != 0.0)
    }

    /// Parameter `at` as a whole, from this rank's numbers: on the ranks of the first copy. All of those call.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn whole(&self, at: usize, own: Vec<f32>) -> Result<Vec<f32>, ShardError> {
        match self.is_of_first_copy() {
            true => Ok(self.stacks[at].gather(own, &*self.ranks.tensor)?),
            false => Ok(Vec::new()),
        }
    }

    /// The same of numbers that the ranks of a data group have parts of. All ranks call.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn whole_of_parts(&self, at: usize, part: &[f32]) -> Result<Vec<f32>, ShardError> {
        let here = self.stacks[at].count_here();
        let mut own = vec![0.0; here];
        own[self.owner().data.of(here)].copy_from_slice(part);
        self.ranks.data.all_gather(&mut own)?;
        self.whole(at, own)
    }

    /// This rank's bytes of parameter `at`, from all of it.
    pub fn bytes<'a>(&self, at: usize, whole: &'a [u8]) -> Cow<'a, [u8]> {
        let stack = &self.stacks[at];
        if stack.is_whole() {
            return Cow::Borrowed(whole);
        }
        let width = whole.len() / stack.count().max(1);
        let mut bytes = Vec::with_capacity(stack.count_here() * width);
        for (here, there) in stack.runs(self.ranks.tensor.rank()) {
            bytes.extend_from_slice(&whole[there * width..][..here.len() * width]);
        }
        Cow::Owned(bytes)
    }
}

/// A parameter's numbers on this rank.
///
/// # Errors
/// It is neither F32 nor BF16.
pub fn weights(parameter: &Parameter) -> candle_core::Result<Vec<f32>> {
    let tensor = parameter.var.as_tensor();
    match tensor.dtype() {
        DType::BF16 => read_bf16(tensor, |w| w.iter().map(|v| v.to_f32()).collect()),
        _ => read(tensor, <[f32]>::to_vec),
    }
}
