// Rotates queries and keys by position, and writes keys and values into the paged cache. Queries are also scaled by
// 1 / sqrt(dim), as attention wants them.
#include "cache.cuh"

struct RopeArgs {
    f32* qkv;              // [T, (heads + 2 kv_heads) dim]: queries in place
    const f32* cos;        // [positions, dim / 2]
    const f32* sin;        // [positions, dim / 2]
    const u32* positions;  // [T]
    const u32* blocks;     // [T]: the block of the position
    Cache cache;
    u32 heads;
    f32 scale;
};

constexpr u32 ROPE_THREADS = 128;

// A warp a head: its lane holds numbers `lane + 32 i`, so for `dim` of 64 and more both of a pair unless dim / 2 is no
// multiple of 32; then the partner is read again.
template <int KIND> DEVICE void rope(const RopeArgs& a) {
    u32 dim = a.cache.dim, half = dim / 2, lane = threadIdx.x % WARP;
    u32 head = blockIdx.y * (ROPE_THREADS / WARP) + threadIdx.x / WARP;
    u32 total = a.heads + 2 * a.cache.kv_heads;
    if (head >= total) return;
    u32 token = blockIdx.x, position = a.positions[token];
    f32* x = a.qkv + ((u64)token * total + head) * dim;
    const f32 *cos = a.cos + (u64)position * half, *sin = a.sin + (u64)position * half;
    bool is_value = head >= a.heads + a.cache.kv_heads;

    if (head < a.heads) {
        for (u32 i = lane; i < half; i += WARP) {
            f32 p = x[i], q = x[i + half];
            x[i] = mul(add(mul(p, cos[i]), -mul(q, sin[i])), a.scale);
            x[i + half] = mul(add(mul(q, cos[i]), mul(p, sin[i])), a.scale);
        }
        return;
    }
    u32 kv = is_value ? head - a.heads - a.cache.kv_heads : head - a.heads;
    u64 slot = cache_slot(a.cache, a.blocks[token], kv, position % BLOCK);
    u8* to = is_value ? a.cache.values : a.cache.keys;
    auto number = [&](u32 d) {
        if (is_value) return x[d];
        if (d < half) return add(mul(x[d], cos[d]), -mul(x[d + half], sin[d]));
        return add(mul(x[d], cos[d - half]), mul(x[d - half], sin[d - half]));
    };
    if (KIND == KV_F32) {
        for (u32 d = lane; d < dim; d += WARP) reinterpret_cast<f32*>(to)[slot * dim + d] = number(d);
    } else if (KIND == KV_BF16) {
        for (u32 d = lane; d < dim; d += WARP) reinterpret_cast<u16*>(to)[slot * dim + d] = f32_to_bf16(number(d));
    } else {
        f32 top = 0.0f, poison = 0.0f;
        for (u32 d = lane; d < dim; d += WARP) {
            f32 v = number(d), magnitude = fabs(v);
            top = magnitude > top ? magnitude : top;
            poison += v * 0.0f;
        }
        top = warp_max(top);
        poison = warp_sum(poison);
        // Below this the inverse would overflow; such a head is zero. NaN and infinity must not pass for numbers.
        bool usable = top > 1e-30f;
        f32 inverse = usable ? 127.0f / top : 0.0f;
        for (u32 d = lane; d < dim; d += WARP)
            reinterpret_cast<i8*>(to)[slot * dim + d] = poison == 0.0f ? (i8)(i32)rintf(mul(number(d), inverse)) : (i8)0;
        if (lane == 0) {
            f32 scale = usable ? top / 127.0f : 0.0f;
            (is_value ? a.cache.value_scales : a.cache.key_scales)[slot] = poison == 0.0f ? scale : NOT_A_NUMBER;
        }
    }
}

KERNEL(rope_f32, RopeArgs, ROPE_THREADS, rope<KV_F32>(a))
KERNEL(rope_bf16, RopeArgs, ROPE_THREADS, rope<KV_BF16>(a))
KERNEL(rope_int8, RopeArgs, ROPE_THREADS, rope<KV_INT8>(a))
