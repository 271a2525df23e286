//! The tokens a sequence has seen, counted as they come.

use std::collections::HashMap;

use crate::engine::{SamplingParams, TokenId};

/// A token that occurs in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The token.
    pub token: TokenId,
    /// How often it was generated; 0 if it is only in the prompt.
    pub generated: u32,
}

impl Seen {
    /// The penalised logit.
    pub fn penalise(self, logit: f32, params: &SamplingParams) -> f32 {
        let p = params.repetition_penalty;
        let mut l = logit;
        if p != 1.0 {
            l = if l < 0.0 { l * p } else { l / p };
        }
        if self.generated > 0 {
            l -= params.frequency_penalty * self.generated as f32;
            l -= params.presence_penalty;
        }
        l
    }
}

/// Counts of the distinct tokens of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct PenaltyCounts {
    seen: Vec<Seen>,
    /// Token to its place in `seen`.
    index: HashMap<TokenId, usize>,
    /// Tokens of the history counted, and the last of them.
    counted: usize,
    last: Option<TokenId>,
    num_prompt: usize,
}

impl PenaltyCounts {
    /// Counts what `history` has beyond the last call; from the start if it does not continue that.
    pub fn update(&mut self, history: &[TokenId], num_prompt: usize) {
        if !self.is_prefix_of(history, num_prompt) {
            self.clear();
            self.num_prompt = num_prompt;
        }
        for (i, &token) in history.iter().enumerate().skip(self.counted) {
            let place = *self.index.entry(token).or_insert_with(|| {
                self.seen.push(Seen { token, generated: 0 });
                self.seen.len() - 1
            });
            self.seen[place].generated += u32::from(i >= num_prompt);
        }
        self.counted = history.len();
        self.last = history.last().copied();
    }

    /// Whether these are the counts of exactly this history.
    pub fn matches(&self, history: &[TokenId], num_prompt: usize) -> bool {
        self.counted == history.len() && self.is_prefix_of(history, num_prompt)
    }

    /// Forgets everything; keeps the allocations.
    pub fn clear(&mut self) {
        self.seen.clear();
        self.index.clear();
        self.counted = 0;
        self.last = None;
    }

    /// The distinct tokens, as they would be had `drafts` been generated too.
    pub fn seen_with<'a>(&'a self, drafts: &'a [TokenId]) -> impl Iterator<Item = Seen> + 'a {
        let count = |token| drafts.iter().filter(|&&t| t == token).count() as u32;
        let known = self.seen.iter().map(move |s| Seen { generated: s.generated + count(s.token), ..*s });
        let first = move |i: usize| !self.index.contains_key(&drafts[i]) && !drafts[..i].contains(&drafts[i]);
        let new = (0..drafts.len()).filter(move |&i| first(i));
        known.chain(new.map(move |i| Seen { token: drafts[i], generated: count(drafts[i]) }))
    }

    /// A sequence only grows or is cut back, so its length and last token tell.
    fn is_prefix_of(&self, history: &[TokenId], num_prompt: usize) -> bool {
        self.num_prompt == num_prompt
            && self.counted <= history.len()
            && self.last == self.counted.checked_sub(1).map(|i| history[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(counts: &PenaltyCounts) -> Vec<(TokenId, u32)> {
        let mut seen: Vec<_> = counts.seen_with(&[]).map(|s| (s.token, s.generated)).collect();
        seen.sort_unstable();
        seen
    }

    #[test]
    fn counts_grow_and_start_over() {
        let mut counts = PenaltyCounts::default();
        counts.update(&[5, 6, 5], 3);
        assert_eq!(sorted(&counts), [(5, 0), (6, 0)]);
        counts.update(&[5, 6, 5, 6, 7, 7], 3);
        assert_eq!(sorted(&counts), [(5, 0), (6, 1), (7, 2)]);
        assert!(counts.matches(&[5, 6, 5, 6, 7, 7], 3));
        counts.update(&[5, 6, 5, 6], 3);
        assert_eq!(sorted(&counts), [(5, 0), (6, 1)]);
        counts.update(&[5, 6, 5, 9, 9], 3);
        assert_eq!(sorted(&counts), [(5, 0), (6, 0), (9, 2)]);
        counts.update(&[5, 6, 5, 9, 9], 4);
        assert_eq!(sorted(&counts), [(5, 0), (6, 0), (9, 1)]);
    }
}
