//! The token trie of llguidance, made of a tokenizer's bytes.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::engine::TokenId;
use crate::text::tokenizer::Tokenizer;

/// Longer tokens are never allowed: the trie's nodes count their depth in ten bits.
const MAX_TOKEN: usize = 512;

/// What compiles grammars for these tokens; `eos` is not empty.
pub(super) fn factory(tokenizer: &Tokenizer, vocab_size: usize, eos: &[TokenId]) -> Result<ParserFactory, String> {
    let first = *eos.first().ok_or("no token ends a text")?;
    let words: Vec<Vec<u8>> = (0..vocab_size as TokenId).map(|id| word(tokenizer, id, eos)).collect();
    let info = TokRxInfo::new(words.len() as u32, first);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(eos);
    // Any tokens that spell an allowed text are allowed, whether or not the tokenizer would choose them.
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new(
        &environment,
        InferenceCapabilities::default(),
        &llguidance::earley::SlicedBiasComputer::general_slices(),
    )
    .map_err(|e| e.to_string())?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
    Ok(factory)
}

/// A token's bytes. Special tokens are marked, so that no text is one, and a grammar that names one means it; so are
/// tokens that end a text.
fn word(tokenizer: &Tokenizer, id: TokenId, eos: &[TokenId]) -> Vec<u8> {
    let marked = tokenizer.is_special(id) || eos.contains(&id);
    let bytes = match tokenizer.token_str(id) {
        Some(spelling) if marked => [[TokTrie::SPECIAL_TOKEN_MARKER].as_slice(), spelling.as_bytes()].concat(),
        // The marker is no byte of any text.
        _ => tokenizer.token_bytes(id).to_vec(),
    };
    let unusable = bytes.len() > MAX_TOKEN || (!marked && bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER));
    if unusable { Vec::new() } else { bytes }
}
