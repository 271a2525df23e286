//! From an adapter's folder to what the executor computes with. Runs on any thread: the engine's is not held up.

use std::path::Path;
use std::sync::Arc;

use crate::engine::AdapterWeights;
use crate::model::config::LlamaConfig;
use crate::model::lora;
use crate::model::weights::{LoadError, Slice};
use crate::ops::cpu;

/// Reads, checks and packs an adapter of a model of this shape.
///
/// # Errors
/// As [`lora::Adapter::open`].
pub fn load(dir: &Path, config: &LlamaConfig, max_rank: usize) -> Result<Arc<AdapterWeights>, LoadError> {
    let adapter = lora::Adapter::open(dir, config, max_rank)?;
    Ok(Arc::new(cpu::lora::Adapter::pack(&adapter, config)))
}

/// An adapter cut over ranks: each one's part, in order.
pub struct Parts(pub Vec<Arc<AdapterWeights>>);

/// The same for ranks that hold these parts of a model of shape `config`.
///
/// # Errors
/// As [`lora::Adapter::open`].
pub fn load_parts(
    dir: &Path,
    config: &LlamaConfig,
    slices: &[Slice],
    max_rank: usize,
) -> Result<Arc<AdapterWeights>, LoadError> {
    let adapter = lora::Adapter::open(dir, config, max_rank)?;
    let part = |slice: &Slice| -> Arc<AdapterWeights> {
        Arc::new(cpu::lora::Adapter::pack(&adapter.slice(slice, config), &slice.shape(config)))
    };
    Ok(Arc::new(Parts(slices.iter().map(part).collect())))
}
