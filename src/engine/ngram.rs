//! Where the last tokens of a sequence have occurred before: what followed there may follow again.

use std::num::NonZeroU32;

use super::types::TokenId;

/// Tokens that must agree.
const MIN_MATCH: usize = 2;
/// Agreement is not measured beyond.
pub const MAX_MATCH: usize = 16;
/// Earlier occurrences looked at, the newest first: bounds the time of a search.
const MAX_CANDIDATES: usize = 16;

/// Number of tokens up to the end of an n-gram of [`MIN_MATCH`] tokens.
type End = NonZeroU32;

/// The n-grams of one sequence that only grows, in hash chains as of LZ77. Four to twelve bytes a token.
#[derive(Debug, Default)]
pub struct NgramIndex {
    /// The newest n-gram of each hash; a power of two of them.
    heads: Vec<Option<End>>,
    /// The n-gram of the same hash before the one that ends after `MIN_MATCH + i` tokens.
    previous: Vec<Option<End>>,
}

/// An earlier occurrence of the last tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Tokens that agree, at most [`MAX_MATCH`].
    pub len: usize,
    /// Index of the token that followed.
    pub next: usize,
}

impl NgramIndex {
    /// Takes in the tokens that are new since the last call.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        let count = (tokens.len() + 1).saturating_sub(MIN_MATCH);
        if count > self.heads.len() {
            self.heads.clear();
            self.heads.resize(count.next_power_of_two().max(64), None);
            self.previous.clear();
        }
        for first in self.previous.len()..count {
            let slot = self.slot(&tokens[first..first + MIN_MATCH]);
            let end = u32::try_from(first + MIN_MATCH).ok().and_then(End::new);
            self.previous.push(std::mem::replace(&mut self.heads[slot], end));
        }
    }

    /// The longest earlier occurrence of the end of `tokens`, which must be what was taken in; the newest of
    /// several.
    pub fn longest_match(&self, tokens: &[TokenId]) -> Option<Match> {
        let mut found: Option<Match> = None;
        let mut candidate = *self.previous.last()?;
        for _ in 0..MAX_CANDIDATES {
            let Some(end) = candidate else { break };
            let end = end.get() as usize;
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let len = pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count();
            if len >= MIN_MATCH && found.is_none_or(|f| len > f.len) {
                found = Some(Match { len, next: end });
                if len == MAX_MATCH {
                    break;
                }
            }
            candidate = self.previous[end - MIN_MATCH];
        }
        found
    }

    fn slot(&self, ngram: &[TokenId]) -> usize {
        let hash =
            ngram.iter().fold(0u64, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        hash as usize & (self.heads.len() - 1)
    }
}

/// Puts `count` tokens into `drafts` that would follow if the text went on as after the match. What runs beyond the
/// end repeats.
pub fn continuation(tokens: &[TokenId], from: Match, count: usize, drafts: &mut Vec<TokenId>) {
    drafts.clear();
    for i in 0..count {
        let index = from.next + i;
        drafts.push(match index.checked_sub(tokens.len()) {
            None => tokens[index],
            Some(beyond) => drafts[beyond],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tokens: &[TokenId]) -> Option<(usize, usize)> {
        let mut index = NgramIndex::default();
        for end in 0..=tokens.len() {
            index.extend(&tokens[..end]);
        }
        index.longest_match(tokens).map(|m| (m.len, m.next))
    }

    #[test]
    fn the_longest_then_the_newest_occurrence_is_found() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[1]), None);
        assert_eq!(found(&[1, 2, 3]), None);
        assert_eq!(found(&[1, 2, 9, 1, 2]), Some((2, 2)));
        assert_eq!(found(&[5, 1, 2, 9, 7, 1, 2, 8, 5, 1, 2]), Some((3, 3)));
        assert_eq!(found(&[1, 2, 9, 1, 2, 8, 1, 2]), Some((2, 5)));
        assert_eq!(found(&[4, 4, 4, 4]), Some((3, 3)));
        assert_eq!(found(&[3; 100]), Some((MAX_MATCH, 99)));
    }

    #[test]
    fn a_slow_search_finds_the_same() {
        let mut state = 1u32;
        let mut tokens = Vec::new();
        let mut index = NgramIndex::default();
        for _ in 0..600 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            tokens.push(state >> 28);
            index.extend(&tokens);
            let len = |end: usize| {
                let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
                pairs.take(MAX_MATCH).take_while(|(a, b)| a == b).count()
            };
            // The newest occurrences, as many as are looked at.
            let newest = (MIN_MATCH..tokens.len()).rev().filter(|&end| len(end) >= MIN_MATCH).take(MAX_CANDIDATES);
            let slow = newest.map(|end| (len(end), end)).reduce(|best, m| if m.0 > best.0 { m } else { best });
            let fast = index.longest_match(&tokens).map(|m| (m.len, m.next));
            // Other n-grams of the same hash count as looked at.
            if fast != slow {
                assert!(fast.map_or(0, |f| f.0) <= slow.map_or(0, |s| s.0), "{fast:?} {slow:?}");
                let (len_found, end) = fast.unwrap_or((0, 0));
                assert!(fast.is_none() || len(end) == len_found);
            }
        }
    }

    #[test]
    fn a_continuation_repeats_beyond_the_end() {
        let mut drafts = vec![1];
        continuation(&[1, 2, 3, 1, 2], Match { len: 2, next: 2 }, 7, &mut drafts);
        assert_eq!(drafts, [3, 1, 2, 3, 1, 2, 3]);
    }
}
