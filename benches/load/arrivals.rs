//! When requests arrive in an open loop.

use std::time::Duration;

use super::rng::Rng;

/// A draw from the gamma distribution of this shape and scale 1 (Marsaglia and Tsang 2000; shapes below 1 by their
/// boost).
pub fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - rng.unit()).powf(1.0 / shape);
        return gamma(rng, shape + 1.0) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// Arrival times without end. Gaps are gamma-distributed with mean `1 / rate` seconds and the given shape: 1 is a
/// Poisson process, less comes in bursts (coefficient of variation `1 / sqrt(burstiness)`), more is more even.
pub struct Arrivals {
    rng: Rng,
    rate: f64,
    burstiness: f64,
    now: f64,
}

impl Arrivals {
    /// `rate` in arrivals a second; infinite means all at once. Both are positive.
    pub fn new(seed: u64, rate: f64, burstiness: f64) -> Self {
        Self { rng: Rng::new(seed, 0x6172_7269_7661_6c73), rate, burstiness, now: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = Duration::try_from_secs_f64(self.now).ok()?;
        if self.rate.is_finite() {
            self.now += gamma(&mut self.rng, self.burstiness) / (self.burstiness * self.rate);
        }
        Some(at)
    }
}
