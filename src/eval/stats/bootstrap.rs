//! Intervals by resampling prompts.

use serde::Serialize;

/// Draws of a generator that means the same for ever: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Resampler(u64);

impl Resampler {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.draw()) * n as u128) >> 64) as usize
    }

    /// As many numbers below `n`.
    pub fn resample(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.below(n)).collect()
    }

    /// The numbers below `n` in a random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

/// Where a number lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// 2.5 %.
    pub low: f64,
    /// 97.5 %.
    pub high: f64,
}

/// The value below which part `q` of sorted values lies, between neighbours on a line (numpy's default).
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let below = at.floor() as usize;
    let (low, high) = (sorted[below.min(last)], sorted[(below + 1).min(last)]);
    Some(low + (high - low) * (at - below as f64))
}

/// The percentile interval of `statistic` over `rounds` resamples of `n` prompts. A statistic that has no value on a
/// resample (as the win rate of none that was judged) leaves it out.
pub fn bootstrap(n: usize, rounds: usize, seed: u64, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
    if n == 0 {
        return None;
    }
    let mut resampler = Resampler::new(seed);
    let mut values: Vec<f64> = (0..rounds).filter_map(|_| statistic(&resampler.resample(n))).collect();
    values.sort_by(f64::total_cmp);
    Some(Interval { low: percentile(&values, 0.025)?, high: percentile(&values, 0.975)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Of the reference implementation, seed 1234567 (Vigna's splitmix64.c).
    #[test]
    fn the_generator() {
        let mut resampler = Resampler::new(1_234_567);
        let drawn = [resampler.draw(), resampler.draw(), resampler.draw()];
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        let mut order = resampler.permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        assert!((0..1000).all(|_| resampler.below(3) < 3));
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let values = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 0.5, 1.0].map(|q| percentile(&values, q).unwrap()), [1.0, 3.0, 8.0]);
        assert_eq!((percentile(&[5.0], 0.3), percentile(&[], 0.3)), (Some(5.0), None));
    }

    #[test]
    fn a_seed_is_an_interval() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i % 7)).collect();
        let mean = |at: &[usize]| Some(at.iter().map(|i| values[*i]).sum::<f64>() / at.len() as f64);
        let one = bootstrap(50, 1000, 1, mean).unwrap();
        assert_eq!(Some(one), bootstrap(50, 1000, 1, mean));
        assert_ne!(Some(one), bootstrap(50, 1000, 2, mean));
        assert!(one.low < 2.98 && one.high > 2.98);
        assert_eq!(bootstrap(0, 1000, 1, mean), None);
        assert_eq!(bootstrap(5, 10, 1, |_| None), None);
    }
}
