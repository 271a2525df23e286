//! A Llama's shape and constants, from a Hugging Face `config.json` or GGUF metadata.
//!
//! Everything is range-checked here once: whoever holds a [`LlamaConfig`] may multiply its sizes
//! without overflow. What this implementation does not compute is refused by the name of the field.

mod fields;
mod generation;
mod gguf;
mod hf;
mod json;

pub use generation::GenerationDefaults;

/// Why a configuration was refused: one sentence naming the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// Shape and constants of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// The output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Context length.
    pub max_position_embeddings: usize,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence; may be empty.
    pub eos_token_ids: Vec<u32>,
}

/// Stretching of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// At least 1 in practice; positive.
        factor: f32,
    },
    /// Llama 3: long wavelengths divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// Divisor of the longest wavelengths.
        factor: f32,
        /// Wavelengths over `original / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths under `original / high_freq_factor` are kept; above `low_freq_factor`.
        high_freq_factor: f32,
        /// Context length of the original training.
        original_max_position_embeddings: usize,
    },
    /// One divisor a frequency, `head_dim / 2` of them (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl LlamaConfig {
    /// Rows of the query projection.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of the key projection, and of the value projection.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// The shape of what each of `ranks` tensor-parallel ranks holds.
    ///
    /// # Errors
    /// A size is no multiple of `ranks`; the message names it.
    pub fn divided(&self, ranks: usize) -> Result<Self, ConfigError> {
        let over = |name: &str, size: usize| match size.is_multiple_of(ranks) {
            true => Ok(size / ranks),
            false => Err(ConfigError(format!("{name} {size} cannot be divided over {ranks} ranks"))),
        };
        Ok(Self {
            num_heads: over("num_attention_heads", self.num_heads)?,
            num_kv_heads: over("num_key_value_heads", self.num_kv_heads)?,
            intermediate_size: over("intermediate_size", self.intermediate_size)?,
            vocab_size: over("vocab_size", self.vocab_size)?,
            ..self.clone()
        })
    }

    /// Checks ranges and relations. Bounds are far above any real model and far below overflow.
    fn checked(self) -> Result<Self, ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_layers, 1 << 12),
            ("num_attention_heads", self.num_heads, 1 << 12),
            ("num_key_value_heads", self.num_kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(ConfigError(format!("{name} is {value}, must be from 1 to {most}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(ConfigError(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_heads, self.num_kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError(format!("head_dim {} is odd", self.head_dim)));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(ConfigError(format!("rms_norm_eps is {}, must be between 0 and 1", self.rms_norm_eps)));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(ConfigError(format!("rope_theta is {}, must be at least 1", self.rope_theta)));
        }
        self.rope_scaling.check(self.head_dim)?;
        for id in self.bos_token_id.iter().chain(&self.eos_token_ids) {
            if *id as usize >= self.vocab_size {
                return Err(ConfigError(format!("token id {id} is outside the vocabulary of {}", self.vocab_size)));
            }
        }
        Ok(self)
    }
}

impl RopeScaling {
    fn check(&self, head_dim: usize) -> Result<(), ConfigError> {
        let positive = |name: &str, value: f32| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(ConfigError(format!("rope scaling {name} is {value}, must be positive")))
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("factor", *factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: original } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if low_freq_factor >= high_freq_factor {
                    return Err(ConfigError("rope scaling low_freq_factor must be below high_freq_factor".into()));
                }
                if *original == 0 || *original > 1 << 30 {
                    return Err(ConfigError(format!(
                        "rope scaling original_max_position_embeddings is {original}, must be from 1 to {}",
                        1 << 30
                    )));
                }
                Ok(())
            }
            Self::Factors(factors) => {
                if factors.len() != head_dim / 2 {
                    return Err(ConfigError(format!(
                        "rope_freqs.weight has {} values, head_dim {head_dim} needs {}",
                        factors.len(),
                        head_dim / 2
                    )));
                }
                factors.iter().try_for_each(|f| positive("factor in rope_freqs.weight", *f))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
