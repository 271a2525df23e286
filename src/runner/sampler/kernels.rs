//! The passes over a whole row, compiled once for each instruction set. Each is a fixed sequence of
//! single operations (no fused multiply-add, no libm), so every version gives the same bits.

/// Lanes that a pass keeps apart.
pub(super) const LANES: usize = 16;
/// Logits summed in f32 before they are added to f64 totals; each block's maximum is kept.
pub(super) const BLOCK: usize = 256;
/// `w` is zero where its natural logarithm is below this.
pub(super) const LN_ZERO: f64 = -88.1;

/// An instruction set this machine has. Made only here, after the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All that this machine has, the plainest first; never empty.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "only the baseline on other architectures")]
        let mut levels = vec![Self(Kind::Baseline)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                levels.push(Self(Kind::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self(Kind::Avx512));
            }
        }
        levels
    }

    /// The best this machine has.
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self(Kind::Baseline))
    }
}

/// Defines a function that runs `$body` (an `#[inline(always)]` function) compiled for `level`.
macro_rules! per_level {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $body:ident) => {
        $(#[$doc])*
        pub(super) fn $name(level: Level, $($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) -> $ret {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) -> $ret {
                    $body($($arg),*)
                }
                match level.0 {
                    // SAFETY: a `Level` of this kind exists only where the feature was detected.
                    Kind::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Kind::Avx2 => return unsafe { avx2($($arg),*) },
                    Kind::Baseline => {}
                }
            }
            let Level(_) = level;
            $body($($arg),*)
        }
    };
}

per_level! {
    /// Writes the maximum of each [`BLOCK`] of `logits` to `blocks`. False if any logit is NaN or +inf.
    fn scan(logits: &[f32], blocks: &mut Vec<f32>) -> bool = scan_body
}
per_level! {
    /// As [`scan`]; and writes to `sums` each block's sum of `2^((l - m) · scale)`, `m` its maximum, in f32: lane by
    /// lane, then the lanes as a binary tree.
    fn scan_sum(logits: &[f32], scale: f32, blocks: &mut Vec<f32>, sums: &mut Vec<f32>) -> bool = scan_sum_body
}
per_level! {
    /// The sum of `2^((l - max) · scale)` over the row, from what [`scan_sum`] wrote; `products` is scratch memory.
    fn total(blocks: &[f32], sums: &[f32], max: f32, scale: f32, products: &mut Vec<f32>) -> f64 = total_body
}
per_level! {
    /// Appends the keys of all logits at least `threshold` (above -inf), in id order; `blocks` as from [`scan`].
    fn gather(logits: &[f32], blocks: &[f32], threshold: f32, keys: &mut Vec<u64>) -> () = gather_body
}

/// `chunk` padded with -inf, which changes neither a maximum nor a sum of weights.
#[inline(always)]
fn padded(chunk: &[f32]) -> [f32; LANES] {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..chunk.len()].copy_from_slice(chunk);
    lanes
}

