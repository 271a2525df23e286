// Attention of single queries over the paged cache. Positions are cut into partitions at fixed places, whatever else is
// in the batch, and partitions are joined in order, so a row's bits depend on that row alone.
#include "cache.cuh"

constexpr u32 PARTITION = 256;
constexpr u32 ATTENTION_THREADS = 128;
// Queries of one KV head that a block takes together.
constexpr u32 GROUP = 8;
constexpr u32 MAX_DIM = 256;

struct AttentionArgs {
    const f32* qkv;        // [T, stride]: rotated and scaled queries first
    f32* out;              // [T, heads dim]
    f32* partials;         // [T, heads, parts, dim + 2]: maximum, sum, weighted values; unused if parts is 1
    const u32* positions;  // [T]: a row sees positions 0..=its own
    const u32* tables;     // [T]: where the row's block table begins in `blocks`
    const u32* blocks;
    Cache cache;
    u32 stride;
    u32 heads;
    u32 parts;  // partitions of the longest row
};

// Grid: rows, kv_heads x ceil(group / GROUP), parts.
template <int KIND> DEVICE void attention(const AttentionArgs& a) {
    __shared__ f32 queries[GROUP][MAX_DIM];
    __shared__ f32 p[GROUP][PARTITION];
    __shared__ f32 sums[GROUP][2];
    u32 row = blockIdx.x, part = blockIdx.z, dim = a.cache.dim;
    u32 seen = a.positions[row] + 1, base = part * PARTITION;
    if (base >= seen) return;
    u32 tokens = seen - base < PARTITION ? seen - base : PARTITION;
    u32 group = a.heads / a.cache.kv_heads, tiles = (group + GROUP - 1) / GROUP;
    u32 kv = blockIdx.y / tiles, first = blockIdx.y % tiles * GROUP;
    u32 count = group - first < GROUP ? group - first : GROUP;
    u32 head = kv * group + first, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32* table = a.blocks + a.tables[row] + base / BLOCK;

    for (u32 i = threadIdx.x; i < GROUP * dim; i += ATTENTION_THREADS) {
        u32 g = i / dim;
        queries[g][i % dim] = g < count ? a.qkv[(u64)row * a.stride + (u64)(head + g) * dim + i % dim] : 0.0f;
    }
    sync_block();

    // Scores: a warp a token, dimensions across lanes.
    for (u32 t = warp; t < tokens; t += ATTENTION_THREADS / WARP) {
        u64 slot = cache_slot(a.cache, table[t / BLOCK], kv, t % BLOCK);
        f32 dots[GROUP];
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) dots[g] = 0.0f;
        for (u32 d = lane; d < dim; d += WARP) {
            f32 k = cache_load<KIND>(a.cache.keys, slot * dim + d);
#pragma unroll
            for (u32 g = 0; g < GROUP; g++) dots[g] += k * queries[g][d];
        }
        f32 scale = KIND == KV_INT8 ? a.cache.key_scales[slot] : 1.0f;
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) {
            if (g < count) {
                f32 dot = warp_sum(dots[g]);
                if (lane == 0) p[g][t] = KIND == KV_INT8 ? dot * scale : dot;
            }
        }
    }
    sync_block();

    // Softmax of the partition: a warp a query. A comparison with NaN is false, so the sum is what carries it on.
    for (u32 g = warp; g < count; g += ATTENTION_THREADS / WARP) {
        f32 top = NEGATIVE_INFINITY;
        for (u32 t = lane; t < tokens; t += WARP) top = p[g][t] > top ? p[g][t] : top;
        top = warp_max(top);
        f32 sum = 0.0f;
        for (u32 t = lane; t < tokens; t += WARP) {
            f32 e = expf(p[g][t] - top);
            sum += e;
            if (KIND == KV_INT8) e *= a.cache.value_scales[cache_slot(a.cache, table[t / BLOCK], kv, t % BLOCK)];
            p[g][t] = e;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            sums[g][0] = top;
            sums[g][1] = sum;
        }
    }
    sync_block();

    // Values: dimensions across threads.
    for (u32 d = threadIdx.x; d < dim; d += ATTENTION_THREADS) {
        f32 acc[GROUP];
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) acc[g] = 0.0f;
        for (u32 t = 0; t < tokens; t++) {
            u64 slot = cache_slot(a.cache, table[t / BLOCK], kv, t % BLOCK);
            f32 v = cache_load<KIND>(a.cache.values, slot * dim + d);
#pragma unroll
            for (u32 g = 0; g < GROUP; g++)
                if (g < count) acc[g] += p[g][t] * v;
        }
#pragma unroll
        for (u32 g = 0; g < GROUP; g++) {
            if (g < count) {
                u64 at = (u64)row * a.heads + head + g;
                if (a.parts == 1) a.out[at * dim + d] = acc[g] / sums[g][1];
                else a.partials[(at * a.parts + part) * (dim + 2) + 2 + d] = acc[g];
            }
        }
    }
    if (a.parts > 1 && threadIdx.x < count * 2) {
        u32 g = threadIdx.x / 2;
        u64 at = (u64)row * a.heads + head + g;
        a.partials[(at * a.parts + part) * (dim + 2) + threadIdx.x % 2] = sums[g][threadIdx.x % 2];
    }
}

KERNEL(attention_f32, AttentionArgs, ATTENTION_THREADS, attention<KV_F32>(a))
KERNEL(attention_bf16, AttentionArgs, ATTENTION_THREADS, attention<KV_BF16>(a))
KERNEL(attention_int8, AttentionArgs, ATTENTION_THREADS, attention<KV_INT8>(a))

// Joins the partitions of a row and head. Grid: rows, heads. Only where parts is above 1.
DEVICE void join(const AttentionArgs& a) {
    u32 dim = a.cache.dim, parts = a.positions[blockIdx.x] / PARTITION + 1;
    u64 at = (u64)blockIdx.x * a.heads + blockIdx.y;
    const f32* from = a.partials + at * a.parts * (dim + 2);
    for (u32 d = threadIdx.x; d < dim; d += ATTENTION_THREADS) {
        f32 m = from[0], l = from[1], acc = from[2 + d];
        for (u32 part = 1; part < parts; part++) {
            const f32* next = from + (u64)part * (dim + 2);
            f32 top = next[0] > m ? next[0] : m;
            f32 x = expf(m - top), y = expf(next[0] - top);
            m = top;
            l = l * x + next[1] * y;
            acc = acc * x + next[2 + d] * y;
        }
        a.out[at * dim + d] = acc / l;
    }
}

KERNEL(attention_join, AttentionArgs, ATTENTION_THREADS, join(a))
