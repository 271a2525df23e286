//! The lanes in plain Rust.

use super::Simd;

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
