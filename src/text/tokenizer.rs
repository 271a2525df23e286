//! Token ids from text, and the bytes of each token.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use tokenizers::{Model, OffsetReferential, OffsetType, PostProcessor, Token};

use super::gguf_vocab::GgufVocab;
use super::hf_files::{self, TokenizerConfig};
use super::pre_tokenizer::Steps;
use super::sentencepiece::SentencePiece;
use super::token_table::TokenTable;
use super::{gguf_vocab, sentencepiece_dir};
use crate::engine::TokenId;

/// A tokenizer that cannot be loaded, or text it cannot encode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A tokenizer file that is missing, unreadable or wrong.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A vocabulary (of a GGUF file, or parsed from JSON) that makes no tokenizer.
    #[error("{0}")]
    Vocabulary(String),
    /// Encoding failed.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// The text spells a special token that cannot be told apart from the token.
    #[error("the text cannot be encoded as plain text: {0}")]
    Ambiguous(String),
}

/// Text made by a template, in which spellings of special tokens that came from outside are broken
/// by a marker character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    marker: Option<char>,
}

impl Rendered {
    /// `text` in which `marker`, where present, stands for nothing.
    pub fn new(text: String, marker: Option<char>) -> Self {
        Self { text, marker }
    }

    /// The text without markers.
    pub fn text(&self) -> Cow<'_, str> {
        match self.marker {
            Some(marker) if self.text.contains(marker) => Cow::Owned(self.text.replace(marker, "")),
            _ => Cow::Borrowed(&self.text),
        }
    }
}

/// What the ways to load a tokenizer have in common.
pub(super) struct Parts {
    /// Finds special tokens; does the rest too where there is no `sentencepiece`.
    pub(super) library: tokenizers::Tokenizer,
    pub(super) sentencepiece: Option<SentencePiece>,
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) eot: Option<TokenId>,
    /// What a sequence begins and ends with, unless the library's post-processor says so.
    pub(super) before: Option<TokenId>,
    pub(super) after: Option<TokenId>,
}

impl Parts {
    pub(super) fn new(library: tokenizers::Tokenizer) -> Self {
        Self { library, sentencepiece: None, bos: None, eos: None, eot: None, before: None, after: None }
    }
}

