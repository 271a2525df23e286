//! Merging: from characters to pieces, the best score first, from a heap.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::SentencePiece;

impl SentencePiece {
    /// Joins the neighbours whose joint piece has the best score, the leftmost of equals, until none can be.
    pub(super) fn merge<'a>(&self, text: &'a str) -> Merged<'a> {
        let mut symbols = self.symbols(text);
        let mut heap = BinaryHeap::new();
        let mut made_of = HashMap::new();
        let mut steps = 0;
        for right in 1..symbols.len() {
            self.push_pair(text, &symbols, right - 1, right, &mut heap, &mut made_of);
        }
        while let Some(pair) = heap.pop() {
            steps += 1;
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            // Stale: one of the two has been merged with another since.
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = right.next;
            symbols[pair.right].len = 0;
            if let Some(prev) = left.prev {
                self.push_pair(text, &symbols, prev, pair.left, &mut heap, &mut made_of);
            }
            if let Some(next) = right.next {
                symbols[next].prev = Some(pair.left);
                self.push_pair(text, &symbols, pair.left, next, &mut heap, &mut made_of);
            }
        }
        let pieces = symbols.iter().filter(|s| s.len > 0).map(|s| &text[s.start..s.start + s.len]).collect();
        Merged { pieces, made_of, steps }
    }

    /// Characters, and user-defined pieces, which merge with nothing.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut push = |start: usize, len: usize, frozen: bool| {
            let at = symbols.len();
            if let Some(last) = symbols.last_mut() {
                last.next = Some(at);
            }
            symbols.push(Symbol { start, len, prev: at.checked_sub(1), next: None, frozen });
        };
        let mut done = 0;
        if let Some((matcher, _)) = &self.user_defined {
            for found in matcher.find_iter(text) {
                text[done..found.start()].char_indices().for_each(|(at, c)| push(done + at, c.len_utf8(), false));
                push(found.start(), found.len(), true);
                done = found.end();
            }
        }
        text[done..].char_indices().for_each(|(at, c)| push(done + at, c.len_utf8(), false));
        symbols
    }

    fn push_pair<'a>(
        &self,
        text: &'a str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        heap: &mut BinaryHeap<Pair>,
        made_of: &mut HashMap<&'a str, usize>,
    ) {
        let (l, r) = (symbols[left], symbols[right]);
        let len = l.len + r.len;
        if l.frozen || r.frozen || len > self.longest {
            return;
        }
        let joined = &text[l.start..l.start + len];
        let Some(&id) = self.mergeable.get(joined) else { return };
        if self.rules.split_unused && self.unused[id as usize] {
            made_of.insert(joined, l.len);
        }
        heap.push(Pair { score: self.scores[id as usize], left, right, len });
    }
}

/// A stretch of text that is a piece so far; `len` 0: it has become part of the one before.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

/// Two symbols that a piece joins.
#[derive(Clone, Copy, Debug)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.len.cmp(&other.len))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

pub(super) struct Merged<'a> {
    pub(super) pieces: Vec<&'a str>,
    /// Of unused pieces: the length of the left part they were made of.
    pub(super) made_of: HashMap<&'a str, usize>,
    /// Pairs looked at.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) steps: usize,
}
