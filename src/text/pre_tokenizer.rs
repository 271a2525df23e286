//! The steps of a pre-tokenizer, with the expressions that are known in place of a regular expression engine.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use super::expression::Expression;

enum Step {
    Split(Expression),
    /// ByteLevel's `add_prefix_space`.
    PrefixSpace,
    Library(PreTokenizerWrapper),
}

/// What happens between finding special tokens and merging.
pub(super) struct Steps(Vec<Step>);

impl Steps {
    /// The same steps as `pre_tokenizer`'s.
    pub(super) fn new(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Self {
        let mut steps = Vec::new();
        if let Some(one) = pre_tokenizer {
            add(one, &mut steps);
        }
        Self(steps)
    }

    pub(super) fn apply(&self, pieces: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.0 {
            match step {
                Step::Split(expression) => {
                    pieces.split(|_, piece| piece.split(*expression, SplitDelimiterBehavior::Isolated))?;
                }
                Step::PrefixSpace => pieces.split(|_, mut piece| {
                    if !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    Ok([piece])
                })?,
                Step::Library(step) => step.pre_tokenize(pieces)?,
            }
        }
        Ok(())
    }
}

fn add(one: &PreTokenizerWrapper, steps: &mut Vec<Step>) {
    match one {
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().for_each(|one| add(one, steps)),
        PreTokenizerWrapper::Split(split) => {
            // Both of these keep each match and what is between, and the known expressions leave nothing between.
            let keeps = matches!(
                (split.behavior, split.invert),
                (SplitDelimiterBehavior::Isolated, _) | (SplitDelimiterBehavior::Removed, true)
            );
            let known = match &split.pattern {
                SplitPattern::Regex(regex) if keeps => Expression::recognise(regex),
                _ => None,
            };
            steps.push(known.map_or_else(|| Step::Library(one.clone()), Step::Split));
        }
        PreTokenizerWrapper::ByteLevel(byte_level) if byte_level.use_regex => {
            if byte_level.add_prefix_space {
                steps.push(Step::PrefixSpace);
            }
            steps.push(Step::Split(Expression::Gpt2));
            let mut alphabet = *byte_level;
            (alphabet.use_regex, alphabet.add_prefix_space) = (false, false);
            steps.push(Step::Library(alphabet.into()));
        }
        other => steps.push(Step::Library(other.clone())),
    }
}
