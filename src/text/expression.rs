//! The expressions that split text before byte-level BPE, by hand.
//!
//! All of them look ahead (`\s+(?!\S)`), which regular expression engines do by backtracking, with limits that
//! long runs of white space exceed. These take one pass. What they match is what the expressions match.

use std::cell::Cell;
use std::sync::LazyLock;

use tokenizers::pattern::Pattern;
use tokenizers::utils::SysRegex;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// An expression; between them they match all of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// GPT-2's.
    Gpt2,
    /// Llama 3's: up to three digits at a time.
    Llama3,
    /// Qwen 2's: one digit at a time.
    Qwen2,
    /// Qwen 2's, line breaks never with punctuation.
    SeedCoder,
    /// Mistral's Tekken: words are cut where small letters are followed by capitals.
    Tekken,
    /// GPT-4o's: Tekken's with contractions and three digits.
    Gpt4o,
}

impl Expression {
    /// The one that `regex` is.
    pub(super) fn recognise(regex: &str) -> Option<Self> {
        match regex {
            LLAMA3 => Some(Self::Llama3),
            QWEN2 => Some(Self::Qwen2),
            SEED_CODER => Some(Self::SeedCoder),
            TEKKEN => Some(Self::Tekken),
            GPT4O => Some(Self::Gpt4o),
            // What `\s+(?!\S)` leaves is single characters of white space, matched or not.
            _ if regex.strip_suffix(r"|\s+").unwrap_or(regex) == GPT2 => Some(Self::Gpt2),
            _ => None,
        }
    }

    pub(super) fn regex(self) -> &'static str {
        match self {
            Self::Gpt2 => GPT2,
            Self::Llama3 => LLAMA3,
            Self::Qwen2 => QWEN2,
            Self::SeedCoder => SEED_CODER,
            Self::Tekken => TEKKEN,
            Self::Gpt4o => GPT4O,
        }
    }

    /// Where the match that begins at `at` ends.
    fn end(self, text: &Text<'_>, at: usize) -> usize {
        let c = text.at(at).expect("the match begins inside the text");
        let gpt2 = self == Self::Gpt2;
        if let Some(end) = self.contraction(text, at) {
            return end;
        }
        if let Some(end) = match self {
            Self::Gpt2 => text.run_after_space(at, letter),
            Self::Llama3 | Self::Qwen2 | Self::SeedCoder => {
                let begin = if may_lead_a_word(c) { at + c.len_utf8() } else { at };
                text.some(begin, letter)
            }
            Self::Tekken => cased_word(text, at, c),
            Self::Gpt4o => cased_word(text, at, c).map(|end| contraction(text, end, true).unwrap_or(end)),
        } {
            return end;
        }
        if gpt2 && let Some(end) = text.run_after_space(at, number) {
            return end;
        }
        if number(c) {
            let digits = if matches!(self, Self::Llama3 | Self::Gpt4o) { 3 } else { 1 };
            return text.up_to(at, digits, number);
        }
        if let Some(end) = text.run_after_space(at, |c| !c.is_whitespace() && !number(c) && !letter(c)) {
            return match self {
                Self::Gpt2 | Self::SeedCoder => end,
                Self::Llama3 | Self::Qwen2 => text.run(end, |c| matches!(c, '\r' | '\n')),
                Self::Tekken | Self::Gpt4o => text.run(end, |c| matches!(c, '\r' | '\n' | '/')),
            };
        }
        white_space(text, at, !gpt2)
    }

    fn contraction(self, text: &Text<'_>, at: usize) -> Option<usize> {
        match self {
            Self::Gpt2 => contraction(text, at, false),
            Self::Llama3 | Self::Qwen2 | Self::SeedCoder => contraction(text, at, true),
            Self::Tekken | Self::Gpt4o => None,
        }
    }
}

impl Pattern for Expression {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<((usize, usize), bool)>> {
        let text = Text { text: inside, steps: Cell::new(0) };
        let mut matches = Vec::with_capacity(inside.len() / 4 + 1);
        let mut at = 0;
        while at < inside.len() {
            let end = self.end(&text, at);
            matches.push(((at, end), true));
            at = end;
        }
        if matches.is_empty() {
            matches.push(((0, 0), false));
        }
        Ok(matches)
    }
}

/// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d`.
fn contraction(text: &Text<'_>, at: usize, any_case: bool) -> Option<usize> {
    if text.at(at) != Some('\'') {
        return None;
    }
    let fold = |c: char| match c {
        'ſ' if any_case => 's',
        c if any_case => c.to_ascii_lowercase(),
        c => c,
    };
    let first = text.at(at + 1)?;
    let second = at + 1 + first.len_utf8();
    match fold(first) {
        's' | 't' | 'm' | 'd' => Some(second),
        'r' | 'v' if text.at(second).map(fold) == Some('e') => Some(second + 1),
        'l' if text.at(second).map(fold) == Some('l') => Some(second + 1),
        _ => None,
    }
}

