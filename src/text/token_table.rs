//! What each token id stands for, worked out once when a tokenizer is loaded.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use crate::engine::TokenId;

/// Ids without a token that are accepted for each that has one, and beyond: a wrong file cannot ask for gigabytes.
const MAX_GAPS: (usize, usize) = (4, 4096);

/// How a vocabulary writes bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// GPT-2's: each byte is one printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space; `<0xNN>` is a byte if `byte_fallback`.
    SentencePiece { byte_fallback: bool },
}

struct Entry {
    spelling: Box<str>,
    bytes: Box<[u8]>,
    special: bool,
}

/// Spelling, bytes and kind of each id.
pub(super) struct TokenTable {
    entries: Vec<Option<Entry>>,
    strips_leading_space: bool,
}

impl TokenTable {
    /// Reads the vocabulary; the decoder says which alphabet it is written in.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        let (alphabet, strips_leading_space) = alphabet(tokenizer.get_decoder())?;
        let added = tokenizer.get_added_tokens_decoder();
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().map(|&id| id as usize + 1).max().unwrap_or(0);
        if len == 0 {
            return Err("the vocabulary is empty".into());
        }
        if len > vocab.len() * (1 + MAX_GAPS.0) + MAX_GAPS.1 {
            return Err(format!("token id {} is far beyond the number of tokens, {}", len - 1, vocab.len()));
        }
        let of_byte_char = byte_level_inverse();
        let mut entries: Vec<Option<Entry>> = Vec::new();
        entries.resize_with(len, || None);
        for (spelling, id) in vocab {
            let (special, bytes) = match added.get(&id) {
                Some(token) if token.special => (true, Box::default()),
                Some(token) => (false, token.content.as_bytes().into()),
                None => (false, text_bytes(&spelling, alphabet, &of_byte_char)),
            };
            entries[id as usize] = Some(Entry { spelling: spelling.into(), bytes, special });
        }
        Ok(Self { entries, strips_leading_space })
    }

    fn get(&self, id: TokenId) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self, id: TokenId) -> &[u8] {
        self.get(id).map_or(&[], |e| &e.bytes)
    }

    pub(super) fn spelling(&self, id: TokenId) -> Option<&str> {
        self.get(id).map(|e| &*e.spelling)
    }

    pub(super) fn is_special(&self, id: TokenId) -> bool {
        self.get(id).is_some_and(|e| e.special)
    }

    pub(super) fn specials(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flatten().filter(|e| e.special).map(|e| &*e.spelling)
    }

    pub(super) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }
}

fn alphabet(decoder: Option<&DecoderWrapper>) -> Result<(Alphabet, bool), String> {
    let steps = match decoder {
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    if steps.iter().any(|d| matches!(d, DecoderWrapper::ByteLevel(_))) {
        return Ok((Alphabet::ByteLevel, false));
    }
    let byte_fallback = steps.iter().any(|d| matches!(d, DecoderWrapper::ByteFallback(_)));
    let metaspace = steps.iter().find_map(|d| match d {
        DecoderWrapper::Metaspace(m) => Some(m.prepend_scheme != PrependScheme::Never),
        _ => None,
    });
    let strip = steps.iter().any(|d| matches!(d, DecoderWrapper::Strip(s) if s.content == ' ' && s.start > 0));
    if !byte_fallback && metaspace.is_none() && !steps.iter().any(|d| matches!(d, DecoderWrapper::Replace(_))) {
        return Err("its decoder is neither byte-level nor SentencePiece, which are those supported".into());
    }
    Ok((Alphabet::SentencePiece { byte_fallback }, metaspace.unwrap_or(false) || strip))
}

fn text_bytes(spelling: &str, alphabet: Alphabet, of_byte_char: &HashMap<char, u8>) -> Box<[u8]> {
    match alphabet {
        // A spelling outside the alphabet stands for itself, as in Hugging Face's decoder.
        Alphabet::ByteLevel => match spelling.chars().map(|c| of_byte_char.get(&c).copied()).collect() {
            Some(bytes) => bytes,
            None => spelling.as_bytes().into(),
        },
        Alphabet::SentencePiece { byte_fallback } => match byte_token(spelling).filter(|_| byte_fallback) {
            Some(byte) => [byte].into(),
            None => spelling.replace('▁', " ").into_bytes().into(),
        },
    }
}

/// The byte of a spelling `<0xNN>`.
pub(super) fn byte_token(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on.
fn byte_level_inverse() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (char::from(byte), byte),
            _ => {
                let c = char::from_u32(next).expect("below U+0200");
                next += 1;
                (c, byte)
            }
        })
        .collect()
}
