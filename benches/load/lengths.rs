//! How long prompts and answers are.

use std::fmt;
use std::str::FromStr;

use super::rng::Rng;

/// The lengths of one side, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    Fixed(u32),
    /// Both ends included.
    Uniform(u32, u32),
    /// LIMA's training examples, lengths multiplied by this.
    Lima(f64),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is not a length: a number, LO-HI, 'lima' or 'lima:SCALE'");
        let count = |s: &str| s.parse::<u32>().ok().filter(|&n| (1..=1 << 20).contains(&n)).ok_or_else(bad);
        if text == "lima" {
            return Ok(Self::Lima(1.0));
        }
        if let Some(scale) = text.strip_prefix("lima:") {
            let scale = scale.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 100.0).ok_or_else(bad)?;
            return Ok(Self::Lima(scale));
        }
        match text.split_once('-') {
            None => Ok(Self::Fixed(count(text)?)),
            Some((low, high)) => match (count(low)?, count(high)?) {
                (low, high) if low <= high => Ok(Self::Uniform(low, high)),
                _ => Err(bad()),
            },
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform(low, high) => write!(f, "{low}-{high}"),
            Self::Lima(1.0) => f.write_str("lima"),
            Self::Lima(scale) => write!(f, "lima:{scale}"),
        }
    }
}

/// A part of LIMA's training examples: its share of a thousand, and quantiles of its lengths.
pub struct Part {
    pub share: usize,
    pub prompt: [u16; 14],
    pub answer: [u16; 14],
}

/// The quantiles that [`LIMA`] lists.
const LEVELS: [f64; 14] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0];

/// LIMA's single-turn training examples by source, in tokens of SmolLM2's tokenizer. Within a source the lengths of
/// prompt and answer are nearly uncorrelated (|r| ≤ 0.16), between sources they are not, hence one table a source:
/// Stack Exchange, the authors', wikiHow, Natural Instructions, WritingPrompts.
pub const LIMA: [Part; 5] = [
    Part {
        share: 400,
        prompt: [6, 10, 12, 15, 23, 39, 58, 78, 110, 134, 164, 204, 240, 313],
        answer: [58, 238, 265, 301, 327, 369, 410, 446, 506, 588, 683, 818, 1032, 1846],
    },
    Part {
        share: 200,
        prompt: [4, 6, 8, 10, 12, 15, 18, 20, 23, 33, 57, 109, 270, 975],
        answer: [14, 31, 42, 92, 137, 172, 232, 274, 327, 402, 626, 869, 1181, 2001],
    },
    Part {
        share: 200,
        prompt: [5, 5, 6, 7, 7, 8, 8, 9, 9, 10, 12, 13, 14, 19],
        answer: [227, 525, 754, 970, 1136, 1348, 1520, 1697, 1875, 2166, 2463, 2738, 3073, 3614],
    },
    Part {
        share: 50,
        prompt: [10, 13, 15, 32, 42, 57, 70, 86, 128, 376, 545, 854, 1469, 1737],
        answer: [5, 14, 15, 24, 38, 42, 48, 68, 76, 120, 179, 259, 321, 772],
    },
    Part {
        share: 150,
        prompt: [7, 12, 15, 18, 20, 23, 28, 32, 37, 42, 47, 51, 59, 141],
        answer: [21, 55, 86, 132, 169, 204, 254, 283, 318, 387, 417, 450, 496, 575],
    },
];

/// The length at quantile `u`, linear between the listed ones.
fn at(table: &[u16; 14], u: f64) -> f64 {
    let i = LEVELS.partition_point(|&level| level <= u).clamp(1, LEVELS.len() - 1);
    let (low, high) = (f64::from(table[i - 1]), f64::from(table[i]));
    low + (high - low) * (u - LEVELS[i - 1]) / (LEVELS[i] - LEVELS[i - 1])
}

/// Draws the lengths of a prompt and its answer. Where both follow LIMA they are of one source.
pub fn draw(input: Lengths, output: Lengths, rng: &mut Rng) -> (u32, u32) {
    let mut share = rng.below(LIMA.iter().map(|p| p.share).sum());
    let mut part = &LIMA[0];
    for candidate in &LIMA {
        part = candidate;
        if share < candidate.share {
            break;
        }
        share -= candidate.share;
    }
    let mut one = |lengths, table| match lengths {
        Lengths::Fixed(n) => n,
        Lengths::Uniform(low, high) => low + rng.below((high - low) as usize + 1) as u32,
        Lengths::Lima(scale) => (at(table, rng.unit()) * scale).round().max(1.0) as u32,
    };
    (one(input, &part.prompt), one(output, &part.answer))
}
