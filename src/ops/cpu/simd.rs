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

/// Plain Rust: the twin of the others, and the only level off x86-64.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map2<T: Copy>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> T) -> [T; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const QUERIES: usize = 4;

    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    unsafe fn load(p: *const f32) -> Self::F {
        p.cast::<[f32; 16]>().read_unaligned()
    }
    unsafe fn store(p: *mut f32, x: Self::F) {
        p.cast::<[f32; 16]>().write_unaligned(x)
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x + y)
    }
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x - y)
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x * y)
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x / y)
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| if x > y { x } else { y })
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    unsafe fn load_f16(p: *const u16) -> Self::F {
        p.cast::<[u16; 16]>().read_unaligned().map(|h| half::f16::from_bits(h).to_f32())
    }
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        p.cast::<[u16; 16]>().read_unaligned().map(|h| f32::from_bits((h as u32) << 16))
    }
    unsafe fn load_i8(p: *const i8) -> Self::F {
        p.cast::<[i8; 16]>().read_unaligned().map(f32::from)
    }
    unsafe fn store_bf16(p: *mut u16, x: Self::F) {
        p.cast::<[u16; 16]>().write_unaligned(x.map(|v| half::bf16::from_f32(v).to_bits()))
    }
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        let w = p.cast::<[u32; 16]>().read_unaligned();
        (w.map(|v| f32::from_bits(v << 16)), w.map(|v| f32::from_bits(v & 0xffff_0000)))
    }
    unsafe fn dot_bf16(_: Self::F, _: *const u16, _: u32) -> Self::F {
        unreachable!("only where NATIVE_BF16")
    }
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|v| v as f32)
    }
    unsafe fn round(x: Self::F) -> Self::I {
        x.map(|v| v.round_ties_even() as i32)
    }
    unsafe fn exp2_int(x: Self::I) -> Self::F {
        x.map(|v| f32::from_bits(((v + 127) as u32) << 23))
    }
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        p.cast::<[i8; 16]>().write_unaligned(x.map(|v| v as i8))
    }
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        p.cast::<[u8; 64]>().read_unaligned()
    }
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        x.map(|v| v & 15)
    }
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        x.map(|v| v >> 4)
    }
    unsafe fn load_u8(p: *const u8) -> Self::F {
        p.cast::<[u8; 16]>().read_unaligned().map(f32::from)
    }
    unsafe fn or_bytes(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    unsafe fn fifth_bits(x: Self::B) -> [Self::B; 8] {
        std::array::from_fn(|i| x.map(|v| (v >> i & 1) << 4))
    }
    unsafe fn bit_pairs(x: Self::B) -> [Self::B; 4] {
        std::array::from_fn(|i| x.map(|v| (v >> (2 * i) & 3) << 4))
    }
    unsafe fn dot(acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = a.to_le_bytes().map(|b| b as i8 as i32);
        std::array::from_fn(|i| acc[i] + (0..4).map(|j| w[4 * i + j] as i32 * a[j]).sum::<i32>())
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// AVX2, FMA and F16C: two registers for sixteen lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    impl Simd for Avx2 {
        type F = [__m256; 2];
        type I = [__m256i; 2];
        type B = [__m256i; 2];
        const QUERIES: usize = 3;

        #[inline(always)]
        unsafe fn sum(x: Self::F) -> f32 {
            sum8(_mm256_add_ps(x[0], x[1]))
        }
        #[inline(always)]
        unsafe fn max_lane(x: Self::F) -> f32 {
            max8(_mm256_max_ps(x[0], x[1]))
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::F {
            [_mm256_set1_ps(x); 2]
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::F {
            [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, x: Self::F) {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
        #[inline(always)]
        unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
            [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
            [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
            [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
            [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
            [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        #[inline(always)]
        unsafe fn abs(a: Self::F) -> Self::F {
            let m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            [_mm256_and_ps(a[0], m), _mm256_and_ps(a[1], m)]
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self::F {
            let at = |i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(i).cast()));
            [at(0), at(8)]
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::F {
            let at = |i| {
                let w = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w))
            };
            [at(0), at(8)]
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> Self::F {
            let (low, high) = (_mm_loadl_epi64(p.cast()), _mm_loadl_epi64(p.add(8).cast()));
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, x: Self::F) {
            for (i, v) in x.into_iter().enumerate() {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
                _mm_storeu_si128(p.add(8 * i).cast(), _mm256_castsi256_si128(packed));
            }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
            let w = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast())];
            let m = _mm256_set1_epi32(0xffff_0000u32 as i32);
            (
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[0])),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[1])),
                ],
                [_mm256_castsi256_ps(_mm256_and_si256(w[0], m)), _mm256_castsi256_ps(_mm256_and_si256(w[1], m))],
            )
        }
        #[inline(always)]
        unsafe fn dot_bf16(_: Self::F, _: *const u16, _: u32) -> Self::F {
            unreachable!("only where NATIVE_BF16")
        }
        #[inline(always)]
        unsafe fn splat_i(x: i32) -> Self::I {
            [_mm256_set1_epi32(x); 2]
        }
        #[inline(always)]
        unsafe fn to_f32(x: Self::I) -> Self::F {
            [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])]
        }
        #[inline(always)]
        unsafe fn round(x: Self::F) -> Self::I {
            [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])]
        }
        #[inline(always)]
        unsafe fn exp2_int(x: Self::I) -> Self::F {
            let bias = _mm256_set1_epi32(127);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(x[0], bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(x[1], bias))),
            ]
        }
        #[inline(always)]
        unsafe fn store_i8(p: *mut i8, x: Self::I) {
            let mut v = [0i32; 16];
            _mm256_storeu_si256(v.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(v.as_mut_ptr().add(8).cast(), x[1]);
            p.cast::<[i8; 16]>().write_unaligned(v.map(|v| v as i8));
        }
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self::B {
            [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())]
        }
        #[inline(always)]
        unsafe fn low_nibbles(x: Self::B) -> Self::B {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        }
        #[inline(always)]
        unsafe fn high_nibbles(x: Self::B) -> Self::B {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(_mm256_srli_epi16::<4>(x[0]), mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x[1]), mask)]
        }
        #[inline(always)]
        unsafe fn load_u8(p: *const u8) -> Self::F {
            let (a, b) = (_mm_loadl_epi64(p.cast()), _mm_loadl_epi64(p.add(8).cast()));
            [_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(a)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b))]
        }
        #[inline(always)]
        unsafe fn or_bytes(a: Self::B, b: Self::B) -> Self::B {
            [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
        }
        #[inline(always)]
        unsafe fn fifth_bits(x: Self::B) -> [Self::B; 8] {
            // What 16-bit shifts bring in from the neighbouring byte, the mask takes away.
            let mask = _mm256_set1_epi8(0x10);
            let [a, b] = x;
            [
                [
                    _mm256_and_si256(_mm256_slli_epi16::<4>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<4>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_slli_epi16::<3>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<3>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_slli_epi16::<2>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<2>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_slli_epi16::<1>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<1>(b), mask),
                ],
                [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<1>(a), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<1>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<2>(a), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<3>(a), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<3>(b), mask),
                ],
            ]
        }
        #[inline(always)]
        unsafe fn bit_pairs(x: Self::B) -> [Self::B; 4] {
            // As in `fifth_bits`.
            let mask = _mm256_set1_epi8(0x30);
            let [a, b] = x;
            [
                [
                    _mm256_and_si256(_mm256_slli_epi16::<4>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<4>(b), mask),
                ],
                [
                    _mm256_and_si256(_mm256_slli_epi16::<2>(a), mask),
                    _mm256_and_si256(_mm256_slli_epi16::<2>(b), mask),
                ],
                [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)],
                [
                    _mm256_and_si256(_mm256_srli_epi16::<2>(a), mask),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(b), mask),
                ],
            ]
        }
        #[inline(always)]
        unsafe fn dot(acc: Self::I, w: Self::B, a: i32) -> Self::I {
            // maddubs saturates above 127 · 128 · 2, so the top bit of the weights goes separately.
            let ones = _mm256_set1_epi16(1);
            let a = _mm256_set1_epi32(a);
            let part = |w: __m256i, mask: i8| {
                let w = _mm256_and_si256(w, _mm256_set1_epi8(mask));
                _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones)
            };
            let at = |i: usize| _mm256_add_epi32(acc[i], _mm256_add_epi32(part(w[i], 0x7f), part(w[i], 0x80u8 as i8)));
            [at(0), at(1)]
        }
        #[inline(always)]
        unsafe fn dot_small(acc: Self::I, w: Self::B, a: i32) -> Self::I {
            let ones = _mm256_set1_epi16(1);
            let a = _mm256_set1_epi32(a);
            let at = |i: usize| _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w[i], a), ones));
            [at(0), at(1)]
        }
    }

    /// Lanes `i` and `i + 4`, `i + 2`, `i + 1`: the tail of [`Simd::sum`]'s tree.
    #[inline(always)]
    unsafe fn sum8(x: __m256) -> f32 {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
    #[inline(always)]
    unsafe fn max8(x: __m256) -> f32 {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }

    macro_rules! avx512 {
        ($(#[$doc:meta])* $name:ident, $native:literal, $dot:expr) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(crate) struct $name;

            impl Simd for $name {
                type F = __m512;
                type I = __m512i;
                type B = __m512i;
                const QUERIES: usize = 6;
                const PANEL: usize = 16;
                const NATIVE_BF16: bool = $native;

                #[inline(always)]
                unsafe fn sum(x: __m512) -> f32 {
                    sum8(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)))
                }
                #[inline(always)]
                unsafe fn max_lane(x: __m512) -> f32 {
                    max8(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)))
                }
                #[inline(always)]
                unsafe fn splat(x: f32) -> __m512 {
                    _mm512_set1_ps(x)
                }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> __m512 {
                    _mm512_loadu_ps(p)
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, x: __m512) {
                    _mm512_storeu_ps(p, x)
                }
                #[inline(always)]
                unsafe fn add(a: __m512, b: __m512) -> __m512 {
                    _mm512_add_ps(a, b)
                }
                #[inline(always)]
                unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                    _mm512_sub_ps(a, b)
                }
                #[inline(always)]
                unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                    _mm512_mul_ps(a, b)
                }
                #[inline(always)]
                unsafe fn div(a: __m512, b: __m512) -> __m512 {
                    _mm512_div_ps(a, b)
                }
                #[inline(always)]
                unsafe fn max(a: __m512, b: __m512) -> __m512 {
                    _mm512_max_ps(a, b)
                }
                #[inline(always)]
                unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                    _mm512_fmadd_ps(a, b, c)
                }
                #[inline(always)]
                unsafe fn abs(a: __m512) -> __m512 {
                    _mm512_abs_ps(a)
                }
                #[inline(always)]
                unsafe fn load_f16(p: *const u16) -> __m512 {
                    _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
                }
                #[inline(always)]
                unsafe fn load_bf16(p: *const u16) -> __m512 {
                    let w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w))
                }
                #[inline(always)]
                unsafe fn load_i8(p: *const i8) -> __m512 {
                    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
                }
                #[inline(always)]
                unsafe fn store_bf16(p: *mut u16, x: __m512) {
                    let bits = _mm512_castps_si512(x);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
                    let high = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet));
                    _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(high));
                }
                #[inline(always)]
                unsafe fn load_bf16_pairs(p: *const u16) -> (__m512, __m512) {
                    let w = _mm512_loadu_si512(p.cast());
                    let high = _mm512_and_si512(w, _mm512_set1_epi32(0xffff_0000u32 as i32));
                    (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)), _mm512_castsi512_ps(high))
                }
                #[inline(always)]
                unsafe fn dot_bf16(acc: __m512, w: *const u16, a: u32) -> __m512 {
                    ($dot)(acc, w, a)
                }
                #[inline(always)]
                unsafe fn splat_i(x: i32) -> __m512i {
                    _mm512_set1_epi32(x)
                }
                #[inline(always)]
                unsafe fn to_f32(x: __m512i) -> __m512 {
                    _mm512_cvtepi32_ps(x)
                }
                #[inline(always)]
                unsafe fn round(x: __m512) -> __m512i {
                    _mm512_cvtps_epi32(x)
                }
                #[inline(always)]
                unsafe fn exp2_int(x: __m512i) -> __m512 {
                    _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(x, _mm512_set1_epi32(127))))
                }
                #[inline(always)]
                unsafe fn store_i8(p: *mut i8, x: __m512i) {
                    _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x))
                }
                #[inline(always)]
                unsafe fn load_bytes(p: *const u8) -> __m512i {
                    _mm512_loadu_si512(p.cast())
                }
                #[inline(always)]
                unsafe fn low_nibbles(x: __m512i) -> __m512i {
                    _mm512_and_si512(x, _mm512_set1_epi8(15))
                }
                #[inline(always)]
                unsafe fn high_nibbles(x: __m512i) -> __m512i {
                    _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15))
                }
                #[inline(always)]
                unsafe fn load_u8(p: *const u8) -> __m512 {
                    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
                }
                #[inline(always)]
                unsafe fn or_bytes(a: __m512i, b: __m512i) -> __m512i {
                    _mm512_or_si512(a, b)
                }
                #[inline(always)]
                unsafe fn fifth_bits(x: __m512i) -> [__m512i; 8] {
                    // What 16-bit shifts bring in from the neighbouring byte, the mask takes away.
                    let mask = _mm512_set1_epi8(0x10);
                    [
                        _mm512_and_si512(_mm512_slli_epi16::<4>(x), mask),
                        _mm512_and_si512(_mm512_slli_epi16::<3>(x), mask),
                        _mm512_and_si512(_mm512_slli_epi16::<2>(x), mask),
                        _mm512_and_si512(_mm512_slli_epi16::<1>(x), mask),
                        _mm512_and_si512(x, mask),
                        _mm512_and_si512(_mm512_srli_epi16::<1>(x), mask),
                        _mm512_and_si512(_mm512_srli_epi16::<2>(x), mask),
                        _mm512_and_si512(_mm512_srli_epi16::<3>(x), mask),
                    ]
                }
                #[inline(always)]
                unsafe fn bit_pairs(x: __m512i) -> [__m512i; 4] {
                    // As in `fifth_bits`.
                    let mask = _mm512_set1_epi8(0x30);
                    [
                        _mm512_and_si512(_mm512_slli_epi16::<4>(x), mask),
                        _mm512_and_si512(_mm512_slli_epi16::<2>(x), mask),
                        _mm512_and_si512(x, mask),
                        _mm512_and_si512(_mm512_srli_epi16::<2>(x), mask),
                    ]
                }
                #[inline(always)]
                unsafe fn dot(acc: __m512i, w: __m512i, a: i32) -> __m512i {
                    _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a))
                }
            }
        };
    }

    avx512!(
        /// AVX-512 F, BW, DQ, VL and VNNI.
        Avx512, false, |_, _, _| unreachable!("only where NATIVE_BF16")
    );
    avx512!(
        /// [`Avx512`] with native bf16 dot products.
        Avx512Bf16, true, |acc, w: *const u16, a: u32| {
            let w: __m512bh = std::mem::transmute(_mm512_loadu_si512(w.cast()));
            _mm512_dpbf16_ps(acc, w, std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a as i32)))
        }
    );
}

