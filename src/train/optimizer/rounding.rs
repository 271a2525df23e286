//! How numbers are stored: F32 as they are, BF16 to nearest or stochastically rounded.

use half::bf16;

use crate::ops::philox::philox4x32_10;

/// Numbers that one call of the generator rounds, 16 bits each.
pub(super) const ROUNDED: usize = 8;
/// Sets the bits of rounding apart from everything else that the seed draws.
const ROUNDING: u32 = 0x524f_554e;

/// What keys the bits of stochastic rounding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) parameter: u32,
}

impl Rounding {
    /// 16 bits for each of the weights `ROUNDED · block ..`.
    pub(super) fn bits(self, block: u64) -> [u32; ROUNDED] {
        let key = [self.seed as u32 ^ ROUNDING, (self.seed >> 32) as u32 ^ (self.step >> 32) as u32];
        let words = philox4x32_10([block as u32, (block >> 32) as u32, self.parameter, self.step as u32], key);
        std::array::from_fn(|i| (words[i / 2] >> (16 * (i % 2))) & 0xffff)
    }
}

/// A finite number to BF16: up with the probability that is its distance from the lower neighbour. `bits` are 16 random
/// ones.
pub(super) fn round_stochastically(value: f32, bits: u32) -> bf16 {
    bf16::from_bits((value.to_bits().wrapping_add(bits) >> 16) as u16)
}

/// A stored number.
pub(super) trait Stored: Copy + Send + Sync {
    fn get(self) -> f32;
    fn nearest(value: f32) -> Self;
}

impl Stored for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Rounding up and down makes the mean right, and what BF16 can hold stays as it is.
    #[test]
    fn rounding_has_the_right_mean() {
        let rounding = Rounding { seed: 5, step: 9, parameter: 3 };
        for value in [1.001f32, -3.3, 1e-5, 0.0, -0.0, 65_280.0 + 17.0, f32::from_bits(0x3f80_ffff)] {
            let blocks = 4000;
            let all = (0..blocks).flat_map(|b| rounding.bits(b)).map(|bits| round_stochastically(value, bits));
            let all: Vec<f32> = all.map(bf16::to_f32).collect();
            let mean = all.iter().map(|v| f64::from(*v)).sum::<f64>() / all.len() as f64;
            let low = f32::from_bits(value.to_bits() & 0xffff_0000);
            let high = f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000);
            assert!(all.iter().all(|v| *v == low || (*v == high && value != low)), "{value}");
            // Five deviations of the mean at most.
            let allowed = 5.0 * 0.5 * f64::from((high - low).abs()) / (all.len() as f64).sqrt();
            assert!((mean - f64::from(value)).abs() <= allowed, "{value}: {mean}");
        }
        let bits: Vec<u32> = (0..1000).flat_map(|b| rounding.bits(b)).collect();
        let mean = bits.iter().map(|b| f64::from(*b)).sum::<f64>() / bits.len() as f64;
        assert!((mean - 32_767.5).abs() < 5.0 * 18_919.0 / (bits.len() as f64).sqrt(), "{mean}");
        // Step, parameter and seed each change the bits.
        for other in [
            Rounding { seed: 6, ..rounding },
            Rounding { seed: 5 + (1 << 32), ..rounding },
            Rounding { step: 10, ..rounding },
            Rounding { parameter: 4, ..rounding },
        ] {
            assert_ne!(other.bits(0), rounding.bits(0));
        }
    }
}
