// What all kernels share. Compiled by nvcc for a GPU, or by a C++ compiler against host.hpp, which runs a block's
// threads one after the other: then the same source is tested on machines without a GPU.
//
// A kernel takes one struct of arguments; who launches it checks them first.
// No fast mathematics anywhere: only what is written fma or left to the compiler's contraction of f32 products is fused,
// and where bits are promised (sample.cu) single operations are spelt out.
#pragma once

#ifdef LIMA_HOST
#include "host.hpp"
#else
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;
#define DEVICE __device__ __forceinline__
// Defines a kernel of `threads` threads a block: the rest is its body, over the arguments `a`.
#define KERNEL(name, Args, threads, ...)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args a) { __VA_ARGS__; }

DEVICE f32 f16_to_f32(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE i32 dot4(u32 a, u32 b, i32 sum) { return __dp4a((i32)a, (i32)b, sum); }
DEVICE f32 mul(f32 a, f32 b) { return __fmul_rn(a, b); }
DEVICE f32 add(f32 a, f32 b) { return __fadd_rn(a, b); }
DEVICE f64 mul(f64 a, f64 b) { return __dmul_rn(a, b); }
DEVICE f64 add(f64 a, f64 b) { return __dadd_rn(a, b); }
DEVICE u32 bits_of(f32 x) { return __float_as_uint(x); }
DEVICE f32 f32_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u64 bits_of(f64 x) { return (u64)__double_as_longlong(x); }
DEVICE f64 f64_of(u64 bits) { return __longlong_as_double((long long)bits); }
template <typename T> DEVICE T shuffle_xor(T x, u32 lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE void sync_block() { __syncthreads(); }
#define NEGATIVE_INFINITY __int_as_float((int)0xff800000)
#define POSITIVE_INFINITY __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#endif

constexpr u32 WARP = 32;
// Tokens of a cache block.
constexpr u32 BLOCK = 32;

// How a row of activations is written for the product that reads it.
enum Form { FORM_F32, FORM_BF16, FORM_INT8 };

struct Words4 { u32 x, y, z, w; };
struct Floats2 { f32 x, y; };
struct Floats4 { f32 x, y, z, w; };

// 16 and 8 bytes at once; the address is a multiple of as many.
DEVICE Words4 load16(const void* p) {
#ifdef LIMA_HOST
    Words4 v;
    host::check_aligned(p, 16);
    __builtin_memcpy(&v, p, 16);
    return v;
#else
    uint4 v = *reinterpret_cast<const uint4*>(p);
    return Words4{v.x, v.y, v.z, v.w};
#endif
}

DEVICE f32 bf16_to_f32(u16 bits) { return f32_of((u32)bits << 16); }

// Rounded to nearest, ties to even; NaN stays NaN.
DEVICE u16 f32_to_bf16(f32 x) {
    u32 bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Butterflies: every lane gets the same bits, and the order of the sum does not depend on anything.
template <typename T> DEVICE T warp_sum(T x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}
DEVICE f32 warp_max(f32 x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) {
        f32 y = shuffle_xor(x, lanes);
        x = y > x ? y : x;
    }
    return x;
}

// The sum over a block of `THREADS` threads, in every thread.
template <u32 THREADS> DEVICE f32 block_sum(f32 x) {
    __shared__ f32 warps[THREADS / WARP];
    x = warp_sum(x);
    sync_block();
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
    sync_block();
    f32 sum = 0.0f;
    for (u32 w = 0; w < THREADS / WARP; w++) sum += warps[w];
    return sum;
}
