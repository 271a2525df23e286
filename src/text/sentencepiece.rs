//! SentencePiece BPE: text to pieces by scores.

mod merge;

use std::collections::HashMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::engine::TokenId;

/// How SentencePiece writes a space.
const SPACE: char = '▁';

/// What a piece is for; the numbers are those of GGUF and of SentencePiece's protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Made of text by merging.
    Normal,
    /// Stands for what the vocabulary cannot write.
    Unknown,
    /// Stands for no text, and text never becomes it.
    Control,
    /// Found in text before merging.
    UserDefined,
    /// In the vocabulary, but not to be used.
    Unused,
    /// One byte, `<0xNN>`.
    Byte,
}

impl PieceKind {
    pub(super) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether it is a token that stands for no text.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}

/// Where a space that is not part of the text is put before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    /// Nowhere.
    Never,
    /// At the beginning.
    First,
    /// At the beginning, and after each special token unless there is one.
    FirstAndMissing,
    /// At the beginning and after each special token.
    Always,
}

/// One entry of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) spelling: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// What differs between those who encode with a SentencePiece vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) prefix: SpacePrefix,
    /// Leading, trailing and repeated spaces are dropped.
    pub(super) remove_extra_whitespaces: bool,
    /// Bytes stand for what has no piece.
    pub(super) byte_fallback: bool,
    /// User-defined pieces are found here. Else the caller has found them and text is what is between.
    pub(super) find_user_defined: bool,
    /// An unused piece that merging made is taken apart again (SentencePiece), or used (llama.cpp).
    pub(super) split_unused: bool,
}

/// A vocabulary with its rules. Merging keeps pairs in a heap, so that a text of `n` characters costs
/// O(n log n) steps whatever it is.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// What merging may make: normal, unused and user-defined pieces.
    mergeable: HashMap<String, TokenId>,
    scores: Vec<f32>,
    unused: Vec<bool>,
    longest: usize,
    user_defined: Option<(AhoCorasick, Vec<TokenId>)>,
    bytes: Option<Box<[TokenId; 256]>>,
    unknown: Option<TokenId>,
    rules: Rules,
}

