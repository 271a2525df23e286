//! Tokenizers described in the metadata of a GGUF file.

use std::collections::{HashMap, HashSet};

use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::pieces;
use super::pre_kind::PreKind;
use super::sentencepiece::{Piece, PieceKind, Rules, SpacePrefix};
use super::tokenizer::Parts;
use crate::engine::TokenId;

/// The `tokenizer.*` metadata of a GGUF file, as stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split before BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused,
    /// 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.scores`, by id (`llama`).
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`, best first, each `left right` (`gpt2`).
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: the end of a turn, where it is not the end of a sequence.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix` (`llama`; default true).
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces` (`llama`; default false).
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// Builds the tokenizer; the error is one sentence.
pub(super) fn build(vocab: &GgufVocab) -> Result<Parts, String> {
    if vocab.tokens.is_empty() {
        return Err("the GGUF file has no tokens".into());
    }
    if !vocab.token_types.is_empty() && vocab.token_types.len() != vocab.tokens.len() {
        return Err(format!("the GGUF file has {} tokens but {} types", vocab.tokens.len(), vocab.token_types.len()));
    }
    let kinds = kinds(vocab)?;
    let inside = |id: Option<TokenId>| id.filter(|&id| (id as usize) < vocab.tokens.len());
    let (mut parts, default_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab, &kinds)?,
        "llama" => (sentence_piece(vocab, &kinds)?, true),
        other => return Err(format!("tokenizer model {other:?} of the GGUF file is not supported (gpt2, llama are)")),
    };
    parts.eot = inside(vocab.eot);
    let wanted = |add: Option<bool>, default: bool, id: Option<TokenId>| id.filter(|_| add.unwrap_or(default));
    parts.before = wanted(vocab.add_bos, default_bos, parts.bos);
    parts.after = wanted(vocab.add_eos, false, parts.eos);
    Ok(parts)
}

fn kinds(vocab: &GgufVocab) -> Result<Vec<PieceKind>, String> {
    let mut kinds = stated_kinds(vocab)?;
    // What ends an answer is no text, even where the file forgets to say so.
    for id in [vocab.eos, vocab.eot].into_iter().flatten() {
        if let (Some(kind), Some(token)) = (kinds.get_mut(id as usize), vocab.tokens.get(id as usize))
            && !kind.is_special()
            && token.chars().count() > 1
        {
            *kind = PieceKind::Control;
        }
    }
    Ok(kinds)
}

fn stated_kinds(vocab: &GgufVocab) -> Result<Vec<PieceKind>, String> {
    if vocab.token_types.is_empty() {
        return Ok(vec![PieceKind::Normal; vocab.tokens.len()]);
    }
    let kind = |(id, &number): (usize, &i32)| {
        PieceKind::from_number(number.into())
            .ok_or_else(|| format!("token {id} of the GGUF file has type {number}, which is unknown"))
    };
    vocab.token_types.iter().enumerate().map(kind).collect()
}

/// Tokens found in text before merging: control and unknown tokens are special, user-defined ones are not.
fn added<'a>(vocab: &'a GgufVocab, kinds: &'a [PieceKind]) -> impl Iterator<Item = AddedToken> + 'a {
    let mut seen = HashSet::new();
    vocab
        .tokens
        .iter()
        .zip(kinds)
        .filter(move |(token, kind)| {
            (kind.is_special() || **kind == PieceKind::UserDefined) && !token.is_empty() && seen.insert(token.as_str())
        })
        .map(|(token, kind)| AddedToken::from(token.as_str(), kind.is_special()).normalized(false))
}

fn byte_level(vocab: &GgufVocab, kinds: &[PieceKind]) -> Result<(Parts, bool), String> {
    let pre = PreKind::parse(vocab.pre.as_deref())?;
    // Of equal spellings the first is used.
    let mut ids = HashMap::with_capacity(vocab.tokens.len());
    for (id, token) in vocab.tokens.iter().enumerate() {
        ids.entry(token.as_str()).or_insert(id as TokenId);
    }
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for merge in &vocab.merges {
        // The left token may begin with a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge[first..].find(' ').map(|at| at + first);
        let (left, right) = at
            .map(|at| (&merge[..at], &merge[at + 1..]))
            .ok_or_else(|| format!("merge {merge:?} of the GGUF file is not two tokens"))?;
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|t| !ids.contains_key(t)) {
            return Err(format!("merge {merge:?} of the GGUF file needs {missing:?}, which is not a token"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(ids.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect::<Vocab>(), merges)
        .ignore_merges(pre.ignores_merges_and_adds_bos())
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    if pre.composes() {
        tokenizer.with_normalizer(Some(NFC)).map_err(|e| e.to_string())?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.build()?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_tokens(added(vocab, kinds).collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    let inside = |id: Option<TokenId>| id.filter(|&id| (id as usize) < vocab.tokens.len());
    let parts = Parts { bos: inside(vocab.bos), eos: inside(vocab.eos), ..Parts::new(tokenizer) };
    Ok((parts, pre.ignores_merges_and_adds_bos()))
}

/// As llama.cpp reads it: user-defined tokens are cut out first, and the text after each begins with a space.
fn sentence_piece(vocab: &GgufVocab, kinds: &[PieceKind]) -> Result<Parts, String> {
    let scores = vocab.scores.as_deref().unwrap_or_default();
    if scores.len() != vocab.tokens.len() {
        return Err(format!("the GGUF file has {} tokens but {} scores", vocab.tokens.len(), scores.len()));
    }
    let all = vocab.tokens.iter().zip(scores).zip(kinds);
    let pieces = all.map(|((spelling, &score), &kind)| Piece { spelling: spelling.clone(), score, kind }).collect();
    let prefix = if vocab.add_space_prefix.unwrap_or(true) { SpacePrefix::Always } else { SpacePrefix::Never };
    let rules = Rules {
        prefix,
        remove_extra_whitespaces: vocab.remove_extra_whitespaces.unwrap_or(false),
        byte_fallback: kinds.contains(&PieceKind::Byte),
        find_user_defined: false,
        split_unused: false,
    };
    // Defaults are llama.cpp's.
    let id = |id: Option<TokenId>, default: TokenId| {
        let inside = |id: &TokenId| (*id as usize) < vocab.tokens.len();
        id.filter(inside).or_else(|| Some(default).filter(inside))
    };
    let unknown = id(vocab.unk, 0);
    let added = added(vocab, kinds).map(|token| (token, None)).collect();
    let (tokenizer, model) = pieces::build(pieces, unknown, rules, added)?;
    Ok(Parts { sentencepiece: Some(model), bos: id(vocab.bos, 1), eos: id(vocab.eos, 2), ..Parts::new(tokenizer) })
}
