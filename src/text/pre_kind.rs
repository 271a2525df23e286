//! How text is split before byte-level BPE, by the names GGUF files use.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::expression::Expression;

/// A kind of pre-tokenizer. Names are grouped as llama.cpp groups them; the expressions are those of the
/// models' own files, which llama.cpp approximates in places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreKind {
    /// One of the expressions that take a whole text.
    Whole(Expression, Whole),
    /// GPT-2's expression after each digit is split off.
    SmolLm,
    DeepSeekCoder,
    /// llama.cpp's fallback: punctuation, then GPT-2's expression, then digits in threes.
    Default,
}

/// What a name says beyond its expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Plain,
    /// Text is composed first (NFC).
    Composed,
    /// What is a token as it stands is not merged, and sequences begin with the beginning-of-sequence token.
    IgnoresMergesAddsBos,
}

const DEEPSEEK_CODER: [&str; 5] =
    [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+", r"\p{N}"];
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", "", r"\p{N}+", r"[0-9][0-9][0-9]"];

impl PreKind {
    /// The kind a GGUF file names; a file that names none gets the default, as in llama.cpp.
    pub(super) fn parse(name: Option<&str>) -> Result<Self, String> {
        use Expression::{Gpt2, Gpt4o, Llama3, Qwen2, SeedCoder, Tekken};
        use Whole::{Composed, IgnoresMergesAddsBos, Plain};
        Ok(match name {
            None | Some("default") => Self::Default,
            Some("gpt-2" | "phi-2" | "olmo" | "mpt" | "jais" | "gigachat" | "mellum" | "modern-bert" | "trillion") => {
                Self::Whole(Gpt2, Plain)
            }
            Some("smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b") => Self::SmolLm,
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2") => {
                Self::Whole(Llama3, IgnoresMergesAddsBos)
            }
            Some("smaug-bpe" | "dbrx") => Self::Whole(Llama3, Plain),
            Some("qwen2") => Self::Whole(Qwen2, Composed),
            Some("deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan") => Self::Whole(Qwen2, Plain),
            Some("seed-coder") => Self::Whole(SeedCoder, Plain),
            Some("tekken") => Self::Whole(Tekken, IgnoresMergesAddsBos),
            Some("gpt-4o" | "llama4" | "kanana2") => Self::Whole(Gpt4o, Plain),
            Some("deepseek-coder") => Self::DeepSeekCoder,
            Some(other) => return Err(format!("pre-tokenizer {other:?} of the GGUF file is not supported")),
        })
    }

    /// Whether what is a token as it stands is not merged; and whether sequences begin with the
    /// beginning-of-sequence token where the file does not say.
    pub(super) fn ignores_merges_and_adds_bos(self) -> bool {
        matches!(self, Self::Whole(_, Whole::IgnoresMergesAddsBos))
    }

    pub(super) fn composes(self) -> bool {
        matches!(self, Self::Whole(_, Whole::Composed))
    }

    /// The steps, which end in the byte-level alphabet. An empty expression is GPT-2's.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper, String> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let expressions: &[&str] = match self {
            Self::Whole(expression, _) => &[expression.regex()],
            Self::SmolLm => {
                steps.push(Digits::new(true).into());
                &[""]
            }
            Self::DeepSeekCoder => &DEEPSEEK_CODER,
            Self::Default => &DEFAULT,
        };
        for expression in expressions {
            let regex = if expression.is_empty() { Expression::Gpt2.regex() } else { expression };
            let split = Split::new(SplitPattern::Regex(regex.into()), Isolated, false);
            steps.push(split.map_err(|e| e.to_string())?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}
