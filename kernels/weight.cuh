// Weights as they lie in memory.
#pragma once
#include "common.cuh"

// Numbers that the host knows formats by.
enum Format { W_F32, W_BF16, W_Q8_0, W_Q4_0, W_Q4_1, W_Q4_K };

// `rows x cols` numbers. Of quantised formats, blocks of 32 columns:
//   quants: Q8_0: 32 signed bytes; else 16 bytes, byte j holds value j low and value j + 16 high;
//   scales: of a block: Q8_0, Q4_0: d (f16); Q4_1: d, m (f16); Q4_K: scale, minimum (a byte each);
//   supers: Q4_K: d, dmin (f16) of 8 blocks.
struct Weight {
    const u8* quants;
    const u8* scales;
    const u8* supers;
    u32 rows;
    u32 cols;
};

// A block's number is `d q - m`.
struct Scale { f32 d, m; };

template <int FORMAT> DEVICE Scale block_scale(const Weight& w, u64 block) {
    if (FORMAT == W_Q4_1) {
        u32 pair = reinterpret_cast<const u32*>(w.scales)[block];
        return Scale{f16_to_f32((u16)pair), -f16_to_f32((u16)(pair >> 16))};
    }
    if (FORMAT == W_Q4_K) {
        u32 bytes = reinterpret_cast<const u16*>(w.scales)[block];
        u32 pair = reinterpret_cast<const u32*>(w.supers)[block / 8];
        return Scale{f16_to_f32((u16)pair) * (f32)(bytes & 255u), f16_to_f32((u16)(pair >> 16)) * (f32)(bytes >> 8)};
    }
    f32 d = f16_to_f32(reinterpret_cast<const u16*>(w.scales)[block]);
    return Scale{d, FORMAT == W_Q4_0 ? 8.0f * d : 0.0f};
}

// One number.
template <int FORMAT> DEVICE f32 weight_at(const Weight& w, u32 row, u32 col) {
    u64 at = (u64)row * w.cols + col;
    if (FORMAT == W_F32) return reinterpret_cast<const f32*>(w.quants)[at];
    if (FORMAT == W_BF16) return bf16_to_f32(reinterpret_cast<const u16*>(w.quants)[at]);
    u64 block = at / 32;
    Scale s = block_scale<FORMAT>(w, block);
    if (FORMAT == W_Q8_0) return s.d * (f32)reinterpret_cast<const i8*>(w.quants)[at];
    u32 i = col % 32;
    u32 byte = w.quants[block * 16 + i % 16];
    u32 q = i < 16 ? byte & 15u : byte >> 4;
    // As the reference reads it: an integer first where the zero is one.
    if (FORMAT == W_Q4_0) return s.d * (f32)((i32)q - 8);
    return s.d * (f32)q - s.m;
}