/// Combines lanes `i` and `i + 8`, `i + 4`, ... by `f`.
#[inline(always)]
fn tree(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    // Else the compiler cuts the loop before into the pairs of lanes that are combined here.
    let mut lanes = std::hint::black_box(lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// One step of [`block_max`]. (Functions, not closures: those may be compiled apart, without the level's features.)
#[inline(always)]
fn max_step(group: &[f32; LANES], max: &mut [f32; LANES], bad: &mut [u32; LANES]) {
    for i in 0..LANES {
        max[i] = if group[i] > max[i] { group[i] } else { max[i] };
        bad[i] = if group[i] < f32::INFINITY { bad[i] } else { 1 };
    }
}

/// The maximum of a block; marks lanes that saw NaN or +inf.
#[inline(always)]
fn block_max(block: &[f32], bad: &mut [u32; LANES]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = block.as_chunks::<LANES>();
    for group in groups {
        max_step(group, &mut max, bad);
    }
    if !rest.is_empty() {
        max_step(&padded(rest), &mut max, bad);
    }
    tree(max, larger)
}

/// Adds the powers of a group to `sum`.
#[inline(always)]
fn sum_step(group: &[f32; LANES], max: f32, scale: f32, sum: &mut [f32; LANES]) {
    for i in 0..LANES {
        sum[i] += exp2((group[i] - max) * scale);
    }
}

#[inline(always)]
fn scan_body(logits: &[f32], blocks: &mut Vec<f32>) -> bool {
    blocks.clear();
    let mut bad = [0_u32; LANES];
    for block in logits.chunks(BLOCK) {
        blocks.push(block_max(block, &mut bad));
    }
    bad.iter().all(|&b| b == 0)
}

#[inline(always)]
fn scan_sum_body(logits: &[f32], scale: f32, blocks: &mut Vec<f32>, sums: &mut Vec<f32>) -> bool {
    blocks.clear();
    sums.clear();
    let mut bad = [0_u32; LANES];
    for block in logits.chunks(BLOCK) {
        let max = block_max(block, &mut bad);
        // Where all are -inf, the difference must not be NaN.
        let least = larger(max, f32::MIN);
        let mut sum = [0_f32; LANES];
        let (groups, rest) = block.as_chunks::<LANES>();
        for group in groups {
            sum_step(group, least, scale, &mut sum);
        }
        if !rest.is_empty() {
            sum_step(&padded(rest), least, scale, &mut sum);
        }
        blocks.push(max);
        sums.push(tree(sum, |a, b| a + b));
    }
    bad.iter().all(|&b| b == 0)
}

#[inline(always)]
fn total_body(blocks: &[f32], sums: &[f32], max: f32, scale: f32, products: &mut Vec<f32>) -> f64 {
    products.clear();
    products.extend_from_slice(sums);
    for (product, &block) in products.iter_mut().zip(blocks) {
        *product *= exp2((larger(block, f32::MIN) - max) * scale);
    }
    products.iter().map(|&p| f64::from(p)).sum()
}

/// Appends the keys of a group from `id` on. Padding is below every threshold.
#[inline(always)]
fn gather_step(group: &[f32; LANES], threshold: f32, id: u32, keys: &mut Vec<u64>) {
    let mut any = 0_u32;
    for &l in group {
        any |= u32::from(l >= threshold);
    }
    if any != 0 {
        for (i, &l) in group.iter().enumerate() {
            if l >= threshold {
                keys.push(key(l, id + i as u32));
            }
        }
    }
}

#[inline(always)]
fn gather_body(logits: &[f32], blocks: &[f32], threshold: f32, keys: &mut Vec<u64>) {
    let mut id = 0_u32;
    for (block, &max) in logits.chunks(BLOCK).zip(blocks) {
        if max < threshold {
            id += BLOCK as u32;
            continue;
        }
        let (groups, rest) = block.as_chunks::<LANES>();
        for group in groups {
            gather_step(group, threshold, id, keys);
            id += LANES as u32;
        }
        if !rest.is_empty() {
            gather_step(&padded(rest), threshold, id, keys);
        }
    }
}

/// `2^x` for `x <= 0`: 1 at 0, zero below -126.5, else within a relative error of 4e-7. Each product and sum
/// is rounded by itself.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    // (2^f - 1) / f at Chebyshev nodes of [-1/2, 1/2].
    let mut y = 1.339_086_7e-3_f32;
    y = y * f + 9.666_374e-3;
    y = y * f + 5.550_357e-2;
    y = y * f + 0.240_223_5;
    y = y * f + std::f32::consts::LN_2;
    y = y * f + 1.0;
    // The exponent field of 2^-127 is that of zero.
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    y * f32::from_bits(power)
}

/// Natural logarithm of a positive normal number, by the series of `2 artanh((m - 1) / (m + 1))`;
/// relative error below 1e-15.
pub(super) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let mut series = 0.0;
    for odd in (1..=23).rev().step_by(2) {
        series = series * s2 + 1.0 / f64::from(odd);
    }
    2.0 * s * series + exponent as f64 * std::f64::consts::LN_2
}

