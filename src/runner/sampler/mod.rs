//! The sampler. This is its specification, for every backend.
//!
//! A row is `V` logits, `V` the size of the vocabulary; logits beyond it (padding of the head) do
//! not exist. All arithmetic is f32 with single roundings (no fused multiply-add) unless said
//! otherwise. In this order:
//!
//! 0. **Check.** A logit that is NaN or +inf, raw or after any change below, fails the row. -inf is
//!    probability zero.
//! 1. **Log-probabilities**, if asked for, from the raw logits: `l - max - ln Σ exp(l - max)`; of the
//!    sampled token, and of the `N` best tokens above -inf by (logit descending, id ascending).
//! 2. **Bias**: `l += b` for each pair, in order.
//! 3. **Penalties**, once for each distinct token of prompt and output (drafts before it included): `l = l < 0 ? l · r : l / r`
//!    (repetition, if `r != 1`); then, if the token was generated `c > 0` times,
//!    `l -= frequency · c`, `l -= presence`.
//! 4. **Mask**: a token whose bit is clear or missing gets -inf. Then, while fewer than `min_tokens`
//!    tokens were generated (the position to sample is below `num_prompt + min_tokens`), so does each of
//!    `stop_token_ids`, unless that leaves no logit above -inf. If all logits are -inf by now, the row fails.
//! 5. **Temperature** `T`: below 1e-5 the result is the largest logit, ties to the lowest id.
//!    Otherwise the weight of a token is `w = 2^((l - max) · (1 / T · log2 e))`, by a polynomial
//!    of fixed coefficients (`kernels::exp2`): 1 for the largest logit, zero below about 2⁻¹²⁶.
//! 6. **Order**: candidates are sorted by (logit descending, id ascending); running sums down that
//!    order are f64.
//! 7. **Top-k**: the first `k` of them; `k = 0` or `k >= V` keeps all.
//! 8. **Total** `Z`: of the top-k, their running sum. Of all: in blocks of 256 tokens in id order, each relative to
//!    its largest logit `m` (at least the least f32), the f32 sums of `2^((l - m) · (1 / T · log2 e))` of token `i` in
//!    lane `i mod 16`, then the sixteen lanes as a binary tree (`i` with `i + 8`, `i + 4`, ...); times
//!    `2^((m - max) · (1 / T · log2 e))`, in f32; the blocks added in f64 in order. So one pass over the row finds
//!    maxima and sums. In step 1, `Σ exp(l - max)` is this with `T = 1`.
//! 9. **Top-p**, if below 1: the shortest prefix whose sum is at least `p · Z`; one token at least.
//! 10. **Min-p**: the prefix ends before the first `w < min_p`, and before the first `w = 0`; one
//!     token at least.
//! 11. **Draw**: `u` is [`philox::uniform`] of (seed, choice, position). The result is the first
//!     token of the prefix whose running sum is above `u · M`, else the last; `M` is the sum of the
//!     prefix, or `Z` where neither top-k, top-p nor min-p is on.
//!
//! A row's result depends on the row alone. [`reference`](mod@reference) is these lines word by word; the sampler
//! itself sorts only the candidates that can matter, and must choose the same.

mod draw;
mod kernels;
mod penalties;
pub mod reference;
mod score;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::f32::consts::LOG2_E;

use smallvec::smallvec;

use self::draw::{Buffers, argmax, best, draw};
pub use self::kernels::Level;
use self::kernels::{ln, scan, scan_sum, total, unkey};
use self::penalties::PenaltyCounts;
use crate::engine::{RowOut, SampleInput, SampleRow, Sampled, SamplingParams, SeqId, TokenId};
pub use crate::ops::philox;

/// Temperatures below this are greedy.
const GREEDY_BELOW: f32 = 1e-5;

/// Samples rows of logits. Keeps, for sequences with penalties, the counts of their tokens.
#[derive(Debug)]
pub struct Sampler {
    vocab_size: usize,
    level: Level,
    counts: HashMap<SeqId, PenaltyCounts>,
}

/// Buffers of one thread: they grow to the size of a row and stay.
#[derive(Debug, Default)]
pub struct Scratch {
    buffers: Buffers,
    /// Raw logits of the tokens that bias and penalties changed, if log-probabilities are wanted.
    raw: Vec<(TokenId, f32)>,
    /// Stop tokens that it is too early for, and their logits.
    suppressed: Vec<(TokenId, f32)>,
    counts: PenaltyCounts,
}

/// Why a row has no token.
enum Failure {
    NotFinite,
    NothingAllowed,
    TooShort,
}

