//! What the machine can do at most, at a level: the bounds that the kernels' speed is compared with.
//!
//! Each function does so much work that its time, divided, is a limit: the same instructions as in the kernels, on
//! registers, or reads of memory and nothing else. What it returns only keeps the work from being left out.

use super::level::Level;
use super::simd::{Simd, multiversion};

/// Independent chains: enough that none waits for another's latency.
const CHAINS: usize = 12;

/// 8-bit multiply-adds of a round of [`dot_products`].
pub const DOT_PRODUCTS: usize = CHAINS * 64;
/// Multiply-adds of a round of [`multiply_adds`].
pub const MULTIPLY_ADDS: usize = CHAINS * 16;

#[inline(always)]
unsafe fn dots<S: Simd>(rounds: usize, bytes: *const u8) -> f32 {
    // SAFETY: 64 bytes to read.
    unsafe {
        let w = S::load_bytes(bytes);
        let a = bytes.cast::<i32>().read_unaligned();
        let mut acc = [S::splat_i(0); CHAINS];
        for _ in 0..rounds {
            for i in 0..CHAINS {
                acc[i] = S::dot_small(acc[i], w, a);
            }
        }
        let mut total = 0.0;
        for i in 0..CHAINS {
            total += S::sum(S::to_f32(acc[i]));
        }
        total
    }
}

#[inline(always)]
unsafe fn fmas<S: Simd>(rounds: usize, numbers: *const f32) -> f32 {
    // SAFETY: 16 floats to read.
    unsafe {
        let x = S::load(numbers);
        let mut acc = [x; CHAINS];
        for _ in 0..rounds {
            for i in 0..CHAINS {
                acc[i] = S::fma(acc[i], x, x);
            }
        }
        let mut total = 0.0;
        for i in 0..CHAINS {
            total += S::sum(acc[i]);
        }
        total
    }
}

#[inline(always)]
unsafe fn reads<S: Simd>(from: *const f32, len: usize) -> f32 {
    // SAFETY: `len` floats to read.
    unsafe {
        let mut acc = [S::splat(0.0); 8];
        for at in (0..len / 128 * 128).step_by(128) {
            for i in 0..8 {
                acc[i] = S::add(acc[i], S::load(from.add(at + i * 16)));
            }
        }
        let mut total = 0.0;
        for i in 0..8 {
            total += S::sum(acc[i]);
        }
        total
    }
}

multiversion! {
    unsafe fn dots_any = dots(rounds: usize, bytes: *const u8) -> f32;
    unsafe fn fmas_any = fmas(rounds: usize, numbers: *const f32) -> f32;
    unsafe fn reads_any = reads(from: *const f32, len: usize) -> f32;
}

/// So many rounds of [`DOT_PRODUCTS`].
///
/// # Panics
/// If the machine lacks the level.
pub fn dot_products(level: Level, rounds: usize, bytes: &[u8; 64]) -> f32 {
    assert!(level <= Level::best(), "this machine has at most {}", Level::best());
    // SAFETY: the machine has the level's features.
    unsafe { dots_any(level, rounds, bytes.as_ptr()) }
}

/// So many rounds of [`MULTIPLY_ADDS`] in f32.
///
/// # Panics
/// If the machine lacks the level.
pub fn multiply_adds(level: Level, rounds: usize, numbers: &[f32; 16]) -> f32 {
    assert!(level <= Level::best(), "this machine has at most {}", Level::best());
    // SAFETY: as above.
    unsafe { fmas_any(level, rounds, numbers.as_ptr()) }
}

/// Reads all numbers (but for the last few, below 128) once.
///
/// # Panics
/// If the machine lacks the level.
pub fn read(level: Level, numbers: &[f32]) -> f32 {
    assert!(level <= Level::best(), "this machine has at most {}", Level::best());
    // SAFETY: as above.
    unsafe { reads_any(level, numbers.as_ptr(), numbers.len()) }
}
