// Rows of a quantised matrix as bfloat16, for products of many rows.
#include "weight.cuh"

struct DequantizeArgs {
    Weight w;
    u16* out;  // [rows, cols] of the rows below
    u32 first;
    u32 rows;
};

// A thread a block of 32: 16 or 32 bytes read, 64 written.
template <int FORMAT> DEVICE void dequantize(const DequantizeArgs& a) {
    u32 blocks = a.w.cols / 32;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)a.rows * blocks) return;
    u64 block = (u64)a.first * blocks + i;
    Scale s = block_scale<FORMAT>(a.w, block);
    u32 words[8];
    if (FORMAT == W_Q8_0) {
        Words4 lo = load16(a.w.quants + block * 32), hi = load16(a.w.quants + block * 32 + 16);
        words[0] = lo.x, words[1] = lo.y, words[2] = lo.z, words[3] = lo.w;
        words[4] = hi.x, words[5] = hi.y, words[6] = hi.z, words[7] = hi.w;
    } else {
        Words4 v = load16(a.w.quants + block * 16);
        u32 packed[4] = {v.x, v.y, v.z, v.w};
        for (u32 j = 0; j < 4; j++) {
            words[j] = packed[j] & 0x0f0f0f0fu;
            words[4 + j] = (packed[j] >> 4) & 0x0f0f0f0fu;
        }
    }
    u32* out = reinterpret_cast<u32*>(a.out + i * 32);
    for (u32 j = 0; j < 8; j++) {
        u32 halves[4];
        for (u32 b = 0; b < 4; b++) {
            i32 q = (i32)(i8)(words[j] >> (8 * b));
            f32 x;
            if (FORMAT == W_Q8_0) x = s.d * (f32)q;
            else if (FORMAT == W_Q4_0) x = s.d * (f32)(q - 8);
            else x = s.d * (f32)q - s.m;
            halves[b] = f32_to_bf16(x);
        }
        out[2 * j] = halves[0] | halves[1] << 16;
        out[2 * j + 1] = halves[2] | halves[3] << 16;
    }
}

KERNEL(dequantize_q8_0, DequantizeArgs, 256, dequantize<W_Q8_0>(a))
KERNEL(dequantize_q4_0, DequantizeArgs, 256, dequantize<W_Q4_0>(a))
KERNEL(dequantize_q4_1, DequantizeArgs, 256, dequantize<W_Q4_1>(a))
KERNEL(dequantize_q4_k, DequantizeArgs, 256, dequantize<W_Q4_K>(a))