/// Sorts ascending as (logit descending, id ascending); `-0.0` equals `0.0`.
#[inline(always)]
pub(super) fn key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 0x8000_0000 };
    u64::from(!ascending) << 32 | u64::from(id)
}

/// The logit and the id of a key.
pub(super) fn unkey(key: u64) -> (f32, u32) {
    let ascending = !((key >> 32) as u32);
    let bits = if ascending >> 31 == 1 { ascending & 0x7fff_ffff } else { !ascending };
    (f32::from_bits(bits), key as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_close_to_libm() {
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-126.6), 0.0);
        assert_eq!(exp2(-126.0), f32::MIN_POSITIVE);
        let mut x = -125.0_f32;
        while x < 0.0 {
            let want = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) - want).abs() <= 4e-7 * want, "exp2({x})");
            x += 0.000_917;
        }
    }

    #[test]
    fn ln_is_close_to_libm() {
        for i in 1..20_000 {
            let x = (f64::from(i) * 0.0037).exp2() * 1e-9;
            assert!((ln(x) - x.ln()).abs() <= 4e-15 * x.ln().abs().max(1.0), "ln({x})");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn keys_sort_and_invert() {
        let values = [f32::MAX, 2.0, 1.0, 1e-40, 0.0, -1e-40, -1.0, -2.0, f32::MIN, f32::NEG_INFINITY];
        for pair in values.windows(2) {
            assert!(key(pair[0], 9) < key(pair[1], 3));
            assert_eq!(unkey(key(pair[1], 3)), (pair[1], 3));
        }
        assert!(key(-0.0, 1) < key(0.0, 2) && key(0.0, 1) < key(-0.0, 2));
    }

    /// Every version of every pass gives the same bits, at every length around the block sizes.
    #[test]
    fn levels_agree_bitwise() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        };
        for len in [1, 15, 16, 17, 255, 256, 257, 300, 4095, 49_152, 50_001] {
            let logits: Vec<f32> = (0..len).map(|_| next() * 40.0 - 20.0).collect();
            let scale = 0.5 + next();
            let run = |level| {
                let (mut blocks, mut keys, mut maxima) = (Vec::new(), Vec::new(), Vec::new());
                let (mut sums, mut products) = (Vec::new(), Vec::new());
                assert!(scan(level, &logits, &mut maxima));
                assert!(scan_sum(level, &logits, scale, &mut blocks, &mut sums));
                assert_eq!(blocks, maxima);
                let max = blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum = total(level, &blocks, &sums, max, scale, &mut products);
                let exact: f64 = logits.iter().map(|l| (f64::from(l - max) * f64::from(scale)).exp2()).sum();
                assert!((sum / exact - 1.0).abs() < 2e-6, "{sum} {exact}");
                gather(level, &logits, &blocks, 15.0, &mut keys);
                (blocks, sum.to_bits(), keys)
            };
            let base = run(Level(Kind::Baseline));
            let plain: Vec<u64> =
                logits.iter().enumerate().filter(|&(_, &l)| l >= 15.0).map(|(i, &l)| key(l, i as u32)).collect();
            assert_eq!(base.2, plain);
            for level in Level::available() {
                assert_eq!(run(level), base, "{level:?} at {len}");
            }
            for bad in [f32::NAN, f32::INFINITY] {
                let mut logits = logits.clone();
                logits[len - 1] = bad;
                for level in Level::available() {
                    assert!(!scan(level, &logits, &mut Vec::new()));
                    assert!(!scan_sum(level, &logits, scale, &mut Vec::new(), &mut Vec::new()));
                }
            }
        }
    }
}