/// Runs `$body` with a constant `$m` = `$n`, and moves `$from` on by it: one arm of a loop over pieces whose
/// sizes are constants.
macro_rules! step {
    ($from:ident, $m:ident = $n:literal, $body:block) => {{
        const $m: usize = $n;
        $body
        $from += $n;
    }};
}
pub(crate) use step;

/// Instantiates generic kernels for every [`Level`](super::level::Level):
/// `multiversion! { pub(crate) unsafe fn name = kernel(a: A, b: B); }` makes
/// `name(level, a, b)` from `kernel::<S: Simd>(a, b)`. With `with native bf16`, the level that has it gets a
/// version of its own; other kernels are the same there as for [`Avx512`], and are not compiled twice.
macro_rules! multiversion {
    (@native [native] $kernel:ident($($a:ident : $t:ty),*)) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        unsafe fn native($($a: $t),*) {
            // SAFETY: this function has the type's features; the rest is the caller's promise.
            unsafe { $kernel::<$crate::ops::cpu::simd::Avx512Bf16>($($a),*) }
        }
    };
    (@native [] $kernel:ident($($a:ident : $t:ty),*)) => {
        #[cfg(target_arch = "x86_64")]
        use avx512 as native;
    };
    ($($(#[$m:meta])* $vis:vis unsafe fn $name:ident = $kernel:ident($($a:ident : $t:ty),* $(,)?)
        $(with $native:ident bf16)?;)*) => {$(
        $(#[$m])*
        #[doc = "\n\n# Safety\nThe CPU has `level`'s features; pointers as the generic kernel demands."]
        $vis unsafe fn $name(level: $crate::ops::cpu::level::Level, $($a: $t),*) {
            use $crate::ops::cpu::level::Level;
            $crate::ops::cpu::simd::multiversion!(@native [$($native)?] $kernel($($a: $t),*));
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512($($a: $t),*) {
                // SAFETY: this function has the type's features; the rest is the caller's promise.
                unsafe { $kernel::<$crate::ops::cpu::simd::Avx512>($($a),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($a: $t),*) {
                // SAFETY: this function has the type's features; the rest is the caller's promise.
                unsafe { $kernel::<$crate::ops::cpu::simd::Avx2>($($a),*) }
            }
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx512Bf16 => unsafe { native($($a),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx512 => unsafe { avx512($($a),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx2 => unsafe { avx2($($a),*) },
                // SAFETY: needs no features; the rest is the caller's promise.
                _ => unsafe { $kernel::<$crate::ops::cpu::simd::Scalar>($($a),*) },
            }
        }
    )*};
}
pub(crate) use multiversion;