/// `[^\r\n\p{L}\p{N}]`
fn may_lead_a_word(c: char) -> bool {
    !matches!(c, '\r' | '\n') && !number(c) && !letter(c)
}

/// A leading character, capitals, small letters; at least one of the latter two.
fn cased_word(text: &Text<'_>, at: usize, c: char) -> Option<usize> {
    let after = may_lead_a_word(c).then(|| at + c.len_utf8());
    let small = after.and_then(|at| ends_small(text, at)).or_else(|| ends_small(text, at));
    small.or_else(|| {
        let capitals = after.and_then(|at| text.some(at, upper)).or_else(|| text.some(at, upper))?;
        Some(text.run(capitals, lower))
    })
}

/// `[upper]*[lower]+`, where some characters are both.
fn ends_small(text: &Text<'_>, at: usize) -> Option<usize> {
    let capitals = text.run(at, upper);
    if let Some(end) = text.some(capitals, lower) {
        return Some(end);
    }
    // Give back up to the last that may be a small letter.
    let (last, c) = text.text[at..capitals].char_indices().rev().find(|&(_, c)| {
        text.steps.set(text.steps.get() + 1);
        lower(c)
    })?;
    Some(at + last + c.len_utf8())
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`, the first only if `line_breaks`.
fn white_space(text: &Text<'_>, at: usize, line_breaks: bool) -> usize {
    let mut last_break = None;
    let mut last = at;
    let end = text.run_with(at, char::is_whitespace, |i, c| {
        last = i;
        if line_breaks && matches!(c, '\r' | '\n') {
            last_break = Some(i + 1);
        }
    });
    match last_break {
        Some(end) => end,
        None if end < text.text.len() && last > at => last,
        None => end,
    }
}

/// A text, and how many characters have been looked at.
struct Text<'a> {
    text: &'a str,
    steps: Cell<usize>,
}

impl Text<'_> {
    fn at(&self, at: usize) -> Option<char> {
        self.steps.set(self.steps.get() + 1);
        self.text[at..].chars().next()
    }

    fn run_with(&self, at: usize, is: impl Fn(char) -> bool, mut each: impl FnMut(usize, char)) -> usize {
        let mut end = at;
        while let Some(c) = self.at(end).filter(|&c| is(c)) {
            each(end, c);
            end += c.len_utf8();
        }
        end
    }

    /// Where the characters that are `is` end.
    fn run(&self, at: usize, is: impl Fn(char) -> bool) -> usize {
        self.run_with(at, is, |_, _| ())
    }

    /// The same if there is one at least.
    fn some(&self, at: usize, is: impl Fn(char) -> bool) -> Option<usize> {
        Some(self.run(at, is)).filter(|&end| end > at)
    }

    /// A space if there is one, then one at least that is `is`.
    fn run_after_space(&self, at: usize, is: impl Fn(char) -> bool) -> Option<usize> {
        self.some(at + usize::from(self.at(at) == Some(' ')), is)
    }

    fn up_to(&self, at: usize, most: usize, is: impl Fn(char) -> bool) -> usize {
        let mut end = at;
        for _ in 0..most {
            match self.at(end) {
                Some(c) if is(c) => end += c.len_utf8(),
                _ => break,
            }
        }
        end
    }
}

/// `\p{L}`
fn letter(c: char) -> bool {
    static LETTERS: LazyLock<Class> = LazyLock::new(|| Class::of(r"\p{L}+"));
    if c.is_ascii() { c.is_ascii_alphabetic() } else { LETTERS.has(c) }
}

/// `\p{N}`; the standard library may know another version of Unicode than the engine.
fn number(c: char) -> bool {
    static NUMBERS: LazyLock<Class> = LazyLock::new(|| Class::of(r"\p{N}+"));
    if c.is_ascii() { c.is_ascii_digit() } else { NUMBERS.has(c) }
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
fn upper(c: char) -> bool {
    static UPPER: LazyLock<Class> = LazyLock::new(|| Class::of(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"));
    if c.is_ascii() { c.is_ascii_uppercase() } else { UPPER.has(c) }
}

/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
fn lower(c: char) -> bool {
    static LOWER: LazyLock<Class> = LazyLock::new(|| Class::of(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"));
    if c.is_ascii() { c.is_ascii_lowercase() } else { LOWER.has(c) }
}

/// A set of characters: ranges in ascending order.
struct Class(Vec<(char, char)>);

impl Class {
    /// Asks the engine about every character there is.
    fn of(regex: &str) -> Self {
        let regex = SysRegex::new(regex).expect("the expression is well formed");
        let all: String = ('\0'..=char::MAX).collect();
        let range = |(start, end): (usize, usize)| {
            let mut found = all[start..end].chars();
            let first = found.next().expect("a match is not empty");
            (first, found.next_back().unwrap_or(first))
        };
        Self(regex.find_iter(&all).map(range).collect())
    }

    fn has(&self, c: char) -> bool {
        let after = self.0.partition_point(|&(first, _)| first <= c);
        after.checked_sub(1).is_some_and(|i| c <= self.0[i].1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ALL: [Expression; 6] = [
        Expression::Gpt2,
        Expression::Llama3,
        Expression::Qwen2,
        Expression::SeedCoder,
        Expression::Tekken,
        Expression::Gpt4o,
    ];

    /// The slow twin: the expression itself; what it leaves out is a match of its own.
    fn by_engine(regex: &SysRegex, text: &str) -> Vec<(usize, usize)> {
        let mut cuts = Vec::new();
        let mut done = 0;
        for (start, end) in regex.find_iter(text) {
            cuts.extend((done < start).then_some((done, start)));
            cuts.push((start, end));
            done = end;
        }
        cuts.extend((done < text.len()).then_some((done, text.len())));
        cuts
    }

    fn by_hand(expression: Expression, text: &str) -> Vec<(usize, usize)> {
        let matches = expression.find_matches(text).unwrap();
        matches.into_iter().map(|(range, _)| range).filter(|r| r.0 < r.1).collect()
    }

    #[test]
    fn random_texts_are_cut_as_the_expressions_cut_them() {
        let alphabet: Vec<char> = " \u{20}\u{20}\t\n\r\u{a0}\u{85}\u{3000}\u{2028}'''sStTrReEvVmMlLdDſabzAZ09½Ⅷ٣!/.-_<é́̂Àßǅʰªאبกคहिन्中日가😀👩\u{200d}\u{fe0f}\u{301}\0\u{7f}\u{10ffff}𝕬𝟙"
            .chars()
            .collect();
        let mut state = 0x1234_5678_9ABC_DEF1_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % n
        };
        let engines = ALL.map(|expression| (expression, SysRegex::new(expression.regex()).unwrap()));
        for _ in 0..4000 {
            let mut text = String::new();
            for _ in 0..below(24) {
                let c = alphabet[below(alphabet.len())];
                text.extend(std::iter::repeat_n(c, 1 + below(3) * below(2)));
            }
            for (expression, engine) in &engines {
                assert_eq!(by_hand(*expression, &text), by_engine(engine, &text), "{expression:?} {text:?}");
            }
        }
    }

    #[test]
    fn every_character_has_the_engines_class() {
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for expression in [Expression::Llama3, Expression::Tekken] {
            let engine = SysRegex::new(expression.regex()).unwrap();
            for some in all.chunks(1 << 14) {
                let text: String = some.iter().flat_map(|&c| [c, '\u{1}']).collect();
                let (hand, engine) = (by_hand(expression, &text), by_engine(&engine, &text));
                let differ = hand.iter().zip(&engine).find(|(a, b)| a != b);
                assert_eq!(differ, None, "{expression:?}: {:?}", differ.map(|(a, _)| &text[a.0..a.1]));
            }
        }
    }

    #[test]
    fn each_character_is_looked_at_a_few_times() {
        let n = 1 << 15;
        let long =
            ["a", " ", "\n", "A", "Aa", "aA", "\n ", " a", "1", "!", "é", "\u{301}", "中", "' ", "'", "\u{301}A", "Aʰ"];
        for unit in long {
            for tail in ["", "x", "\n", "A", "1"] {
                let text = unit.repeat(n / unit.len()) + tail;
                for expression in ALL {
                    let counted = Text { text: &text, steps: Cell::new(0) };
                    let mut at = 0;
                    while at < text.len() {
                        at = expression.end(&counted, at);
                    }
                    let (steps, chars) = (counted.steps.get(), text.chars().count());
                    assert!(steps <= 24 * chars + 24, "{expression:?} {unit:?}: {steps} steps for {chars}");
                }
            }
        }
    }

    #[test]
    fn expressions_are_recognised() {
        for expression in ALL {
            assert_eq!(Expression::recognise(expression.regex()), Some(expression));
        }
        assert_eq!(Expression::recognise(&format!(r"{GPT2}|\s+")), Some(Expression::Gpt2));
        assert_eq!(Expression::recognise(r"\s+"), None);
    }
}
