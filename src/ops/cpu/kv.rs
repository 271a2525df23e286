//! The paged KV pool in memory.
//!
//! For each layer, block and KV head: keys as `[head_dim][32]` (tokens across lanes), then values as
//! `[32][head_dim padded to 16]` (dimensions across lanes). Kernels read it in place.
//!
//! [`KvType::Int8`] keeps a scale for each token's key and another for its value, behind the values: `[32]` f32 of
//! the keys, then `[32]` f32 of the values. A number is its integer times its token's scale, so a token's bytes
//! depend on that token alone. Only the stored side is integer: the kernels widen it to f32 in registers and
//! multiply scores and probabilities by the scales, so queries and probabilities lose nothing.

use super::buffer::Buffer;
use crate::engine::{BLOCK_SIZE, BlockId};
use crate::model::config::LlamaConfig;

/// Element type of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    BF16,
    /// 1 byte in `-127..=127`, and a scale for each token, KV head, and key or value: its largest magnitude / 127.
    Int8,
}

impl KvType {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of the keys, the values and both scales of one head in one block.
    fn head_bytes(self, head_dim: usize) -> (usize, usize, usize) {
        let scales = if self == Self::Int8 { 2 * BLOCK_SIZE * size_of::<f32>() } else { 0 };
        (BLOCK_SIZE * head_dim * self.bytes(), BLOCK_SIZE * head_dim.next_multiple_of(16) * self.bytes(), scales)
    }

    /// The name that `--kv-cache-dtype` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Keys and values of all blocks.
pub struct KvPool {
    pub(crate) kind: KvType,
    pub(crate) head_dim: usize,
    pub(crate) padded_dim: usize,
    blocks: usize,
    kv_heads: usize,
    data: Buffer<u8>,
}

/// A head's keys and values in one block.
#[derive(Clone, Copy)]
pub(crate) struct HeadPtr {
    pub(crate) keys: *mut u8,
    pub(crate) values: *mut u8,
    /// `[32]` of the keys, `[32]` of the values; only [`KvType::Int8`] has them.
    pub(crate) scales: *mut f32,
}

impl KvPool {
    /// A pool of `blocks` blocks.
    pub fn new(config: &LlamaConfig, kind: KvType, blocks: usize) -> Self {
        Self {
            kind,
            head_dim: config.head_dim,
            padded_dim: config.head_dim.next_multiple_of(16),
            blocks,
            kv_heads: config.num_kv_heads,
            data: Buffer::zeroed(blocks * Self::block_bytes(config, kind)),
        }
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(config: &LlamaConfig, kind: KvType) -> usize {
        let (keys, values, scales) = kind.head_bytes(config.head_dim);
        config.num_layers * config.num_kv_heads * (keys + values + scales)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    #[inline(always)]
    pub(crate) fn head(&self, layer: usize, block: BlockId, head: usize) -> HeadPtr {
        let block = block.0 as usize;
        assert!(block < self.blocks, "block {block} of a pool of {}", self.blocks);
        let (keys, values, scales) = self.kind.head_bytes(self.head_dim);
        let bytes = keys + values + scales;
        let at = ((layer * self.blocks + block) * self.kv_heads + head) * bytes;
        debug_assert!(at + bytes <= self.data.len());
        let base = self.data.as_ptr_shared().wrapping_add(at);
        let (values, scales) = (base.wrapping_add(keys), base.wrapping_add(keys + values));
        // Keys and values are multiples of 32 bytes, the pool is aligned to 64: scales are aligned.
        HeadPtr { keys: base, values, scales: scales.cast() }
    }

    /// Copies one token's key (`key` true) or value out as floats: for tests and inspection.
    pub fn copy_out(&self, layer: usize, block: BlockId, head: usize, slot: usize, key: bool) -> Vec<f32> {
        assert!(slot < BLOCK_SIZE && head < self.kv_heads, "slot and head are inside a block");
        let at = self.head(layer, block, head);
        (0..self.head_dim)
            .map(|d| {
                let (base, i) =
                    if key { (at.keys, d * BLOCK_SIZE + slot) } else { (at.values, slot * self.padded_dim + d) };
                // SAFETY: inside the head's part of the block; `&self` and the pool's owner see to it that no
                // kernel runs meanwhile.
                unsafe {
                    match self.kind {
                        KvType::F32 => base.cast::<f32>().add(i).read(),
                        KvType::BF16 => f32::from_bits((base.cast::<u16>().add(i).read() as u32) << 16),
                        KvType::Int8 => {
                            let scale = at.scales.add(slot + if key { 0 } else { BLOCK_SIZE }).read();
                            f32::from(base.cast::<i8>().add(i).read()) * scale
                        }
                    }
                }
            })
            .collect()
    }
}
