//! A tokenizer of SentencePiece's pieces: the library finds special tokens, [`SentencePiece`] does the rest.

use std::collections::HashSet;

use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;

use super::sentencepiece::{Piece, PieceKind, Rules, SentencePiece, SpacePrefix};
use crate::engine::TokenId;

/// Builds both. `added`, found in text before anything else, have the ids that are stated, if any; the special
/// ones among them are never made of text. The error is one sentence.
pub(super) fn build(
    mut pieces: Vec<Piece>,
    unknown: Option<TokenId>,
    rules: Rules,
    added: Vec<(AddedToken, Option<TokenId>)>,
) -> Result<(tokenizers::Tokenizer, SentencePiece), String> {
    let mut vocab = Vocab::with_capacity(pieces.len());
    for (id, piece) in pieces.iter_mut().enumerate() {
        if piece.spelling.is_empty() {
            piece.spelling = format!("[EMPTY_{id}]"); // llama.cpp's name for it
        }
        if let Some(other) = vocab.insert(piece.spelling.clone(), id as TokenId) {
            return Err(format!("tokens {other} and {id} are both {:?}", piece.spelling));
        }
    }

    let mut tokenizer = tokenizers::Tokenizer::new(
        BPE::builder().vocab_and_merges(vocab, Vec::new()).build().map_err(|e| e.to_string())?,
    );
    let mut specials = HashSet::new();
    for (token, id) in added {
        if token.content.is_empty() {
            return Err("an added token is empty".into());
        }
        if token.special {
            specials.insert(token.content.clone());
        }
        let name = token.content.clone();
        tokenizer.add_tokens([token]).map_err(|e| e.to_string())?;
        if let (Some(stated), Some(given)) = (id, tokenizer.token_to_id(&name))
            && stated != given
        {
            return Err(format!("added token {name:?} has id {stated}, but {given} is the one it must have"));
        }
    }
    for piece in &mut pieces {
        if !piece.kind.is_special() && specials.contains(&piece.spelling) {
            piece.kind = PieceKind::Control;
        }
    }

    let spaces = Replace::new("▁", " ").map_err(|e| e.to_string())?;
    let mut decoders: Vec<DecoderWrapper> = vec![spaces.into()];
    if rules.byte_fallback {
        decoders.push(ByteFallback::new().into());
    }
    decoders.push(Fuse::new().into());
    if rules.prefix != SpacePrefix::Never || rules.remove_extra_whitespaces {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok((tokenizer, SentencePiece::new(&pieces, unknown, rules)?))
}
