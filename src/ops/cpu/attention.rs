//! Attention over the paged pool, in place.
//!
//! A query's result is a fixed computation over absolute positions: partitions of [`PARTITION`] positions, each
//! with its own softmax, joined in ascending order. So it does not depend on how the prompt was chunked, on
//! who else is in the batch, on how many threads there are, or on whether a partition was computed by
//! one worker ([`attend`]) or several ([`attend`] into slots, then [`join`]).

use super::kv::{HeadPtr, KvPool, KvType};
use super::simd::{Simd, multiversion, step};
use crate::engine::{BLOCK_SIZE, BlockId};

/// Positions whose softmax is computed in one piece; a multiple of the block size.
pub(crate) const PARTITION: usize = 256;
/// Query vectors (rows × grouped heads) of a work item, where the group is not larger still.
pub(crate) const QUERIES: usize = 12;

/// What every item of a layer shares.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    pub(crate) pool: &'a KvPool,
    pub(crate) layer: usize,
    /// `[T, stride]`: rotated and scaled queries first.
    pub(crate) qkv: *const f32,
    pub(crate) qkv_stride: usize,
    /// `[T, stride]`.
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Query heads for each KV head.
    pub(crate) group: usize,
    /// `[slot][group][padded_dim + 2]`: unjoined partitions.
    pub(crate) partials: *mut f32,
}

/// A piece of work: `rows` consecutive queries of one sequence, one KV head, some partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    /// Index of the first query in the batch.
    pub(crate) token: usize,
    pub(crate) rows: usize,
    /// Its absolute position.
    pub(crate) position: usize,
    pub(crate) head: usize,
    pub(crate) partitions: (usize, usize),
    /// Start of the sequence's block table in the batch's blocks.
    pub(crate) table: usize,
    /// Where to leave the partition unjoined (one row, one partition).
    pub(crate) slot: Option<usize>,
}

/// Floats of scratch memory that a worker needs.
pub(crate) fn scratch_len(group: usize, padded_dim: usize) -> usize {
    QUERIES.max(group) * (PARTITION + 2 * padded_dim + 4)
}

/// [`KvType`] as a constant of the kernels.
const F32: u8 = 0;
const BF16: u8 = 1;
const INT8: u8 = 2;

const fn bytes(kind: u8) -> usize {
    match kind {
        F32 => 4,
        BF16 => 2,
        _ => 1,
    }
}

/// Sixteen numbers of the pool, unscaled.
#[inline(always)]
unsafe fn load_kv<S: Simd, const KIND: u8>(base: *const u8, i: usize) -> S::F {
    // SAFETY: the caller's index is inside the block.
    unsafe {
        match KIND {
            F32 => S::load(base.cast::<f32>().add(i)),
            BF16 => S::load_bf16(base.cast::<u16>().add(i)),
            _ => S::load_i8(base.cast::<i8>().add(i)),
        }
    }
}

/// Scores of `Q` queries with the 32 keys of a block.
#[inline(always)]
unsafe fn scores<S: Simd, const KIND: u8, const Q: usize>(
    HeadPtr { keys, scales, .. }: HeadPtr,
    dim: usize,
    queries: [*const f32; Q],
    out: *mut f32,
    next: Option<*const u8>,
) {
    let row = BLOCK_SIZE * bytes(KIND);
    // SAFETY: `keys` is `[dim][32]`, `scales` begins with 32 of them, each query `[dim]`, `out` has rows of `PARTITION`;
    // `next`, the next block's keys, is only fetched ahead.
    unsafe {
        let mut low = [S::splat(0.0); Q];
        let mut high = [S::splat(0.0); Q];
        for d in 0..dim {
            if let Some(next) = next {
                S::prefetch(next.wrapping_add(d * row), row);
            }
            let k0 = load_kv::<S, KIND>(keys, d * BLOCK_SIZE);
            let k1 = load_kv::<S, KIND>(keys, d * BLOCK_SIZE + 16);
            for i in 0..Q {
                let x = S::splat(*queries[i].add(d));
                low[i] = S::fma(k0, x, low[i]);
                high[i] = S::fma(k1, x, high[i]);
            }
        }
        if KIND == INT8 {
            let (s0, s1) = (S::load(scales), S::load(scales.add(16)));
            for i in 0..Q {
                low[i] = S::mul(low[i], s0);
                high[i] = S::mul(high[i], s1);
            }
        }
        for i in 0..Q {
            S::store(out.add(i * PARTITION), low[i]);
            S::store(out.add(i * PARTITION + 16), high[i]);
        }
    }
}

