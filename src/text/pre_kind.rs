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
    DeepSeekLlm,
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

/// Code points, as some of these characters are not their own composed form.
const DEEPSEEK_LLM: [&str; 6] = [
    r"[\r\n]",
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    r"\s+$",
    r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+",
    r"\p{N}+",
];
const DEEPSEEK_CODER: [&str; 5] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_LLM[4], r"\p{N}"];
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
            Some("smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b") => {
                Self::SmolLm
            }
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2") => {
                Self::Whole(Llama3, IgnoresMergesAddsBos)
            }
            Some("smaug-bpe" | "dbrx") => Self::Whole(Llama3, Plain),
            Some("qwen2") => Self::Whole(Qwen2, Composed),
            Some("deepseek-r1-qwen" | "stablelm2" | "megrez" | "hunyuan") => Self::Whole(Qwen2, Plain),
            Some("seed-coder") => Self::Whole(SeedCoder, Plain),
            Some("tekken") => Self::Whole(Tekken, IgnoresMergesAddsBos),
            Some("gpt-4o" | "llama4" | "kanana2") => Self::Whole(Gpt4o, Plain),
            Some("deepseek-llm") => Self::DeepSeekLlm,
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
            Self::DeepSeekLlm => &DEEPSEEK_LLM,
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
