//! Speculative decoding by prompt lookup: when it pays, and how many tokens to draft.
//!
//! Drafts never change a result, so whatever is decided here costs or saves time alone. Two things are estimated: the
//! time of a step by its tokens, from the steps before, and how likely a draft is right, from what the lookup said and
//! what was sampled then. The latter is learned whether the drafts were computed or not, so a text that copies
//! nothing costs nothing to be found out.

use std::time::Duration;

use super::ngram::{MAX_MATCH, NgramIndex, continuation};
use super::types::TokenId;

/// Whether and how the engine drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Most tokens drafted for a sequence in a step; 0 is off.
    pub max_tokens: usize,
    /// What a draft costs.
    pub cost: DraftCost,
}

impl Speculation {
    /// Nothing is drafted.
    pub const OFF: Self = Self { max_tokens: 0, cost: DraftCost::Measured };
}

/// What one more token costs in a step of decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftCost {
    /// As measured.
    #[default]
    Measured,
    /// So many hundredths of the step without drafts: what is drafted depends on tokens alone. At 0 whatever the
    /// lookup finds is drafted.
    Percent(u32),
}

/// Sequences of a step at most for which drafts are looked up.
pub(super) const MAX_ROWS: usize = 32;

/// The rate with drafts must be so much better than without.
const MARGIN: f64 = 1.05;

/// Bounds of the lengths of matches that are told apart, and how likely the next token is right before anything is
/// known of the sequence.
const CLASSES: [(usize, f64); 4] = [(2, 0.1), (4, 0.25), (9, 0.5), (usize::MAX, 0.8)];

/// How much a single outcome counts.
const LEARNING: f64 = 0.15;

/// What is known of a sequence's repetitions.
#[derive(Debug)]
pub(super) struct Lookup {
    index: NgramIndex,
    /// What would come next, of the step scheduled last; empty if nothing was looked up or found.
    proposal: Vec<TokenId>,
    /// Length of the match it comes from.
    match_len: usize,
    /// By [`CLASSES`]: how often the token after a match was right, of late.
    accuracy: [f64; CLASSES.len()],
}

impl Default for Lookup {
    fn default() -> Self {
        Self { index: NgramIndex::default(), proposal: Vec::new(), match_len: 0, accuracy: CLASSES.map(|(_, p)| p) }
    }
}

impl Lookup {
    /// Proposes up to `count` tokens to follow `tokens`.
    pub fn propose(&mut self, tokens: &[TokenId], count: usize) {
        self.proposal.clear();
        self.index.extend(tokens);
        if let Some(found) = self.index.longest_match(tokens) {
            self.match_len = found.len;
            continuation(tokens, found, count, &mut self.proposal);
        }
    }

    /// The proposal.
    pub fn proposal(&self) -> &[TokenId] {
        &self.proposal
    }

    /// How likely the proposal's token `i` is right if those before it are.
    fn likelihood(&self, i: usize) -> f64 {
        self.accuracy[class(self.match_len + i)]
    }

    /// Compares the proposal with what was sampled, and forgets it.
    pub fn learn(&mut self, sampled: &[TokenId]) {
        for (i, (proposed, sampled)) in self.proposal.iter().zip(sampled).enumerate() {
            let accuracy = &mut self.accuracy[class(self.match_len + i)];
            let right = proposed == sampled;
            *accuracy += LEARNING * (f64::from(u8::from(right)) - *accuracy);
            if !right {
                break;
            }
        }
        self.proposal.clear();
    }

    /// Forgets the proposal.
    pub fn clear(&mut self) {
        self.proposal.clear();
    }
}

fn class(match_len: usize) -> usize {
    CLASSES.iter().position(|&(up_to, _)| match_len <= up_to).unwrap_or(CLASSES.len() - 1)
}

/// Time of one step by its number of tokens.
#[derive(Clone, Copy, Debug)]
struct Measured {
    nanos: f64,
    /// When, counted in steps.
    at: u64,
}

/// What steps that only decode cost, by their number of tokens.
#[derive(Debug)]
pub(super) struct StepCosts {
    cost: DraftCost,
    /// By the number of tokens.
    times: Vec<Option<Measured>>,
    steps: u64,
}

/// Steps with more tokens are not looked at.
const MAX_TOKENS: usize = 128;
/// How much of a deviation goes to this number of tokens, and how much to all: depth and a busy machine change
/// them together.
const OWN_SHARE: f64 = 0.2;
const COMMON_SHARE: f64 = 0.05;
/// Measurements older than so many steps are made again when they are needed.
const STALE: u64 = 2000;
/// Where nothing is known, a token costs this part of what the tokens before it do.
const UNKNOWN_PRICE: f64 = 0.25;

