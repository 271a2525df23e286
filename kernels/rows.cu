// Activations on their way into a product: RMSNorm, if it is wanted, and the form that the product reads. The residual
// itself is added by the product before.
#include "common.cuh"

struct PrepareArgs {
    const f32* x;       // rows of `stride`
    const f32* weight;  // [width] of the norm
    const u32* picked;  // rows to take, or null: all in order
    void* out;          // [rows, width] in the form
    Floats2* scales;    // INT8: [rows, width / 32]: scale, and sum of the integers
    u32 stride;
    u32 width;
    f32 eps;
};

constexpr u32 THREADS = 256;

// Writes `width` numbers `value(col)` in a form. INT8: one scale for 32, the largest magnitude becomes 127; below 1e-30,
// where the inverse would overflow, all are zero.
template <int FORM, typename F> DEVICE void write_row(void* out, Floats2* scales, u64 row, u32 width, F value) {
    if (FORM == FORM_F32) {
        f32* to = static_cast<f32*>(out) + row * width;
        for (u32 col = threadIdx.x; col < width; col += THREADS) to[col] = value(col);
    } else if (FORM == FORM_BF16) {
        u16* to = static_cast<u16*>(out) + row * width;
        for (u32 col = threadIdx.x; col < width; col += THREADS) to[col] = f32_to_bf16(value(col));
    } else {
        i8* to = static_cast<i8*>(out) + row * width;
        // A warp a block of 32; `width` is a multiple of 32, so warps stay whole.
        for (u32 col = threadIdx.x; col < width; col += THREADS) {
            f32 x = value(col);
            f32 top = warp_max(fabs(x));
            // NaN and infinity must not pass for numbers.
            f32 poison = warp_sum(x * 0.0f);
            bool usable = top > 1e-30f;
            f32 inverse = usable ? 127.0f / top : 0.0f;
            i32 q = (i32)rintf(x * inverse);
            i32 sum = warp_sum(q);
            to[col] = (i8)q;
            if (threadIdx.x % WARP == 0) {
                f32 d = usable ? top / 127.0f : 0.0f;
                if (!(poison == 0.0f)) d = NOT_A_NUMBER;
                scales[row * (width / 32) + col / 32] = Floats2{d, (f32)sum};
            }
        }
    }
}

// A block a row.
template <bool NORM, int FORM> DEVICE void prepare(const PrepareArgs& a) {
    u32 row = blockIdx.x;
    const f32* x = a.x + (u64)(a.picked ? a.picked[row] : row) * a.stride;
    f32 scale = 1.0f;
    if (NORM) {
        f32 squares = 0.0f;
        for (u32 col = threadIdx.x; col < a.width; col += THREADS) squares += x[col] * x[col];
        scale = 1.0f / sqrtf(block_sum<THREADS>(squares) / (f32)a.width + a.eps);
    }
    write_row<FORM>(a.out, a.scales, row, a.width, [&](u32 col) { return NORM ? x[col] * scale * a.weight[col] : x[col]; });
}

KERNEL(prepare_norm_f32, PrepareArgs, THREADS, (prepare<true, FORM_F32>(a)))
KERNEL(prepare_norm_bf16, PrepareArgs, THREADS, (prepare<true, FORM_BF16>(a)))
KERNEL(prepare_norm_int8, PrepareArgs, THREADS, (prepare<true, FORM_INT8>(a)))
KERNEL(prepare_plain_f32, PrepareArgs, THREADS, (prepare<false, FORM_F32>(a)))
KERNEL(prepare_plain_bf16, PrepareArgs, THREADS, (prepare<false, FORM_BF16>(a)))
KERNEL(prepare_plain_int8, PrepareArgs, THREADS, (prepare<false, FORM_INT8>(a)))

struct SiluMulArgs {
    const f32* gate_up;  // [T, 2 width]: gate, then up
    void* out;           // [T, width] in the form
    Floats2* scales;
    u32 width;
};

// silu(gate) · up; a block a row.
template <int FORM> DEVICE void silu_mul(const SiluMulArgs& a) {
    const f32* gate = a.gate_up + (u64)blockIdx.x * 2 * a.width;
    const f32* up = gate + a.width;
    write_row<FORM>(a.out, a.scales, blockIdx.x, a.width, [&](u32 col) {
        f32 x = gate[col];
        return x / (1.0f + expf(-x)) * up[col];
    });
}

KERNEL(silu_mul_f32, SiluMulArgs, THREADS, silu_mul<FORM_F32>(a))
KERNEL(silu_mul_bf16, SiluMulArgs, THREADS, silu_mul<FORM_BF16>(a))
KERNEL(silu_mul_int8, SiluMulArgs, THREADS, silu_mul<FORM_INT8>(a))
