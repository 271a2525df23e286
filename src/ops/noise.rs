//! Noise in training: residual dropout, and NEFTune's noise on embeddings.
//!
//! Every number is [`philox4x32_10`] of what it is for: seed, step, layer, place, the example's row in the data set,
//! position and column. So neither micro-batches nor packing nor a resumed run change it, and a pass that is computed
//! again for its gradients draws the same.

use super::Span;
use super::philox::philox4x32_10;
use crate::model::lora::Part;

/// Which optimizer step draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKey {
    /// The run's seed.
    pub seed: u64,
    /// Steps before this one.
    pub step: u64,
}

/// Where in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What attention adds to the residual stream.
    Attention,
    /// What the MLP adds to it.
    Mlp,
    /// The embedding; its layer is 0.
    Embedding,
}

impl Place {
    /// The join that a product goes into.
    pub fn of(part: Part) -> Self {
        if part == Part::Output { Self::Attention } else { Self::Mlp }
    }
}

/// The noise of one pass.
#[derive(Clone, Debug)]
pub struct Noise {
    /// Keys every number.
    pub key: StepKey,
    /// For each span of the batch, its example's row in the data set.
    pub rows: Vec<u32>,
    /// For each layer, the probability that a value is dropped at each of its two residual joins; below 1.
    pub dropout: Vec<f32>,
    /// NEFTune's alpha; 0: off.
    pub neftune: f32,
}

/// One token's place in the data: an example's row, and the position in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// [`Noise::rows`].
    pub row: u32,
    /// From 0.
    pub position: u32,
}

impl Noise {
    /// The tokens of a batch.
    pub fn tokens(&self, spans: &[Span], positions: &[u32]) -> Vec<Token> {
        let of = |(span, &row): (&Span, &u32)| {
            positions[span.tokens.clone()].iter().map(move |&position| Token { row, position }).collect::<Vec<_>>()
        };
        spans.iter().zip(&self.rows).flat_map(of).collect()
    }

    /// The probability that a value is dropped in `layer`.
    pub fn rate(&self, layer: usize) -> f32 {
        self.dropout.get(layer).copied().unwrap_or(0.0)
    }

    /// What a value that is kept is multiplied with.
    pub fn scale(&self, layer: usize) -> f32 {
        1.0 / (1.0 - self.rate(layer))
    }

    /// Words of columns `4 · block ..`.
    #[inline(always)]
    fn words(&self, layer: usize, place: Place, token: Token, block: u32) -> [u32; 4] {
        let StepKey { seed, step } = self.key;
        // Sixteen bits of columns by four, fourteen of layers, two of places: configurations stay below.
        let what = (place as u32) << 30 | (layer as u32 & 0x3fff) << 16 | (block & 0xffff);
        let counter = [token.position, token.row, step as u32, what];
        philox4x32_10(counter, [seed as u32, (seed >> 32) as u32 ^ (step >> 32) as u32])
    }

    /// Which of `columns` values are kept: bit `i % 8` of byte `i / 8`. `kept` has a bit for each, and bits beyond
    /// are undefined.
    #[inline(always)]
    pub fn kept(&self, layer: usize, place: Place, token: Token, columns: usize, kept: &mut [u8]) {
        // Dropped below; at a rate of 0 nothing is.
        let bound = (f64::from(self.rate(layer)) * 4_294_967_296.0) as u32;
        for (i, byte) in kept.iter_mut().enumerate().take(columns.div_ceil(8)) {
            let (low, high) = (2 * i as u32, 2 * i as u32 + 1);
            let words = [self.words(layer, place, token, low), self.words(layer, place, token, high)];
            *byte = 0;
            for (bit, word) in words.as_flattened().iter().enumerate() {
                *byte |= u8::from(*word >= bound) << bit;
            }
        }
    }

    /// Adds NEFTune's noise to the embedding of a token of a sequence of `len`: uniform in ±alpha / √(len · columns).
    pub fn disturb(&self, token: Token, len: usize, embedding: &mut [f32]) {
        if self.neftune == 0.0 {
            return;
        }
        let bound = self.neftune / ((len * embedding.len()) as f32).sqrt();
        for (block, values) in embedding.chunks_mut(4).enumerate() {
            let words = self.words(0, Place::Embedding, token, block as u32);
            values.iter_mut().zip(words).for_each(|(v, word)| *v += bound * (word as f32 / 2_147_483_648.0 - 1.0));
        }
    }
}
