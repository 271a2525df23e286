//! Sixteen lanes on every instruction set, so that each kernel is written once.
//!
//! A kernel is an `#[inline(always)]` function generic over [`Simd`]; [`multiversion!`] instantiates it
//! under the target features of each [`Level`](super::level::Level). All levels do the same operations in the same order, lane
//! by lane, so they agree bitwise. The one exception is the native bf16 dot product of
//! [`Avx512Bf16`], which flushes denormals.
//!
//! Every method is unsafe for the same reasons: the CPU must have the features of the implementing
//! type, and pointers must be valid for the lanes they name.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod levels;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
pub(crate) use levels::{multiversion, step};
pub(crate) use scalar::Scalar;

/// Sixteen 32-bit lanes, or 64 bytes.
pub(crate) trait Simd: Copy {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 × u8.
    type B: Copy;
    /// Query rows attended together: fits the register file.
    const QUERIES: usize;
    /// Most rows of a matrix product computed together: see [`Level::panel`](super::level::Level::panel).
    const PANEL: usize = 4;
    /// Whether [`Simd::dot_bf16`] is native: activations are then bf16 pairs, else f32.
    const NATIVE_BF16: bool = false;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`, lane by lane (so `b` where either is NaN, as x86 does).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// 16 × f16 → f32.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// 16 × bf16 → f32.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// 16 × i8 → f32.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// f32 → 16 × bf16, to nearest even.
    unsafe fn store_bf16(p: *mut u16, x: Self::F);
    /// 32 × bf16 in pairs: the even elements and the odd ones.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    /// Adds `w[2i] · a[0] + w[2i + 1] · a[1]` to lane `i`.
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, a: u32) -> Self::F;

    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// Asks for so many bytes from this address on, a cache line at a time; has no other effect.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8, bytes: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (0..bytes).step_by(64) {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.wrapping_add(at).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (p, bytes);
    }
    /// To nearest even.
    unsafe fn round(x: Self::F) -> Self::I;
    /// `2^x` for `-126 <= x <= 127`.
    unsafe fn exp2_int(x: Self::I) -> Self::F;
    /// Stores the low byte of each lane.
    unsafe fn store_i8(p: *mut i8, x: Self::I);

    /// 16 × u8 → f32.
    unsafe fn load_u8(p: *const u8) -> Self::F;

    unsafe fn load_bytes(p: *const u8) -> Self::B;
    unsafe fn low_nibbles(x: Self::B) -> Self::B;
    unsafe fn high_nibbles(x: Self::B) -> Self::B;
    unsafe fn or_bytes(a: Self::B, b: Self::B) -> Self::B;
    /// Bit `i` of each byte, as bit 4 of result `i`.
    unsafe fn fifth_bits(x: Self::B) -> [Self::B; 8];
    /// Bits `2i` and `2i + 1` of each byte, as bits 4 and 5 of result `i`.
    unsafe fn bit_pairs(x: Self::B) -> [Self::B; 4];
    /// Lane `i` gains `Σ_j w[4i + j] · a[j]` over the four bytes of `a`; `w` unsigned, `a` signed; exact.
    unsafe fn dot(acc: Self::I, w: Self::B, a: i32) -> Self::I;
    /// As [`Simd::dot`], for weights below 128 and activations above -128.
    unsafe fn dot_small(acc: Self::I, w: Self::B, a: i32) -> Self::I {
        Self::dot(acc, w, a)
    }

    /// Sum in a fixed tree: lanes `i` and `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let mut v = [0f32; 16];
        Self::store(v.as_mut_ptr(), x);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn sum_i(x: Self::I) -> i32 {
        // Lanes are below 2^24 where this is used, so f32 carries them exactly.
        Self::sum(Self::to_f32(x)) as i32
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        let mut v = [0f32; 16];
        Self::store(v.as_mut_ptr(), x);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] = if v[i] < v[i + width] { v[i + width] } else { v[i] };
            }
        }
        v[0]
    }
    /// `e^x`, relative error below 2e-7 on `[-87, 88]`; clamped outside (`e^-87` is about 1.6e-38).
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // Cephes expf: x = n·ln2 + r, polynomial in r, scaled by 2^n.
        let x = Self::max(x, Self::splat(-87.0));
        let x = Self::neg(Self::max(Self::neg(x), Self::splat(-88.0)));
        let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
        let nf = Self::to_f32(n);
        let r = Self::fma(nf, Self::splat(-0.693_359_4), x);
        let r = Self::fma(nf, Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = Self::fma(p, r, Self::splat(c));
        }
        let y = Self::add(Self::fma(p, Self::mul(r, r), r), Self::splat(1.0));
        Self::mul(y, Self::exp2_int(n))
    }
    #[inline(always)]
    unsafe fn neg(x: Self::F) -> Self::F {
        Self::sub(Self::splat(0.0), x)
    }
}
