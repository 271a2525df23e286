//! Attention and the cache against plain arithmetic in f64, every level against the scalar one bit by bit, for
//! every type of cache.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::config::{LlamaConfig, RopeScaling};
use crate::model::rope::inverse_frequencies;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::level::Level;
use crate::ops::cpu::rope::{RopeTable, Token, rope_and_write};

const KINDS: [KvType; 3] = [KvType::F32, KvType::BF16, KvType::Int8];

fn config(head_dim: usize, kv_heads: usize, group: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32,
        hidden_size: 32,
        intermediate_size: 32,
        num_layers: 2,
        num_heads: kv_heads * group,
        num_kv_heads: kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        max_position_embeddings: 1024,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

/// One sequence in layer 1 of a pool: rows of q, k and v, already rotated once written.
struct Case {
    config: LlamaConfig,
    level: Level,
    pool: KvPool,
    table: RopeTable,
    blocks: Vec<BlockId>,
    qkv: Buffer<f32>,
    len: usize,
}

impl Case {
    /// A pool that was used before, for numbers that are not finite.
    fn new(config: &LlamaConfig, kind: KvType, level: Level, len: usize) -> Self {
        let blocks = len.div_ceil(BLOCK_SIZE);
        let stride = config.q_size() + 2 * config.kv_size();
        let mut case = Self {
            pool: KvPool::new(config, kind, blocks + 1),
            table: RopeTable::new(&inverse_frequencies(config), 1024),
            // Backwards, and never block 0.
            blocks: (1..=blocks as u32).rev().map(BlockId).collect(),
            qkv: Buffer::zeroed(blocks * BLOCK_SIZE * stride),
            len: blocks * BLOCK_SIZE,
            config: config.clone(),
            level,
        };
        case.qkv.fill(f32::NAN);
        case.write();
        case.len = len;
        case
    }

    fn stride(&self) -> usize {
        self.config.q_size() + 2 * self.config.kv_size()
    }

    fn write(&mut self) {
        for position in 0..self.len {
            let token = Token {
                table: &self.table,
                pool: &self.pool,
                layer: 1,
                qkv: self.qkv.as_ptr_shared().wrapping_add(position * self.stride()),
                heads: self.config.num_heads,
                kv_heads: self.config.num_kv_heads,
                position,
                block: self.blocks[position / BLOCK_SIZE],
            };
            // SAFETY: the row and the block exist, and nobody else uses them.
            unsafe { rope_and_write(self.level, token) };
        }
    }

    fn fill(&mut self, f: impl Fn(usize, usize) -> f32) {
        let stride = self.stride();
        for (position, row) in self.qkv.chunks_exact_mut(stride).take(self.len).enumerate() {
            row.iter_mut().enumerate().for_each(|(i, x)| *x = f(position, i));
        }
        self.write();
    }

    /// `[len][q_size]`, computed `rows` queries at a time.
    fn attend(&self, rows: usize) -> Vec<f32> {
        let group = self.config.num_heads / self.config.num_kv_heads;
        let width = self.config.q_size();
        let mut out = vec![0f32; self.len * width];
        let mut scratch = vec![f32::NAN; scratch_len(group, self.pool.padded_dim)];
        let args = Args {
            pool: &self.pool,
            layer: 1,
            qkv: self.qkv.as_ptr(),
            qkv_stride: self.stride(),
            out: out.as_mut_ptr(),
            out_stride: width,
            group,
            partials: std::ptr::null_mut(),
        };
        for from in (0..self.len).step_by(rows) {
            let rows = rows.min(self.len - from);
            for head in 0..self.config.num_kv_heads {
                let partitions = (0, (from + rows).div_ceil(PARTITION));
                let item = Item { token: from, rows, position: from, head, partitions, table: 0, slot: None };
                // SAFETY: rows, blocks and scratch are as the item says.
                unsafe { attend(self.level, &args, &item, &self.blocks, scratch.as_mut_ptr()) };
            }
        }
        out
    }

    /// Keys or values of a head as the pool has them.
    fn stored(&self, head: usize, key: bool) -> Vec<Vec<f32>> {
        let at = |p: usize| self.pool.copy_out(1, self.blocks[p / BLOCK_SIZE], head, p % BLOCK_SIZE, key);
        (0..self.len).map(at).collect()
    }

    /// What was to be stored: the row's numbers, keys rotated.
    fn meant(&self, head: usize, key: bool) -> Vec<&[f32]> {
        let dim = self.config.head_dim;
        let from = self.config.q_size() + if key { 0 } else { self.config.kv_size() } + head * dim;
        self.qkv.chunks_exact(self.stride()).take(self.len).map(|row| &row[from..from + dim]).collect()
    }

    /// Attention over what the pool holds, in f64.
    fn plainly(&self) -> Vec<f64> {
        let (dim, group) = (self.config.head_dim, self.config.num_heads / self.config.num_kv_heads);
        let mut out = vec![0f64; self.len * self.config.q_size()];
        for head in 0..self.config.num_kv_heads {
            let (keys, values) = (self.stored(head, true), self.stored(head, false));
            for position in 0..self.len {
                for h in head * group..(head + 1) * group {
                    let q = &self.qkv[position * self.stride() + h * dim..][..dim];
                    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                    let scores: Vec<f64> = keys[..=position].iter().map(|k| dot(k)).collect();
                    let top = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for (w, v) in weights.iter().zip(&values) {
                        for (d, v) in v.iter().enumerate() {
                            out[position * self.config.q_size() + h * dim + d] += w / total * f64::from(*v);
                        }
                    }
                }
            }
        }
        out
    }
}

/// In `[-1, 1)`, different everywhere.
fn noise(a: usize, b: usize) -> f32 {
    let mut x = (a as u64) << 32 | b as u64;
    x = (x ^ (x >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn equals_plain_arithmetic_at_every_shape_and_all_levels_agree() {
    let shapes = [(64, 3, 3), (80, 2, 1), (96, 1, 5), (112, 1, 7), (128, 2, 4), (20, 1, 13), (6, 2, 2), (48, 1, 6)];
    for (dim, kv_heads, group) in shapes {
        let config = config(dim, kv_heads, group);
        for kind in KINDS {
            let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
            for level in Level::available() {
                // Past one partition, and ending inside a block.
                let mut case = Case::new(&config, kind, level, 273);
                case.fill(|p, i| 2.0 * noise(p, i));
                let out = case.attend((QUERIES / group).max(1));
                assert_eq!(bits(&out), bits(&case.attend(1)), "{kind:?} {dim} {level}: rows together");
                let stored: Vec<u32> =
                    (0..kv_heads).flat_map(|h| bits(&[case.stored(h, true), case.stored(h, false)].concat().concat())).collect();
                match &first {
                    None => {
                        for (ours, plain) in out.iter().zip(case.plainly()) {
                            assert!((f64::from(*ours) - plain).abs() < 1e-5, "{kind:?} {dim}: {ours} {plain}");
                        }
                        first = Some((bits(&out), stored));
                    }
                    Some(first) => assert!(*first == (bits(&out), stored), "{kind:?} {dim} {level}"),
                }
            }
        }
    }
}

/// Every kind of row that a scale must hold: outliers, zeros, denormals, the ends of f32.
#[test]
fn int8_keeps_each_number_within_half_a_step_of_its_tokens_largest() {
    let config = config(80, 2, 3);
    let kind = |p: usize, i: usize| {
        let x = noise(p, i);
        match p % 9 {
            0 => 0.0,
            1 => x,
            2 if i % 17 == 3 => 1e4 * x,
            3 => 1e30 * x,
            4 => 1e-28 * x,
            5 => 1e-41 * x,
            6 => -0.0,
            7 if i % 80 == 5 => 1e37,
            8 => x * 1e-33,
            _ => x,
        }
    };
    let mut first = None;
    for level in Level::available() {
        let mut case = Case::new(&config, KvType::Int8, level, 45);
        case.fill(kind);
        for head in 0..2 {
            for key in [true, false] {
                for (stored, meant) in case.stored(head, key).iter().zip(case.meant(head, key)) {
                    let top = meant.iter().map(|x| x.abs()).fold(0.0, f32::max);
                    let step = f64::from(top) / 127.0;
                    for (s, m) in stored.iter().zip(meant) {
                        let error = (f64::from(*s) - f64::from(*m)).abs();
                        assert!(error <= 0.501 * step || top <= 1e-30, "{m} stored as {s}, largest {top}");
                        assert!(top > 1e-30 || *s == 0.0, "{m} stored as {s}");
                    }
                    assert!(stored.iter().map(|x| x.abs()).fold(0.0, f32::max) >= top * 0.999 || top <= 1e-30);
                }
            }
        }
        let out: Vec<Vec<u32>> =
            (0..2).flat_map(|h| [case.stored(h, true), case.stored(h, false)]).flatten().map(|x| bits(&x)).collect();
        assert_eq!(&out, first.get_or_insert_with(|| out.clone()), "{level}");
    }
}

/// A number that is not finite reaches its own sequence's later positions, as in a cache of floats, and no earlier
/// ones; a pool full of such numbers does not reach a new sequence ([`Case::new`] starts with one).
#[test]
fn what_is_not_finite_stays_where_it_is() {
    let config = config(64, 1, 2);
    for kind in KINDS {
        for level in Level::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut case = Case::new(&config, kind, level, 50);
                case.fill(|p, i| if p == 40 && i == config.q_size() + config.kv_size() + 3 { bad } else { noise(p, i) });
                let out = case.attend(1);
                let finite = |p: usize| out[p * 128..(p + 1) * 128].iter().all(|x| x.is_finite());
                assert!((0..40).all(finite), "{kind:?} {level} {bad}");
                assert!((40..50).all(|p| !finite(p)), "{kind:?} {level} {bad}");
            }
        }
    }
}
