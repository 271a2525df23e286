// Products of a few rows with a quantised matrix: integer dot products over blocks of 32 columns, scaled in f32. A
// warp an output; its lanes take blocks in turn and are summed by a butterfly, so that an output's order of operations
// depends neither on the number of rows nor on which row it is.
#include "weight.cuh"

constexpr u32 PRODUCT_THREADS = 128;

struct ProductArgs {
    Weight w;
    const i8* x;            // [rows, cols]: FORM_INT8
    const Floats2* scales;  // [rows, cols / 32]: scale, and sum of the integers
    const f32* residual;    // [rows, w.rows] to add, or null
    f32* out;               // [rows, w.rows]
    u32 rows;
};

// Grid: ceil(w.rows / 4), ceil(rows / ROWS).
template <int FORMAT, u32 ROWS> DEVICE void product(const ProductArgs& a) {
    u32 lane = threadIdx.x % WARP, n = blockIdx.x * (PRODUCT_THREADS / WARP) + threadIdx.x / WARP;
    if (n >= a.w.rows) return;
    u32 first = blockIdx.y * ROWS, blocks = a.w.cols / 32;
    f32 acc[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) acc[r] = 0.0f;
    for (u32 b = lane; b < blocks; b += WARP) {
        u64 block = (u64)n * blocks + b;
        Scale s = block_scale<FORMAT>(a.w, block);
        u32 words[8];
        if (FORMAT == W_Q8_0) {
            Words4 lo = load16(a.w.quants + block * 32), hi = load16(a.w.quants + block * 32 + 16);
            words[0] = lo.x, words[1] = lo.y, words[2] = lo.z, words[3] = lo.w;
            words[4] = hi.x, words[5] = hi.y, words[6] = hi.z, words[7] = hi.w;
        } else {
            Words4 v = load16(a.w.quants + block * 16);
            u32 packed[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                words[j] = packed[j] & 0x0f0f0f0fu;
                words[4 + j] = (packed[j] >> 4) & 0x0f0f0f0fu;
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (first + r < a.rows) {
                u64 at = (u64)(first + r) * blocks + b;
                Words4 lo = load16(a.x + at * 32), hi = load16(a.x + at * 32 + 16);
                Floats2 x = a.scales[at];
                i32 dot = dot4(words[0], lo.x, 0);
                dot = dot4(words[1], lo.y, dot), dot = dot4(words[2], lo.z, dot), dot = dot4(words[3], lo.w, dot);
                dot = dot4(words[4], hi.x, dot), dot = dot4(words[5], hi.y, dot);
                dot = dot4(words[6], hi.z, dot), dot = dot4(words[7], hi.w, dot);
                f32 sum = mul(s.d, (f32)dot);
                if (FORMAT != W_Q8_0) sum = add(sum, -mul(s.m, x.y));
                acc[r] = add(acc[r], mul(x.x, sum));
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        if (first + r < a.rows) {
            f32 sum = warp_sum(acc[r]);
            u64 at = (u64)(first + r) * a.w.rows + n;
            if (lane == 0) a.out[at] = a.residual ? add(a.residual[at], sum) : sum;
        }
    }
}

#define PRODUCT(format, FORMAT)                                                          \
    KERNEL(product_##format##_1, ProductArgs, PRODUCT_THREADS, (product<FORMAT, 1>(a)))  \
    KERNEL(product_##format##_4, ProductArgs, PRODUCT_THREADS, (product<FORMAT, 4>(a)))  \
    KERNEL(product_##format##_8, ProductArgs, PRODUCT_THREADS, (product<FORMAT, 8>(a)))

PRODUCT(q8_0, W_Q8_0)
PRODUCT(q4_0, W_Q4_0)
PRODUCT(q4_1, W_Q4_1)
PRODUCT(q4_k, W_Q4_K)
