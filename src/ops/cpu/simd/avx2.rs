//! The lanes in AVX2.

use std::arch::x86_64::*;

use super::Simd;

/// Each byte of two registers, shifted in several ways and masked.
macro_rules! shifted {
    (@one slli $n:literal $x:expr) => { _mm256_slli_epi16::<$n>($x) };
    (@one srli $n:literal $x:expr) => { _mm256_srli_epi16::<$n>($x) };
    ($x:ident, $mask:ident, $($shift:ident $n:literal),*) => {
        [$([
            _mm256_and_si256(shifted!(@one $shift $n $x[0]), $mask),
            _mm256_and_si256(shifted!(@one $shift $n $x[1]), $mask),
        ]),*]
    };
}

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
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[0])), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w[1]))],
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
        shifted!(x, mask, slli 4, slli 3, slli 2, slli 1, slli 0, srli 1, srli 2, srli 3)
    }
    #[inline(always)]
    unsafe fn bit_pairs(x: Self::B) -> [Self::B; 4] {
        // As in `fifth_bits`.
        let mask = _mm256_set1_epi8(0x30);
        shifted!(x, mask, slli 4, slli 2, slli 0, srli 2)
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
pub(super) unsafe fn sum8(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
}
#[inline(always)]
pub(super) unsafe fn max8(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
}
