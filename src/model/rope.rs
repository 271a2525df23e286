//! Rotary frequencies.

use std::f32::consts::PI;

use super::config::{LlamaConfig, RopeScaling};

/// Radians per position of each rotated pair, `head_dim / 2` of them, in transformers' f32
/// arithmetic: a reciprocal is rounded before it is multiplied.
pub fn inverse_frequencies(config: &LlamaConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    let base = (0..half).map(|i| {
        let exponent = (2 * i) as f32 / config.head_dim as f32;
        // The f64 power rounded to f32 is the nearest f32 of the exact power.
        1.0 / f64::from(config.rope_theta).powf(f64::from(exponent)) as f32
    });
    match &config.rope_scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|f| f / factor).collect(),
        RopeScaling::Factors(factors) => base.zip(factors).map(|(f, factor)| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = *original_max_position_embeddings as f64;
            // Constants are Python's doubles until they meet an f32 tensor.
            let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
            let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
            base.map(|f| {
                let wavelength = (1.0 / f) * (2.0 * PI);
                if wavelength < shortest {
                    f
                } else if wavelength > longest {
                    f / factor
                } else {
                    let smooth = ((1.0 / wavelength) * original as f32 - low_freq_factor) / (high - low) as f32;
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect()
        }
    }
}

#[cfg(test)]
mod tests;