/// A vocabulary with its rules: text to ids, ids to bytes. Immutable, shared by all threads.
pub struct Tokenizer {
    parts: Parts,
    steps: Steps,
    table: TokenTable,
    specials: AhoCorasick,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.parts.bos)
            .field("eos", &self.parts.eos)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a Hugging Face directory, else `tokenizer.model` (SentencePiece). The names of its
    /// special tokens are from `tokenizer_config.json` or `special_tokens_map.json`; with `tokenizer.model`, added
    /// tokens from these and `added_tokens.json`.
    pub fn from_dir(dir: &Path) -> Result<Arc<Self>, TokenizerError> {
        let config = TokenizerConfig::read(dir)?;
        let (path, bytes, is_json) = hf_files::tokenizer_file(dir)?;
        let parts = if is_json { json_parts(&bytes, &config) } else { sentencepiece_dir::build(&bytes, &config) };
        let tokenizer = parts.and_then(Self::new);
        tokenizer.map_err(|reason| TokenizerError::File {
            path: path.display().to_string(),
            reason: hf_files::one_line(&reason),
        })
    }

    /// Reads the bytes of a `tokenizer.json`, which alone does not name its special tokens.
    pub fn from_json(bytes: &[u8]) -> Result<Arc<Self>, TokenizerError> {
        let parts = json_parts(bytes, &TokenizerConfig::default());
        parts.and_then(Self::new).map_err(TokenizerError::Vocabulary)
    }

    /// Reads the bytes of a `tokenizer.model`: a SentencePiece BPE model.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Arc<Self>, TokenizerError> {
        let parts = sentencepiece_dir::build(bytes, &TokenizerConfig::default());
        parts.and_then(Self::new).map_err(TokenizerError::Vocabulary)
    }

    /// Builds the tokenizer a GGUF file describes in its metadata.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Arc<Self>, TokenizerError> {
        gguf_vocab::build(vocab).and_then(Self::new).map_err(TokenizerError::Vocabulary)
    }

    pub(super) fn new(mut parts: Parts) -> Result<Arc<Self>, String> {
        // What a file says of truncation and padding is for training batches.
        parts.library.with_truncation(None).map_err(|e| e.to_string())?;
        parts.library.with_padding(None);
        let table = TokenTable::new(&parts.library)?;
        let spellings: Vec<&str> = table.specials().collect();
        let specials = AhoCorasick::new(&spellings).map_err(|e| format!("too many special tokens: {e}"))?;
        let steps = Steps::new(parts.library.get_pre_tokenizer());
        Ok(Arc::new(Self { parts, steps, table, specials }))
    }

    /// Token ids of `text`, as Hugging Face's `encode`: a spelling of a special token is the token.
    /// `add_special` adds what the model wants a sequence to begin and end with.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        self.encode_marked(text, None, add_special, None)
    }

    /// Token ids of `text` in which no special token is recognised.
    pub fn encode_plain(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let marker = self.marker_for(std::iter::once(text))?;
        self.encode_marked(&self.mark(text, marker)?, Some(marker), add_special, None)
    }

    /// Token ids of a rendered template. Nothing is added: the template says where a sequence begins.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TokenizerError> {
        self.encode_marked(&rendered.text, rendered.marker, false, None)
    }

    /// [`Tokenizer::encode_rendered`], and the bytes of the rendered text, markers included, that each token stands
    /// for. Tokens of parts of one character have that character's bytes.
    pub(super) fn encode_spans(
        &self,
        rendered: &Rendered,
    ) -> Result<(Vec<TokenId>, Vec<Range<usize>>), TokenizerError> {
        let mut spans = Vec::new();
        let ids = self.encode_marked(&rendered.text, rendered.marker, false, Some(&mut spans))?;
        match ids.len() == spans.len() {
            true => Ok((ids, spans)),
            false => Err(TokenizerError::Encode("its post-processor adds tokens to every text".into())),
        }
    }

    /// The steps of Hugging Face's `encode`, with the markers taken out between finding the special
    /// tokens and everything that looks at the text.
    fn encode_marked(
        &self,
        text: &str,
        marker: Option<char>,
        add_special: bool,
        mut spans: Option<&mut Vec<Range<usize>>>,
    ) -> Result<Vec<TokenId>, TokenizerError> {
        let marker = marker.filter(|&m| text.contains(m));
        let library = &self.parts.library;
        let mut pieces = library.get_added_vocabulary().extract_and_normalize(library.get_normalizer(), text);
        if let Some(marker) = marker {
            let filter = |piece: &mut tokenizers::NormalizedString| {
                piece.filter(|c| c != marker);
                Ok(())
            };
            pieces.normalize(filter).map_err(encode_error)?;
        }
        let mut ids = Vec::new();
        ids.extend(self.parts.before.filter(|_| add_special));
        if let Some(model) = &self.parts.sentencepiece {
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            for (i, (piece, (from, to), tokens)) in splits.into_iter().enumerate() {
                match (tokens, spans.as_deref_mut()) {
                    (Some(tokens), spans) => {
                        ids.extend(tokens.iter().map(|t| t.id));
                        spans.into_iter().for_each(|s| s.extend(tokens.iter().map(|_| from..to)));
                    }
                    (None, None) => model.encode(piece, i == 0, &mut ids, None),
                    (None, Some(spans)) => {
                        let first = spans.len();
                        model.encode(piece, i == 0, &mut ids, Some(spans));
                        // Bytes of the piece to bytes of the text, which has markers.
                        let places = places(&text[from..to], marker);
                        for span in &mut spans[first..] {
                            *span = from + places[span.start]..from + places[span.end];
                        }
                    }
                }
            }
        } else {
            self.steps.apply(&mut pieces).map_err(encode_error)?;
            let tokens = |piece: &tokenizers::NormalizedString| match marker {
                Some(_) => self.plain_tokens(piece.get()),
                None => library.get_model().tokenize(piece.get()),
            };
            pieces.tokenize(tokens).map_err(encode_error)?;
            let offsets = if spans.is_some() { OffsetType::Byte } else { OffsetType::None };
            let mut encoding = pieces.into_encoding(None, 0, offsets).map_err(encode_error)?;
            if let Some(spans) = spans {
                spans.extend(encoding.get_offsets().iter().map(|&(from, to)| from..to));
            }
            if let Some(post_processor) = library.get_post_processor() {
                encoding = post_processor.process(encoding, None, add_special).map_err(encode_error)?;
            }
            ids.extend(encoding.get_ids());
        }
        ids.extend(self.parts.after.filter(|_| add_special));
        Ok(ids)
    }

    /// Tokens of a piece of text. Where merges lead to a special token (some converted vocabularies
    /// have such), the piece is cut inside its spelling.
    fn plain_tokens(&self, piece: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.parts.library.get_model();
        let mut tokens = Vec::new();
        let mut parts = vec![(0, piece)];
        while let Some((base, part)) = parts.pop() {
            let mut made = model.tokenize(part)?;
            let cuts: Vec<usize> = made
                .iter()
                .filter(|t| self.is_special(t.id) && part.get(t.offsets.0..t.offsets.1) == self.token_str(t.id))
                .map(|t| t.offsets.0 + part[t.offsets.0..].chars().next().map_or(0, char::len_utf8))
                .filter(|&cut| 0 < cut && cut < part.len())
                .collect();
            if cuts.is_empty() {
                made.iter_mut().for_each(|t| t.offsets = (t.offsets.0 + base, t.offsets.1 + base));
                tokens.append(&mut made);
                continue;
            }
            let mut end = part.len();
            for cut in cuts.into_iter().rev() {
                parts.push((base + cut, &part[cut..end]));
                end = cut;
            }
            parts.push((base, &part[..end]));
        }
        Ok(tokens)
    }

    /// Whether `text` spells a special token anywhere.
    pub fn spells_special(&self, text: &str) -> bool {
        self.specials.is_match(text)
    }

    /// A character that occurs in none of `texts`: a Unicode noncharacter, which no text should have.
    pub fn marker_for<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<char, TokenizerError> {
        let mut used = 0u32;
        for text in texts {
            for c in text.chars().filter(|c| NONCHARACTERS.contains(c)) {
                used |= 1 << (c as u32 - FIRST_NONCHARACTER as u32);
            }
        }
        NONCHARACTERS
            .clone()
            .nth(used.trailing_ones() as usize)
            .ok_or_else(|| TokenizerError::Ambiguous("it has every noncharacter from U+FDD0 to U+FDEF".into()))
    }

    /// `text` with `marker` after the first character of each spelling of a special token.
    pub fn mark<'a>(&self, text: &'a str, marker: char) -> Result<Cow<'a, str>, TokenizerError> {
        // The automaton reports matches by where they end; a later one may start earlier.
        let mut starts: Vec<usize> = Vec::new();
        for found in self.specials.find_overlapping_iter(text) {
            let first = text[found.start()..].chars().next().map_or(0, char::len_utf8);
            if found.len() == first {
                let spelling = &text[found.range()];
                return Err(TokenizerError::Ambiguous(format!("it has the one-character special token {spelling:?}")));
            }
            starts.push(found.start() + first);
        }
        if starts.is_empty() {
            return Ok(Cow::Borrowed(text));
        }
        starts.sort_unstable();
        starts.dedup();
        let mut marked = String::with_capacity(text.len() + starts.len() * marker.len_utf8());
        let mut done = 0;
        for at in starts {
            marked.push_str(&text[done..at]);
            marked.push(marker);
            done = at;
        }
        marked.push_str(&text[done..]);
        Ok(Cow::Owned(marked))
    }

    /// The bytes token `id` adds to the text; empty for special tokens and ids outside the
    /// vocabulary (models may have more rows than the tokenizer has tokens).
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.table.bytes(id)
    }

    /// How the vocabulary spells token `id` (byte-level or SentencePiece alphabet), special tokens
    /// included.
    pub fn token_str(&self, id: TokenId) -> Option<&str> {
        self.table.spelling(id)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_id(&self, spelling: &str) -> Option<TokenId> {
        self.parts.library.token_to_id(spelling)
    }

    /// Number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Whether `id` is a special token: one that stands for no text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.table.is_special(id)
    }

    /// Beginning of sequence, if the model has one.
    pub fn bos_id(&self) -> Option<TokenId> {
        self.parts.bos
    }

    /// End of sequence, if the model has one.
    pub fn eos_id(&self) -> Option<TokenId> {
        self.parts.eos
    }

    /// End of turn, if the model has one that is named as such.
    pub fn eot_id(&self) -> Option<TokenId> {
        self.parts.eot
    }

    /// Whether the first text token of a sequence carries a space that is not part of the text
    /// (SentencePiece's dummy prefix).
    pub fn strips_leading_space(&self) -> bool {
        self.table.strips_leading_space()
    }

    /// Whether tokens that are nothing but a space are left out until there is text (SentencePiece, where it
    /// removes extra white space).
    pub(super) fn strips_leading_spaces(&self) -> bool {
        self.parts.sentencepiece.as_ref().is_some_and(SentencePiece::removes_extra_whitespaces)
    }

    /// The text of `ids`; special tokens left out if `skip_special`. Invalid UTF-8 becomes U+FFFD.
    pub fn decode(self: &Arc<Self>, ids: &[TokenId], skip_special: bool) -> String {
        let mut detokenizer = super::Detokenizer::new(Arc::clone(self), skip_special);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }
}

const FIRST_NONCHARACTER: char = '\u{FDD0}';
const NONCHARACTERS: std::ops::RangeInclusive<char> = FIRST_NONCHARACTER..='\u{FDEF}';

/// A `tokenizer.json`, and the names of its special tokens.
pub(super) fn json_parts(bytes: &[u8], config: &TokenizerConfig) -> Result<Parts, String> {
    let library = hf_files::parse_json(bytes)?;
    let id = |name: &Option<String>| name.as_ref().and_then(|n| library.token_to_id(n));
    let (bos, eos) = (id(&config.bos), id(&config.eos));
    Ok(Parts { bos, eos, ..Parts::new(library) })
}

/// For each byte of `text` without `marker`, and its end, where it is in `text`.
fn places(text: &str, marker: Option<char>) -> Vec<usize> {
    let kept = text.char_indices().filter(|(_, c)| Some(*c) != marker);
    let mut places: Vec<usize> = kept.flat_map(|(at, c)| at..at + c.len_utf8()).collect();
    places.push(text.len());
    places
}

fn encode_error(e: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode(e.to_string())
}