impl StepCosts {
    pub fn new(cost: DraftCost) -> Self {
        Self { cost, times: vec![None; MAX_TOKENS + 1], steps: 0 }
    }

    /// Takes in the time of a step that only decoded, with so many tokens.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 || tokens > MAX_TOKENS || self.cost != DraftCost::Measured {
            return;
        }
        self.steps += 1;
        let (nanos, now) = (took.as_nanos().max(1) as f64, self.steps);
        let fresh = |m: &Measured| now - m.at <= STALE;
        match self.times[tokens].filter(fresh) {
            None => self.times[tokens] = Some(Measured { nanos, at: now }),
            Some(known) => {
                // A step may be interrupted for any length of time.
                let excess = (nanos / known.nanos).clamp(0.5, 1.5) - 1.0;
                self.times[tokens] = Some(Measured { nanos: known.nanos * (1.0 + OWN_SHARE * excess), at: now });
                for m in self.times.iter_mut().flatten() {
                    m.nanos *= 1.0 + COMMON_SHARE * excess;
                }
            }
        }
    }

    /// Times of steps of `rows` rows and 0 to `most` drafts; `None` if the former was not measured yet.
    fn curve(&self, rows: usize, most: usize) -> Option<Vec<f64>> {
        if let DraftCost::Percent(percent) = self.cost {
            return Some((0..=most).map(|k| 1.0 + k as f64 * f64::from(percent) / 100.0).collect());
        }
        let known = |tokens: usize| {
            let measured = self.times.get(tokens).copied().flatten()?;
            (self.steps - measured.at <= STALE).then_some(measured.nanos)
        };
        let mut curve = vec![known(rows)?];
        let mut last = 0;
        for k in 1..=most {
            let Some(time) = known(rows + k) else { continue };
            // More tokens are never cheaper, whatever the clock said.
            let time = time.max(curve[last]);
            let from = curve[last];
            curve.extend((last + 1..=k).map(|i| from + (time - from) * (i - last) as f64 / (k - last) as f64));
            last = k;
        }
        let price = UNKNOWN_PRICE * curve[last] / (rows + last) as f64;
        let from = curve[last];
        curve.extend((last + 1..=most).map(|i| from + price * (i - last) as f64));
        Some(curve)
    }

    /// Whether drafts that are all right would pay in a step of `rows` rows and up to `most` drafts.
    pub fn may_pay(&self, rows: usize, most: usize) -> bool {
        let Some(curve) = self.curve(rows, most) else { return false };
        (1..=most).any(|k| pays(rows as f64, k as f64, curve[0], curve[k]))
    }

    /// Shares out up to `most` drafts: how many of its proposal each of `lookups` gets, or none where they do not
    /// pay. There are `rows` rows in the step, those without a lookup included.
    pub fn plan(&self, rows: usize, lookups: &[&Lookup], most: usize) -> Vec<usize> {
        let mut counts = vec![0; lookups.len()];
        let Some(curve) = self.curve(rows, most) else { return counts };
        let mut values: Vec<f64> = lookups.iter().map(|l| l.likelihood(0)).collect();
        let (mut picks, mut expected) = (Vec::new(), 0.0);
        let (mut best, mut best_rate) = (0, 0.0);
        for k in 1..=most {
            let open = |&i: &usize| counts[i] < lookups[i].proposal.len();
            // The first of equals: what happens depends on nothing but numbers.
            let Some(pick) = (0..lookups.len()).filter(open).reduce(|a, b| if values[b] > values[a] { b } else { a })
            else {
                break;
            };
            expected += values[pick];
            counts[pick] += 1;
            values[pick] *= lookups[pick].likelihood(counts[pick]);
            picks.push(pick);
            let rate = (rows as f64 + expected) / curve[k];
            if pays(rows as f64, expected, curve[0], curve[k]) && rate > best_rate {
                (best, best_rate) = (k, rate);
            }
        }
        counts.fill(0);
        for &pick in &picks[..best] {
            counts[pick] += 1;
        }
        counts
    }
}

fn pays(rows: f64, more: f64, without: f64, with: f64) -> bool {
    (rows + more) * without >= MARGIN * rows * with
}

const _: () = assert!(MAX_MATCH > CLASSES[CLASSES.len() - 2].0, "all classes can occur");
