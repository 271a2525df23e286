//! A model's tokenizer and chat template, to be written beside other weights, with or without a new token.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::processors::template::{Template, TemplateProcessing};

use super::chat::{PromptError, PromptRenderer};
use super::gguf_vocab::{self, GgufVocab};
use super::hf_files::{self, TokenizerConfig, file_error};
use super::sentencepiece::{SentencePiece, SpacePrefix};
use super::sentencepiece_dir;
use super::tokenizer::{Parts, Tokenizer, TokenizerError, json_parts};
use crate::engine::TokenId;

/// Files of a Hugging Face directory that say how text becomes ids: `tokenizer.json` or `tokenizer.model`,
/// `tokenizer_config.json`, `chat_template.jinja`. [`PromptRenderer::from_dir`] of where they are written is
/// [`TokenizerFiles::renderer`].
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    vocabulary: Vec<u8>,
    is_json: bool,
    config: Map<String, Value>,
    template: Option<String>,
}

impl TokenizerFiles {
    /// Reads a Hugging Face directory. The vocabulary stays as it is.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let (_, vocabulary, is_json) = hf_files::tokenizer_file(dir)?;
        let object = |name: &str| match hf_files::json(&dir.join(name))? {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(_) => Err(file_error(&dir.join(name), "is not a JSON object".into())),
        };
        let mut config = object("tokenizer_config.json")?;
        let more = object("special_tokens_map.json")?;
        for name in hf_files::NAMES.into_iter().chain(["additional_special_tokens"]) {
            if let (None | Some(Value::Null), Some(value)) = (config.get(name), more.get(name)) {
                config.insert(name.into(), value.clone());
            }
        }
        if !is_json {
            // With the flags that reading all files gives them.
            let all = TokenizerConfig::read(dir)?.added;
            let all = all.iter().map(|(id, t)| (id.to_string(), added_token(t))).collect();
            config.insert("added_tokens_decoder".into(), Value::Object(all));
        }
        config.remove("chat_template");
        Ok(Self { vocabulary, is_json, config, template: hf_files::chat_template(dir)? })
    }

    /// Makes a `tokenizer.json` of a GGUF file's vocabulary. Merges are written as a list, which orders them as the
    /// scores do, except between ways to make one piece.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TokenizerError> {
        let parts = gguf_vocab::build(vocab).map_err(TokenizerError::Vocabulary)?;
        let name = |id: Option<TokenId>| id.and_then(|id| vocab.tokens.get(id as usize)).cloned();
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        for (key, token) in [("bos_token", name(parts.bos)), ("eos_token", name(parts.eos))] {
            config.extend(token.map(|token| (key.to_owned(), token.into())));
        }
        let vocabulary = tokenizer_json(parts).map_err(TokenizerError::Vocabulary)?;
        Ok(Self { vocabulary, is_json: true, config, template: vocab.chat_template.clone() })
    }

    /// Adds `spelling` as the special token that ends a turn and a sequence, and takes `template` for the chat
    /// template. The new token has the next free id.
    pub fn with_end_of_turn(mut self, spelling: &str, template: &str) -> Result<(Self, TokenId), TokenizerError> {
        let wrong = |reason: String| TokenizerError::Vocabulary(format!("the end-of-turn token {spelling:?} {reason}"));
        let old = self.tokenizer()?;
        if old.token_id(spelling).is_some() {
            return Err(wrong("is in the tokenizer already".into()));
        }
        let id = old.vocab_size() as TokenId;
        let token = tokenizers::AddedToken::from(spelling, true).normalized(false);
        if self.is_json {
            let broken = |e: serde_json::Error| wrong(format!("cannot be added: {e}"));
            let mut file: Map<String, Value> = serde_json::from_slice(&self.vocabulary).map_err(broken)?;
            let mut entry = added_token(&token);
            entry["id"] = id.into();
            match file.entry("added_tokens").or_insert_with(|| json!([])) {
                Value::Array(tokens) => tokens.push(entry),
                other => *other = json!([entry]),
            }
            self.vocabulary = serde_json::to_vec(&file).map_err(broken)?;
            if let Some(Value::Object(all)) = self.config.get_mut("added_tokens_decoder") {
                all.insert(id.to_string(), added_token(&token));
            }
        } else {
            let all = self.config.entry("added_tokens_decoder").or_insert_with(|| json!({}));
            all[id.to_string()] = added_token(&token);
        }
        self.config.insert("eos_token".into(), spelling.into());
        self.template = Some(template.to_owned());
        let new = self.tokenizer()?;
        match new.token_id(spelling) == Some(id) && new.is_special(id) && new.vocab_size() == id as usize + 1 {
            true => Ok((self, id)),
            false => Err(wrong(format!("cannot have id {id}, as the vocabulary has ids without tokens"))),
        }
    }

    /// The chat template, if there is one.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The tokenizer that the files describe.
    pub fn tokenizer(&self) -> Result<std::sync::Arc<Tokenizer>, TokenizerError> {
        let mut config = TokenizerConfig::default();
        let parts = config.merge(&Value::Object(self.config.clone())).and_then(|()| match self.is_json {
            true => json_parts(&self.vocabulary, &config),
            false => sentencepiece_dir::build(&self.vocabulary, &config),
        });
        let tokenizer = parts.and_then(Tokenizer::new);
        tokenizer.map_err(|reason| TokenizerError::Vocabulary(hf_files::one_line(&reason)))
    }

    /// The tokenizer and template that the files describe.
    pub fn renderer(&self) -> Result<PromptRenderer, PromptError> {
        PromptRenderer::with_source(self.tokenizer()?, self.template.as_deref())
    }

    /// The files by name.
    pub fn files(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let vocabulary = if self.is_json { "tokenizer.json" } else { "tokenizer.model" };
        let mut config = serde_json::to_vec_pretty(&self.config).expect("JSON values can be written");
        config.push(b'\n');
        let mut files = BTreeMap::from([(vocabulary, self.vocabulary.clone()), ("tokenizer_config.json", config)]);
        files.extend(self.template.as_ref().map(|t| ("chat_template.jinja", t.clone().into_bytes())));
        files
    }

    /// Writes the files into `dir`, which exists.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        self.files().iter().try_for_each(|(name, bytes)| fs::write(dir.join(name), bytes))
    }
}

