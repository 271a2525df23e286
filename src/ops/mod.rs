//! Tensor operations: number formats and kernels.

pub mod quant;
