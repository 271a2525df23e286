//! Means with intervals after Student, as the paper gives them for its ablations.

use super::Interval;

/// The mean of at least one value.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The two-sided 95 % interval of the mean of at least two values, t-distributed.
pub fn mean_interval(values: &[f64]) -> Option<Interval> {
    let (n, mean) = (values.len(), mean(values)?);
    if n < 2 {
        return None;
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
    let half = t_quantile(0.975, (n - 1) as f64) * (variance / n as f64).sqrt();
    Some(Interval { low: mean - half, high: mean + half })
}

/// The value below which Student's t with `freedom` degrees lies with probability `p`, which is at least ½.
pub fn t_quantile(p: f64, freedom: f64) -> f64 {
    // P(T ≤ t) = 1 − I(ν/(ν+t²); ν/2, ½)/2, which ascends with t.
    let cumulative = |t: f64| 1.0 - 0.5 * incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5);
    let (mut low, mut high) = (0.0, 1.0);
    while cumulative(high) < p && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if cumulative(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function by its continued fraction (Lentz).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast on this side of the mean; the other is its mirror image.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b)).exp() / a;
    let tiny = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, 1.0 / tiny(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / tiny(1.0 + term * d);
            c = tiny(1.0 + term / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// The logarithm of the gamma function of a positive number (Lanczos, g = 7).
fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // Reflection.
        return (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum = C[0] + (1..9).map(|i| C[i] / (x + i as f64)).sum::<f64>();
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Table values of t at 97.5 %, as printed in any textbook; at 1 degree it is tan(0.475 π).
    #[test]
    fn quantiles() {
        for (freedom, t) in
            [(2.0, 4.302_653), (4.0, 2.776_445), (9.0, 2.262_157), (29.0, 2.045_230), (299.0, 1.967_930)]
        {
            assert!((t_quantile(0.975, freedom) - t).abs() < 1e-6, "{freedom}: {}", t_quantile(0.975, freedom));
        }
        let cauchy = (0.475 * std::f64::consts::PI).tan();
        assert!((t_quantile(0.975, 1.0) - cauchy).abs() < 1e-9);
        assert!((t_quantile(0.975, 1e7) - 1.959_964).abs() < 1e-5);
    }

    /// By hand: mean 3, variance 2.5, half-width 2.776445 · √(2.5/5).
    #[test]
    fn an_interval() {
        let interval = mean_interval(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let half = 2.776_445_105 * 0.5_f64.sqrt();
        assert!((interval.low - (3.0 - half)).abs() < 1e-8 && (interval.high - (3.0 + half)).abs() < 1e-8);
        assert_eq!(mean_interval(&[1.0]), None);
        assert_eq!(mean(&[]), None);
    }
}