impl Sampler {
    /// For a vocabulary of `vocab_size` tokens: ids from there on are never sampled.
    pub fn new(vocab_size: usize) -> Self {
        Self::with_level(vocab_size, Level::detect())
    }

    /// As [`Sampler::new`], with a given instruction set; results do not depend on it.
    pub fn with_level(vocab_size: usize, level: Level) -> Self {
        Self { vocab_size, level, counts: HashMap::new() }
    }

    /// Forgets sequences.
    pub fn release(&mut self, seqs: &[SeqId]) {
        for seq in seqs {
            self.counts.remove(seq);
        }
    }

    /// Number of sequences with counts.
    pub fn num_tracked(&self) -> usize {
        self.counts.len()
    }

    /// Counts the new tokens of all rows with penalties. To be called before [`Sampler::sample_row`]
    /// on these rows: that is correct without, but slow.
    pub fn prepare(&mut self, request: &SampleInput<'_>) {
        for row in request.rows.iter().filter(|row| row.params.has_penalties()) {
            let counts = match self.counts.entry(row.seq) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(PenaltyCounts::default()),
            };
            counts.update(row.history, row.num_prompt);
        }
    }

    /// Samples one row; `logits` (at least `vocab_size` of them) are changed. The result is
    /// [`RowOut::Tokens`] with one token, or [`RowOut::Failed`].
    pub fn sample_row(&self, logits: &mut [f32], row: &SampleRow<'_>, scratch: &mut Scratch) -> RowOut {
        match self.try_sample(logits, row, scratch) {
            Ok(sampled) => RowOut::Tokens(smallvec![sampled]),
            Err(failure) => RowOut::Failed(failure.message(row.position)),
        }
    }

    fn try_sample(&self, logits: &mut [f32], row: &SampleRow<'_>, scratch: &mut Scratch) -> Result<Sampled, Failure> {
        let logits = logits.get_mut(..self.vocab_size).ok_or(Failure::TooShort)?;
        let params: &SamplingParams = row.params;
        let edits =
            !params.logit_bias.is_empty() || params.has_penalties() || row.mask.is_some() || suppresses_stop(row);

        // The mask hides logits, so check before it; else one pass after the edits sees all.
        if row.mask.is_some() || params.logprobs.is_some() {
            scratch.buffers.pass(self.level, logits, params.logprobs.map(|_| LOG2_E))?;
        }
        let raw = match params.logprobs {
            Some(n) => Some(self.raw_logprobs(logits, n, &mut scratch.buffers)?),
            None => None,
        };
        if edits {
            self.edit(logits, row, scratch)?;
        }
        let scale = total_scale(params, self.vocab_size);
        if edits || raw.is_none() || scale.is_some_and(|scale| scale != LOG2_E) {
            scratch.buffers.pass(self.level, logits, scale)?;
        }

        let mut best = argmax(logits, &scratch.buffers.blocks);
        if edits && best.is_none() && !scratch.suppressed.is_empty() {
            // Nothing but stop tokens is possible. Backwards: a token named twice was -inf the second time.
            for &(token, logit) in scratch.suppressed.iter().rev() {
                logits[token as usize] = logit;
            }
            scratch.buffers.pass(self.level, logits, scale)?;
            best = argmax(logits, &scratch.buffers.blocks);
        }
        let best = best.ok_or(Failure::NothingAllowed)?;
        let token = if params.temperature >= GREEDY_BELOW {
            draw(self.level, logits, params, row.position, &mut scratch.buffers)
        } else {
            best
        };
        Ok(match raw {
            None => Sampled { token, logprob: 0.0, top: Vec::new() },
            Some((norm, top)) => {
                let edited = edits.then(|| scratch.raw.iter().find(|(t, _)| *t == token)).flatten();
                let logit = edited.map_or(logits[token as usize], |&(_, l)| l);
                Sampled { token, logprob: norm.logprob(logit), top }
            }
        })
    }

    /// The normaliser and the `n` best tokens of a row just passed over with a scale of log2 e.
    fn raw_logprobs(
        &self,
        logits: &[f32],
        n: u32,
        buffers: &mut Buffers,
    ) -> Result<(Norm, Vec<(TokenId, f32)>), Failure> {
        let norm = Norm::new(self.level, buffers).ok_or(Failure::NothingAllowed)?;
        let mut top = Vec::new();
        if n > 0 {
            best(self.level, logits, n as usize, buffers);
            top.extend(buffers.keys.iter().map(|&key| {
                let (logit, token) = unkey(key);
                (token, norm.logprob(logit))
            }));
        }
        Ok((norm, top))
    }

    /// Bias, penalties, mask, stop tokens.
    fn edit(&self, logits: &mut [f32], row: &SampleRow<'_>, scratch: &mut Scratch) -> Result<(), Failure> {
        let params: &SamplingParams = row.params;
        scratch.raw.clear();
        let raw = params.logprobs.is_some().then_some(&mut scratch.raw);
        let mut editor = Editor { logits, raw };
        for &(token, bias) in &params.logit_bias {
            editor.edit(token, |l| l + bias)?;
        }
        if params.has_penalties() {
            let counts = match self.counts.get(&row.seq) {
                Some(counts) if counts.matches(row.history, row.num_prompt) => counts,
                _ => {
                    scratch.counts.clear();
                    scratch.counts.update(row.history, row.num_prompt);
                    &scratch.counts
                }
            };
            for seen in counts.seen_with(row.drafts) {
                editor.edit(seen.token, |l| seen.penalise(l, params))?;
            }
        }
        if let Some(mask) = row.mask {
            apply_mask(editor.logits, mask);
        }
        scratch.suppressed.clear();
        if suppresses_stop(row) {
            editor.raw = None;
            for &token in &params.stop_token_ids {
                if let Some(&logit) = editor.logits.get(token as usize) {
                    scratch.suppressed.push((token, logit));
                }
                editor.edit(token, |_| f32::NEG_INFINITY)?;
            }
        }
        Ok(())
    }
}