/// `out[q][d0..d0 + 16 D] = Σ_t p[q][t] · v[t][d0..]` over `tokens` positions of a partition, `v` unscaled.
#[inline(always)]
unsafe fn weigh<S: Simd, const KIND: u8, const Q: usize, const D: usize>(
    args: &Args<'_>,
    table: &[BlockId],
    head: usize,
    tokens: usize,
    p: *const f32,
    out: *mut f32,
    d0: usize,
    is_first: bool,
) {
    // SAFETY: the table covers `tokens`; `p` has rows of `PARTITION`, `out` of `padded_dim`.
    unsafe {
        let padded = args.pool.padded_dim;
        let mut acc = [[S::splat(0.0); D]; Q];
        for (b, block) in table[..tokens.div_ceil(BLOCK_SIZE)].iter().enumerate() {
            let values = args.pool.head(args.layer, *block, head).values;
            // Blocks lie apart: the processor does not foresee where the next one is.
            let next = table.get(b + 1).filter(|_| is_first).map(|next| args.pool.head(args.layer, *next, head).values);
            for t in 0..BLOCK_SIZE.min(tokens - b * BLOCK_SIZE) {
                if let Some(next) = next {
                    S::prefetch(next.wrapping_add((t * padded + d0) * bytes(KIND)), D * 16 * bytes(KIND));
                }
                let mut v = [S::splat(0.0); D];
                for j in 0..D {
                    v[j] = load_kv::<S, KIND>(values, t * padded + d0 + j * 16);
                }
                for i in 0..Q {
                    let x = S::splat(*p.add(i * PARTITION + b * BLOCK_SIZE + t));
                    for j in 0..D {
                        acc[i][j] = S::fma(v[j], x, acc[i][j]);
                    }
                }
            }
        }
        for i in 0..Q {
            for j in 0..D {
                S::store(out.add(i * padded + d0 + j * 16), acc[i][j]);
            }
        }
    }
}

/// Calls `$body` with a constant `$q` queries at a time.
macro_rules! by_queries {
    ($s:ty, $count:expr, |$from:ident, $q:ident| $body:block) => {{
        let mut $from = 0;
        while $from < $count {
            match ($count - $from).min(<$s>::QUERIES) {
                12 => step!($from, $q = 12, $body),
                6..=11 => step!($from, $q = 6, $body),
                4..=5 => step!($from, $q = 4, $body),
                3 => step!($from, $q = 3, $body),
                2 => step!($from, $q = 2, $body),
                _ => step!($from, $q = 1, $body),
            }
        }
    }};
}

/// `e^x` of one number, as the lanes compute it.
#[inline(always)]
unsafe fn exp1<S: Simd>(x: f32) -> f32 {
    // SAFETY: the store writes 16 floats.
    unsafe {
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), S::exp(S::splat(x)));
        lanes[0]
    }
}

/// Joins one more partition (`m`, `l`, `acc[padded]`) to a query's state.
#[inline(always)]
unsafe fn join_partition<S: Simd>(state: (*mut f32, *mut f32), m: f32, l: f32, acc: *const f32, padded: usize) {
    // SAFETY: the caller's pointers: (m, l) and `padded` floats.
    unsafe {
        let (ml, total) = state;
        let (m0, l0) = (*ml, *ml.add(1));
        let top = if m0 > m { m0 } else { m };
        let (a, b) = (exp1::<S>(m0 - top), exp1::<S>(m - top));
        *ml = top;
        *ml.add(1) = l0 * a + l * b;
        for d in (0..padded).step_by(16) {
            let x = S::mul(S::load(total.add(d)), S::splat(a));
            S::store(total.add(d), S::fma(S::load(acc.add(d)), S::splat(b), x));
        }
    }
}

