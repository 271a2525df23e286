//! `tokenizer.model`, with what the files beside it add.

use tokenizers::AddedToken;

use super::hf_files::TokenizerConfig;
use super::sentencepiece::{PieceKind, Rules, SpacePrefix};
use super::tokenizer::Parts;
use super::{pieces, sentencepiece_model};
use crate::engine::TokenId;

/// Builds the tokenizer; the error is one sentence.
pub(super) fn build(bytes: &[u8], config: &TokenizerConfig) -> Result<Parts, String> {
    if is_tiktoken(bytes) {
        return Err("is a tiktoken vocabulary, which is not supported: use the model's tokenizer.json".into());
    }
    let model =
        sentencepiece_model::parse(bytes).map_err(|e| format!("cannot be read as a SentencePiece model: {e}"))?;

    let named = |spelling: &str| config.specials.iter().find(|t| t.content == spelling).cloned();
    let mut added: Vec<(AddedToken, Option<TokenId>)> = Vec::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        let id = id as TokenId;
        if piece.kind.is_special() && !config.added.contains_key(&id) && !piece.spelling.is_empty() {
            let plain = || AddedToken::from(piece.spelling.clone(), true).normalized(false);
            added.push((named(&piece.spelling).unwrap_or_else(plain), Some(id)));
        }
    }
    for (&id, token) in &config.added {
        let mut token = token.clone();
        token.special |= named(&token.content).is_some()
            || model.pieces.get(id as usize).is_some_and(|p| p.kind.is_special() && p.spelling == token.content);
        added.push((token, Some(id)));
    }
    for token in &config.specials {
        if !added.iter().any(|(t, _)| t.content == token.content) {
            added.push((token.clone(), None));
        }
    }

    let rules = Rules {
        prefix: match (config.add_prefix_space.unwrap_or(model.add_dummy_prefix), config.legacy) {
            (false, _) => SpacePrefix::Never,
            (true, false) => SpacePrefix::First,
            (true, true) => SpacePrefix::FirstAndMissing,
        },
        remove_extra_whitespaces: model.remove_extra_whitespaces,
        byte_fallback: model.byte_fallback,
        find_user_defined: model.pieces.iter().any(|p| p.kind == PieceKind::UserDefined),
        split_unused: true,
    };
    let (library, sentencepiece) = pieces::build(model.pieces, model.unk, rules, added)?;
    let id = |name: &Option<String>, own: Option<TokenId>| match name {
        Some(name) => library.token_to_id(name),
        None => own,
    };
    let (bos, eos) = (id(&config.bos, model.bos), id(&config.eos, model.eos));
    Ok(Parts {
        sentencepiece: Some(sentencepiece),
        bos,
        eos,
        before: bos.filter(|_| config.add_bos.unwrap_or(true)),
        after: eos.filter(|_| config.add_eos.unwrap_or(false)),
        ..Parts::new(library)
    })
}

/// Whether it is lines of base64 and a rank, as Llama 3's original `tokenizer.model` is.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    matches!(
        (words.next(), words.next(), words.next()),
        (Some(token), Some(rank), None)
            if !token.is_empty() && token.iter().all(base64) && !rank.is_empty() && rank.iter().all(u8::is_ascii_digit)
    )
}
