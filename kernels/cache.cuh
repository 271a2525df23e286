// The paged cache on the device. For each layer keys and values are `[block][kv_head][32][dim]`, one token's numbers
// side by side; INT8 has one scale a token, head, and key or value: `[block][kv_head][32]`.
#pragma once
#include "common.cuh"

enum Kind { KV_F32, KV_BF16, KV_INT8 };

struct Cache {
    u8* keys;
    u8* values;
    f32* key_scales;    // INT8 alone
    f32* value_scales;  // INT8 alone
    u32 kv_heads;
    u32 dim;
};

// Index of a token's place: times `dim` it is that of its first number.
DEVICE u64 cache_slot(const Cache& c, u32 block, u32 head, u32 slot) {
    return ((u64)block * c.kv_heads + head) * BLOCK + slot;
}

// A number of the cache, unscaled.
template <int KIND> DEVICE f32 cache_load(const u8* base, u64 at) {
    if (KIND == KV_F32) return reinterpret_cast<const f32*>(base)[at];
    if (KIND == KV_BF16) return bf16_to_f32(reinterpret_cast<const u16*>(base)[at]);
    return (f32)reinterpret_cast<const i8*>(base)[at];
}
