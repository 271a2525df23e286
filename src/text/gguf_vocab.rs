//! Tokenizers described in the metadata of a GGUF file.

use std::collections::{HashMap, HashSet};

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, NormalizerWrapper};

use super::pre_kind::PreKind;

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
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix` (`llama`; default true).
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Builds the tokenizer; the error is one sentence.
pub(super) fn build(vocab: &GgufVocab) -> Result<tokenizers::Tokenizer, String> {
    if vocab.tokens.is_empty() {
        return Err("the GGUF file has no tokens".into());
    }
    if !vocab.token_types.is_empty() && vocab.token_types.len() != vocab.tokens.len() {
        return Err(format!("the GGUF file has {} tokens but {} types", vocab.tokens.len(), vocab.token_types.len()));
    }
    let (mut tokenizer, default_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab)?,
        "llama" => (sentence_piece(vocab)?, true),
        other => return Err(format!("tokenizer model {other:?} of the GGUF file is not supported (gpt2, llama are)")),
    };
    add_special_tokens(&mut tokenizer, vocab)?;
    if vocab.add_bos.unwrap_or(default_bos)
        && let Some(id) = vocab.bos
    {
        let bos = vocab.tokens.get(id as usize).ok_or_else(|| format!("bos token id {id} is not in the vocabulary"))?;
        // The name inside the template is ours, since a token's spelling may not parse there.
        let token = SpecialToken::new("BOS".into(), vec![id], vec![bos.clone()]).map_err(|e| e.to_string())?;
        let template = TemplateProcessing::builder()
            .try_single("BOS $A")?
            .special_tokens(vec![token])
            .build()
            .map_err(|e| e.to_string())?;
        tokenizer.with_post_processor(Some(template));
    }
    Ok(tokenizer)
}

/// Ids by spelling; of equal spellings the first is used.
fn ids(vocab: &GgufVocab) -> HashMap<&str, u32> {
    let mut ids = HashMap::with_capacity(vocab.tokens.len());
    for (id, token) in vocab.tokens.iter().enumerate() {
        ids.entry(token.as_str()).or_insert(id as u32);
    }
    ids
}

fn owned(ids: HashMap<&str, u32>) -> impl Iterator<Item = (String, u32)> {
    ids.into_iter().map(|(token, id)| (token.to_owned(), id))
}

fn byte_level(vocab: &GgufVocab) -> Result<(tokenizers::Tokenizer, bool), String> {
    let pre = PreKind::parse(vocab.pre.as_deref())?;
    let ids = ids(vocab);
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for merge in &vocab.merges {
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| format!("merge {merge:?} of the GGUF file is not two tokens"))?;
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|t| !ids.contains_key(t)) {
            return Err(format!("merge {merge:?} of the GGUF file needs {missing:?}, which is not a token"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let bpe = BPE::builder()
        .vocab_and_merges(owned(ids).collect::<Vocab>(), merges)
        .ignore_merges(pre == PreKind::Llama3)
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    if pre == PreKind::Qwen2 {
        tokenizer.with_normalizer(Some(NFC)).map_err(|e| e.to_string())?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.build()?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok((tokenizer, pre == PreKind::Llama3))
}

/// SentencePiece BPE as Hugging Face converts it: the merges are the ways to make each token of two
/// others, tokens with the best score first.
fn sentence_piece(vocab: &GgufVocab) -> Result<tokenizers::Tokenizer, String> {
    let scores = vocab.scores.as_deref().unwrap_or_default();
    if scores.len() != vocab.tokens.len() {
        return Err(format!("the GGUF file has {} tokens but {} scores", vocab.tokens.len(), scores.len()));
    }
    let ids = ids(vocab);
    let mut merges = Vec::new();
    for (&token, &id) in &ids {
        // Text never makes one of these, as in SentencePiece.
        if matches!(vocab.token_types.get(id as usize), Some(&(UNKNOWN | CONTROL | BYTE))) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id as usize], left, right, l, r, id));
            }
        }
    }
    merges.sort_unstable_by(|a, b| {
        let chars = |s: &str| s.chars().count();
        let by_score = b.0.total_cmp(&a.0);
        let by_length = || chars(b.1).cmp(&chars(a.1)).then(chars(b.2).cmp(&chars(a.2)));
        by_score.then_with(by_length).then((a.5, a.3, a.4).cmp(&(b.5, b.3, b.4)))
    });
    let merges = merges.into_iter().map(|(_, l, r, ..)| (l.to_owned(), r.to_owned())).collect();

    let unk = vocab.unk.unwrap_or(0);
    let unk =
        vocab.tokens.get(unk as usize).ok_or_else(|| format!("unknown token id {unk} is not in the vocabulary"))?;
    let bpe = BPE::builder()
        .vocab_and_merges(owned(ids).collect::<Vocab>(), merges)
        .unk_token(unk.clone())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(|e| e.to_string())?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);

    let prefix = vocab.add_space_prefix.unwrap_or(true);
    let spaces = Replace::new(" ", "▁").map_err(|e| e.to_string())?;
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        normalizers.push(Prepend::new("▁".into()).into());
    }
    normalizers.push(spaces.into());
    tokenizer.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(|e| e.to_string())?;

    let spaces = Replace::new("▁", " ").map_err(|e| e.to_string())?;
    let mut decoders: Vec<DecoderWrapper> = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(tokenizer)
}

/// Control and unknown tokens are special; user-defined ones are found in text before BPE.
fn add_special_tokens(tokenizer: &mut tokenizers::Tokenizer, vocab: &GgufVocab) -> Result<(), String> {
    let mut seen = HashSet::new();
    let added: Vec<AddedToken> = vocab
        .tokens
        .iter()
        .zip(&vocab.token_types)
        .filter(|(token, kind)| {
            matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty() && seen.insert(token.as_str())
        })
        .map(|(token, &kind)| AddedToken::from(token.as_str(), kind != USER_DEFINED).normalized(false))
        .collect();
    tokenizer.add_tokens(added).map(|_| ()).map_err(|e| e.to_string())
}
