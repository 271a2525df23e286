//! How text is split before byte-level BPE, by the names GGUF files use.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// A kind of pre-tokenizer. Names are grouped as llama.cpp groups them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreKind {
    /// GPT-2's expression.
    Gpt2,
    /// GPT-2's expression after each digit is split off.
    SmolLm,
    /// Llama 3's expression: up to three digits at a time.
    Llama3,
    /// Qwen 2's expression: one digit at a time.
    Qwen2,
    /// llama.cpp's fallback: punctuation, then GPT-2's expression, then digits in threes.
    Default,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

impl PreKind {
    /// The kind a GGUF file names; a file that names none gets the default, as in llama.cpp.
    pub(super) fn parse(name: Option<&str>) -> Result<Self, String> {
        match name {
            None | Some("default") => Ok(Self::Default),
            Some("gpt-2" | "phi-2" | "olmo" | "mpt" | "gigachat" | "mellum" | "modern-bert") => Ok(Self::Gpt2),
            Some("smollm" | "starcoder" | "refact" | "command-r" | "codeshell") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral") => Ok(Self::Llama3),
            Some("qwen2" | "deepseek-r1-qwen") => Ok(Self::Qwen2),
            Some(other) => Err(format!("pre-tokenizer {other:?} of the GGUF file is not supported")),
        }
    }

    /// The steps, which end in the byte-level alphabet.
    pub(super) fn build(self) -> Result<PreTokenizerWrapper, String> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let expressions: &[&str] = match self {
            Self::Gpt2 => &[],
            Self::SmolLm => {
                steps.push(Digits::new(true).into());
                &[]
            }
            Self::Llama3 => &[LLAMA3],
            Self::Qwen2 => &[QWEN2],
            Self::Default => &DEFAULT,
        };
        for expression in expressions {
            let split = Split::new(SplitPattern::Regex((*expression).into()), Isolated, false);
            steps.push(split.map_err(|e| e.to_string())?.into());
        }
        // ByteLevel's own expression is GPT-2's.
        steps.push(ByteLevel::new(false, false, expressions.is_empty()).into());
        Ok(Sequence::new(steps).into())
    }
}