impl SentencePiece {
    /// Checks the pieces; the error is one sentence.
    pub(super) fn new(pieces: &[Piece], unknown: Option<TokenId>, rules: Rules) -> Result<Self, String> {
        let mut model = Self {
            mergeable: HashMap::with_capacity(pieces.len()),
            scores: Vec::with_capacity(pieces.len()),
            unused: Vec::with_capacity(pieces.len()),
            longest: 0,
            user_defined: None,
            bytes: None,
            unknown,
            rules,
        };
        let mut bytes: [Option<TokenId>; 256] = [None; 256];
        let (mut patterns, mut pattern_ids) = (Vec::new(), Vec::new());
        for (id, piece) in pieces.iter().enumerate() {
            if piece.score.is_nan() {
                return Err(format!("token {id} ({:?}) has a score that is not a number", piece.spelling));
            }
            model.scores.push(piece.score + 0.0); // -0 equals 0
            model.unused.push(piece.kind == PieceKind::Unused);
            match piece.kind {
                PieceKind::Unknown | PieceKind::Control => {}
                PieceKind::Byte => {
                    let byte = super::token_table::byte_token(&piece.spelling).ok_or_else(|| {
                        format!("token {id} ({:?}) is a byte, but not spelled <0xNN>", piece.spelling)
                    })?;
                    bytes[byte as usize].get_or_insert(id as TokenId);
                }
                PieceKind::Normal | PieceKind::Unused | PieceKind::UserDefined => {
                    if !piece.spelling.is_empty() {
                        model.mergeable.entry(piece.spelling.clone()).or_insert(id as TokenId);
                        model.longest = model.longest.max(piece.spelling.len());
                    }
                    if rules.find_user_defined && piece.kind == PieceKind::UserDefined && !piece.spelling.is_empty() {
                        patterns.push(piece.spelling.as_str());
                        pattern_ids.push(id as TokenId);
                    }
                }
            }
        }
        if rules.byte_fallback {
            let mut all = [0; 256];
            for (byte, id) in bytes.iter().enumerate() {
                all[byte] = id.ok_or_else(|| format!("the vocabulary has no token <0x{byte:02X}>"))?;
            }
            model.bytes = Some(Box::new(all));
        } else if unknown.is_none() {
            return Err("the vocabulary has neither bytes nor an unknown token".into());
        }
        if !patterns.is_empty() {
            let matcher = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns);
            model.user_defined =
                Some((matcher.map_err(|e| format!("too many user-defined tokens: {e}"))?, pattern_ids));
        }
        Ok(model)
    }

    pub(super) fn removes_extra_whitespaces(&self) -> bool {
        self.rules.remove_extra_whitespaces
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn unknown(&self) -> Option<TokenId> {
        self.unknown
    }

    /// What merging may make, with its id and score.
    pub(super) fn mergeable(&self) -> impl Iterator<Item = (&str, TokenId, f32)> {
        self.mergeable.iter().map(|(piece, &id)| (piece.as_str(), id, self.scores[id as usize]))
    }

    /// Adds the ids of `text`, which has no special token in it. `first`: nothing came before. `spans` gets the bytes
    /// of `text` that each id stands for; a space that is put before the text counts to its first character.
    pub(super) fn encode(
        &self,
        text: &str,
        first: bool,
        ids: &mut Vec<TokenId>,
        spans: Option<&mut Vec<Range<usize>>>,
    ) {
        let prefix = match self.rules.prefix {
            SpacePrefix::Never => false,
            SpacePrefix::First => first,
            SpacePrefix::FirstAndMissing => first || !text.starts_with(' '),
            SpacePrefix::Always => true,
        };
        let mut sources = spans.is_some().then(Vec::new);
        let text = self.normalize(text, prefix, sources.as_mut());
        let merged = self.merge(&text);
        let mut out = Output { ids, at: 0, spans: sources.as_deref().zip(spans), unknown_before: false };
        for piece in &merged.pieces {
            self.emit(piece, &merged.made_of, &mut out);
        }
    }

    /// The text as pieces spell it; `sources` gets the bytes of `text` that each byte of the result comes from.
    fn normalize(&self, text: &str, prefix: bool, mut sources: Option<&mut Vec<Range<usize>>>) -> String {
        let squeeze = self.rules.remove_extra_whitespaces;
        let start = if squeeze { text.len() - text.trim_start_matches(' ').len() } else { 0 };
        let text = &text[start..];
        let mut out = String::with_capacity(text.len() + text.len() / 4 + SPACE.len_utf8());
        let Some(head) = text.chars().next() else { return out };
        let mut push = |c: char, at: usize, len: usize| {
            out.push(c);
            if let Some(sources) = sources.as_deref_mut() {
                sources.extend(std::iter::repeat_n(start + at..start + at + len, c.len_utf8()));
            }
        };
        if prefix {
            push(SPACE, 0, head.len_utf8());
        }
        let mut after_space = false;
        for (at, c) in text.char_indices() {
            if c != ' ' {
                push(c, at, c.len_utf8());
            } else if !(squeeze && after_space) {
                push(SPACE, at, 1);
            }
            after_space = c == ' ';
        }
        if squeeze {
            out.truncate(out.trim_end_matches(SPACE).len());
        }
        out
    }

    fn emit(&self, piece: &str, made_of: &HashMap<&str, usize>, out: &mut Output<'_>) {
        let mut rest = vec![piece];
        while let Some(piece) = rest.pop() {
            if let Some(&left) = made_of.get(piece) {
                let (left, right) = piece.split_at(left);
                rest.extend([right, left]);
                continue;
            }
            let was_unknown = std::mem::replace(&mut out.unknown_before, false);
            match (self.mergeable.get(piece), &self.bytes, self.unknown) {
                (Some(&id), _, _) => out.push(id, piece.len()),
                (None, Some(bytes), _) => piece.bytes().for_each(|b| out.push(bytes[b as usize], piece.len())),
                // Neighbours that are unknown are one unknown token.
                (None, None, Some(unknown)) => {
                    out.unknown_before = true;
                    match was_unknown {
                        true => out.extend(piece.len()),
                        false => out.push(unknown, piece.len()),
                    }
                }
                (None, None, None) => {}
            }
            out.at += piece.len();
        }
    }
}

type Span = Range<usize>;

/// Ids on their way out, and what each stands for if that is asked.
struct Output<'a> {
    ids: &'a mut Vec<TokenId>,
    /// In the normalized text.
    at: usize,
    /// Of each byte of the normalized text; and of each id.
    spans: Option<(&'a [Span], &'a mut Vec<Span>)>,
    unknown_before: bool,
}

impl Output<'_> {
    fn push(&mut self, id: TokenId, len: usize) {
        self.ids.push(id);
        if let Some((sources, spans)) = &mut self.spans {
            spans.push(sources[self.at].start..sources[self.at + len - 1].end);
        }
    }

    fn extend(&mut self, len: usize) {
        if let Some((sources, spans)) = &mut self.spans
            && let Some(last) = spans.last_mut()
        {
            last.end = sources[self.at + len - 1].end;
        }
    }
}

#[cfg(test)]
mod tests;