/// Writes a query's result: `acc / l`.
#[inline(always)]
unsafe fn finish<S: Simd>(args: &Args<'_>, token: usize, head: usize, l: f32, acc: *mut f32) {
    // SAFETY: `acc` holds `padded_dim` floats, the output row this head's `head_dim`.
    unsafe {
        for d in (0..args.pool.padded_dim).step_by(16) {
            S::store(acc.add(d), S::div(S::load(acc.add(d)), S::splat(l)));
        }
        let dim = args.pool.head_dim;
        std::ptr::copy_nonoverlapping(acc, args.out.add(token * args.out_stride + head * dim), dim);
    }
}

#[inline(always)]
unsafe fn attend_as<S: Simd, const KIND: u8>(args: &Args<'_>, item: &Item, blocks: &[BlockId], scratch: *mut f32) {
    // SAFETY: scratch has `scratch_len` floats; the item's tokens, head and table are inside the batch's.
    unsafe {
        let (dim, padded, group) = (args.pool.head_dim, args.pool.padded_dim, args.group);
        let count = item.rows * group;
        let p = scratch;
        let acc = p.add(count * PARTITION);
        let total = acc.add(count * padded);
        let ml = total.add(count * padded);
        let query =
            |i: usize| args.qkv.add((item.token + i / group) * args.qkv_stride + (item.head * group + i % group) * dim);
        let last = item.position + item.rows;

        for part in item.partitions.0..item.partitions.1 {
            let base = part * PARTITION;
            let tokens = PARTITION.min(last - base);
            let table = &blocks[item.table + base / BLOCK_SIZE..][..tokens.div_ceil(BLOCK_SIZE)];
            for (b, block) in table.iter().enumerate() {
                let keys = args.pool.head(args.layer, *block, item.head);
                let next = table.get(b + 1).map(|next| args.pool.head(args.layer, *next, item.head).keys.cast_const());
                by_queries!(S, count, |i, Q| {
                    let queries: [*const f32; Q] = std::array::from_fn(|j| query(i + j));
                    scores::<S, KIND, Q>(
                        keys,
                        dim,
                        queries,
                        p.add(i * PARTITION + b * BLOCK_SIZE),
                        next.filter(|_| i == 0),
                    );
                });
            }
            let width = tokens.next_multiple_of(16);
            for i in 0..count {
                // Tokens of this partition that the query sees; none if the partition begins after it.
                let seen = (item.position + i / group + 1).saturating_sub(base).min(PARTITION);
                let p = p.add(i * PARTITION);
                for t in seen..width {
                    *p.add(t) = f32::NEG_INFINITY;
                }
                let mut top = S::splat(f32::NEG_INFINITY);
                for t in (0..width).step_by(16) {
                    top = S::max(top, S::load(p.add(t)));
                }
                let top = S::max_lane(top);
                for t in (0..width).step_by(16) {
                    S::store(p.add(t), S::exp(S::sub(S::load(p.add(t)), S::splat(top))));
                }
                for t in seen..width {
                    *p.add(t) = 0.0;
                }
                let mut sum = S::splat(0.0);
                for t in (0..seen).step_by(16) {
                    sum = S::add(sum, S::load(p.add(t)));
                }
                *ml.add(4 * i + 2) = top;
                *ml.add(4 * i + 3) = S::sum(sum);
                if KIND == INT8 {
                    // The values' scales go into the probabilities. What the query does not see stays zero,
                    // whatever an unwritten slot has for a scale.
                    for t in (0..width).step_by(16) {
                        let block = table[t / BLOCK_SIZE];
                        let scales = args.pool.head(args.layer, block, item.head).scales;
                        let scales = S::load(scales.add(BLOCK_SIZE + t % BLOCK_SIZE));
                        S::store(p.add(t), S::mul(S::load(p.add(t)), scales));
                    }
                    for t in seen..width {
                        *p.add(t) = 0.0;
                    }
                }
            }
            by_queries!(S, count, |i, Q| {
                let (p, acc) = (p.add(i * PARTITION), acc.add(i * padded));
                let mut d = 0;
                while d < padded {
                    // Many queries fill the registers with fewer dimensions.
                    d += match (padded - d) / 16 {
                        4.. if Q < 12 => {
                            weigh::<S, KIND, Q, 4>(args, table, item.head, tokens, p, acc, d, i == 0);
                            64
                        }
                        2.. => {
                            weigh::<S, KIND, Q, 2>(args, table, item.head, tokens, p, acc, d, i == 0);
                            32
                        }
                        _ => {
                            weigh::<S, KIND, Q, 1>(args, table, item.head, tokens, p, acc, d, i == 0);
                            16
                        }
                    };
                }
            });
            for i in 0..count {
                let (m, l) = (*ml.add(4 * i + 2), *ml.add(4 * i + 3));
                let acc = acc.add(i * padded);
                if let Some(slot) = item.slot {
                    let to = args.partials.add((slot * group + i) * (padded + 2));
                    (*to, *to.add(1)) = (m, l);
                    std::ptr::copy_nonoverlapping(acc, to.add(2), padded);
                } else if part == 0 {
                    (*ml.add(4 * i), *ml.add(4 * i + 1)) = (m, l);
                    std::ptr::copy_nonoverlapping(acc, total.add(i * padded), padded);
                } else if item.position + i / group >= base {
                    join_partition::<S>((ml.add(4 * i), total.add(i * padded)), m, l, acc, padded);
                }
            }
        }
        if item.slot.is_none() {
            for i in 0..count {
                let (token, head) = (item.token + i / group, item.head * group + i % group);
                finish::<S>(args, token, head, *ml.add(4 * i + 1), total.add(i * padded));
            }
        }
    }
}

