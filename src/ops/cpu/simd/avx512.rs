//! The lanes in AVX-512.

use std::arch::x86_64::*;

use super::Simd;
use super::avx2::{max8, sum8};

macro_rules! avx512 {
    ($(#[$doc:meta])* $name:ident, $native:literal, $dot:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Simd for $name {
            type F = __m512;
            type I = __m512i;
            type B = __m512i;
            const QUERIES: usize = 12;
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
