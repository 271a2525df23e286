//! How likely a token that is given was.

use super::kernels::scan;
use super::{Sampler, Scratch};
use crate::engine::{Scored, TokenId};

impl Sampler {
    /// Scores `token` under a row of at least `vocab_size` logits, with the `top` best tokens above -inf. The
    /// numbers are those that sampling the token would report.
    ///
    /// `None` if `token` is outside the vocabulary, a logit is NaN or +inf, or all are -inf.
    pub fn score(&self, logits: &[f32], token: TokenId, top: u32, scratch: &mut Scratch) -> Option<Scored> {
        let logits = logits.get(..self.vocab_size)?;
        let logit = *logits.get(token as usize)?;
        if !scan(self.level, logits, &mut scratch.buffers.blocks) {
            return None;
        }
        let (norm, top) = self.raw_logprobs(logits, top, &mut scratch.buffers).ok()?;
        let above = count(logits, |l| l > logit) + count(&logits[..token as usize], |l| l == logit);
        Some(Scored { token, logprob: norm.logprob(logit), rank: above + 1, top })
    }
}

/// Branchless, so that it is vectorised.
fn count(logits: &[f32], which: impl Fn(f32) -> bool) -> u32 {
    logits.iter().map(|&l| u32::from(which(l))).sum()
}