#[inline(always)]
unsafe fn attend_any<S: Simd>(args: &Args<'_>, item: &Item, blocks: &[BlockId], scratch: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        match args.pool.kind {
            KvType::F32 => attend_as::<S, F32>(args, item, blocks, scratch),
            KvType::BF16 => attend_as::<S, BF16>(args, item, blocks, scratch),
            KvType::Int8 => attend_as::<S, INT8>(args, item, blocks, scratch),
        }
    }
}

/// Joins the `parts` slots from `slot` on of one row and KV head; the first slot's memory is the state.
#[inline(always)]
unsafe fn join_any<S: Simd>(args: &Args<'_>, token: usize, head: usize, slot: usize, parts: usize) {
    // SAFETY: the slots were written by `attend` before a barrier.
    unsafe {
        let padded = args.pool.padded_dim;
        for i in 0..args.group {
            let at = |part: usize| args.partials.add(((slot + part) * args.group + i) * (padded + 2));
            for part in 1..parts {
                let next = at(part);
                join_partition::<S>((at(0), at(0).add(2)), *next, *next.add(1), next.add(2), padded);
            }
            finish::<S>(args, token, head * args.group + i, *at(0).add(1), at(0).add(2));
        }
    }
}

multiversion! {
    /// Computes an item: its rows' outputs, or its partition into a slot.
    pub(crate) unsafe fn attend = attend_any(args: &Args<'_>, item: &Item, blocks: &[BlockId], scratch: *mut f32);
    /// Joins what [`attend`] left in slots.
    pub(crate) unsafe fn join = join_any(args: &Args<'_>, token: usize, head: usize, slot: usize, parts: usize);
}

#[cfg(test)]
mod tests;