/// The factor of exponents of 2 where the row's total is wanted: not if greedy, nor among the top-k.
fn total_scale(params: &SamplingParams, vocab_size: usize) -> Option<f32> {
    let all = params.top_k == 0 || params.top_k as usize >= vocab_size;
    (params.temperature >= GREEDY_BELOW && all).then(|| exponent_scale(params))
}

fn exponent_scale(params: &SamplingParams) -> f32 {
    1.0 / params.temperature * LOG2_E
}

impl Buffers {
    /// Finds the maximum of each block, and with a scale also its sum of powers.
    fn pass(&mut self, level: Level, logits: &[f32], scale: Option<f32>) -> Result<(), Failure> {
        let finite = match scale {
            None => scan(level, logits, &mut self.blocks),
            Some(scale) => scan_sum(level, logits, scale, &mut self.blocks, &mut self.sums),
        };
        if finite { Ok(()) } else { Err(Failure::NotFinite) }
    }

    /// The sum of all powers after a pass with this scale.
    fn total(&mut self, level: Level, scale: f32) -> f64 {
        let max = self.max();
        total(level, &self.blocks, &self.sums, max, scale, &mut self.select)
    }
}

/// Whether it is too early for stop tokens.
fn suppresses_stop(row: &SampleRow<'_>) -> bool {
    !row.params.stop_token_ids.is_empty() && row.position < row.num_prompt + row.params.min_tokens as usize
}

impl Failure {
    fn message(&self, position: usize) -> String {
        match self {
            Self::NotFinite => format!("the logits at position {position} are not finite"),
            Self::NothingAllowed => format!("no token is possible at position {position}"),
            Self::TooShort => format!("the row of logits at position {position} is shorter than the vocabulary"),
        }
    }
}

/// Changes single logits; checks them before and after, and keeps the first value of each.
struct Editor<'a> {
    logits: &'a mut [f32],
    raw: Option<&'a mut Vec<(TokenId, f32)>>,
}

impl Editor<'_> {
    /// Tokens outside the vocabulary are passed over.
    fn edit(&mut self, token: TokenId, f: impl FnOnce(f32) -> f32) -> Result<(), Failure> {
        let Some(logit) = self.logits.get_mut(token as usize) else { return Ok(()) };
        let (old, new) = (*logit, f(*logit));
        if !(old < f32::INFINITY && new < f32::INFINITY) {
            return Err(Failure::NotFinite);
        }
        *logit = new;
        if let Some(raw) = &mut self.raw {
            raw.push((token, old));
        }
        Ok(())
    }
}

/// Sets to -inf every logit whose bit is clear or missing.
fn apply_mask(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (group, word) in logits.chunks_mut(32).zip(words) {
        if word == u32::MAX {
            continue;
        }
        for (i, logit) in group.iter_mut().enumerate() {
            *logit = if word >> i & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

/// What turns a raw logit into a log-probability.
#[derive(Clone, Copy)]
struct Norm {
    max: f32,
    ln_sum: f64,
}

impl Norm {
    /// `None` if all logits are -inf.
    fn new(level: Level, buffers: &mut Buffers) -> Option<Self> {
        let max = buffers.max();
        (max > f32::NEG_INFINITY).then(|| Self { max, ln_sum: ln(buffers.total(level, LOG2_E)) })
    }

    fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.ln_sum) as f32
    }
}