fn added_token(token: &tokenizers::AddedToken) -> Value {
    json!({
        "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
        "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
    })
}

fn tokenizer_json(parts: Parts) -> Result<Vec<u8>, String> {
    let around = [parts.before, parts.after];
    let mut library = match parts.sentencepiece {
        None => parts.library,
        Some(model) => with_merges(&parts.library, &model)?,
    };
    if around != [None, None] {
        let [before, after] = around.map(|id| Some((library.id_to_token(id?)?, id?)));
        let name = |token: &Option<(String, TokenId)>| token.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let single = [name(&before), vec!["$A".into()], name(&after)].concat();
        let single = Template::try_from(single)?;
        let processor = TemplateProcessing::builder()
            .single(single)
            .special_tokens(before.into_iter().chain(after).collect::<Vec<_>>())
            .build()
            .map_err(|e| e.to_string())?;
        library.with_post_processor(Some(processor));
    }
    library.to_string(false).map(String::into_bytes).map_err(|e| e.to_string())
}

/// SentencePiece's way of merging as a list of merges: by the score of what they make.
fn with_merges(from: &tokenizers::Tokenizer, model: &SentencePiece) -> Result<tokenizers::Tokenizer, String> {
    let rules = model.rules();
    if rules.remove_extra_whitespaces {
        return Err("remove_extra_whitespaces of the GGUF file cannot be written as tokenizer.json".into());
    }
    let error = |e: tokenizers::Error| e.to_string();
    let pieces: BTreeMap<&str, (TokenId, f32)> = model.mergeable().map(|(s, id, score)| (s, (id, score))).collect();
    let mut merges = Vec::new();
    for (&piece, &(_, score)) in &pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some((l, _)), Some((r, _))) = (pieces.get(left), pieces.get(right)) {
                merges.push((score, *l, *r, left, right));
            }
        }
    }
    // As transformers' conversion has them: equal scores by the lengths of both parts, the longer first.
    merges.sort_by_cached_key(|&(_, l, r, left, right)| {
        (std::cmp::Reverse((left.chars().count(), right.chars().count())), l, r)
    });
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let merges = merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect::<Vec<_>>();
    let vocab: Vocab = from.get_vocab(false).into_iter().collect();
    let unknown = model.unknown().and_then(|id| from.id_to_token(id));
    let mut bpe = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(rules.byte_fallback);
    if let Some(unknown) = unknown {
        bpe = bpe.unk_token(unknown);
    }
    let mut library = tokenizers::Tokenizer::new(bpe.build().map_err(error)?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if rules.prefix != SpacePrefix::Never {
        steps.push(Prepend::new("▁".into()).into());
    }
    steps.push(Replace::new(" ", "▁").map_err(error)?.into());
    library.with_normalizer(Some(Sequence::new(steps))).map_err(error)?;
    library.with_decoder(from.get_decoder().cloned());
    let mut added: Vec<_> = from.get_added_tokens_decoder().into_iter().collect();
    added.sort_unstable_by_key(|(id, _)| *id);
    library.add_tokens(added.into_iter().map(|(_, token)| token).collect::<Vec<_>>()).map_err(error)?;
    Ok(library)
}
