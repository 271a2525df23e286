//! Finished conversations: which tokens the assistant said.

use std::ops::Range;

use serde_json::{Map, Value};

use super::chat::{ChatMessage, PromptError, PromptRenderer, collect_texts, map_texts};
use super::chat_template::GENERATION;
use super::tokenizer::{Rendered, TokenizerError};
use crate::engine::TokenId;

/// The tokens of a finished conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// Equal to [`PromptRenderer::chat`] of all messages, without a generation prompt.
    pub ids: Vec<TokenId>,
    /// For each message of the assistant, in order, the tokens that have any of its text, the end-of-turn token among
    /// them.
    pub turns: Vec<Range<usize>>,
}

impl PromptRenderer {
    /// Encodes a finished conversation, and finds the assistant's turns in it.
    ///
    /// A template that has `{% generation %}` says itself what a turn is. Otherwise it begins where the rendering of
    /// the messages before it, with a generation prompt, ends, and ends with the first of the tokens `ends` after that:
    /// text never becomes one of those. Either way it is an error if that cannot be told. A token with text of both
    /// sides belongs to the turn, as in transformers' `return_assistant_tokens_mask`. If the template's tags leave the
    /// end-of-turn token out, it belongs to the turn nevertheless.
    pub fn dialogue(&self, messages: &[ChatMessage], ends: &[TokenId]) -> Result<Dialogue, PromptError> {
        let template = self.template().ok_or(PromptError::NoTemplate)?;
        let tokenizer = self.tokenizer();
        let mut json: Vec<Value> = messages.iter().map(ChatMessage::to_json).collect();
        let mut texts: Vec<&str> = Vec::new();
        json.iter().for_each(|value| collect_texts(value, &mut texts));
        // One marker for all renderings, so that they are comparable.
        let marker = match texts.iter().any(|text| tokenizer.spells_special(text)) {
            true => Some(tokenizer.marker_for(texts.iter().copied())?),
            false => None,
        };
        if template.has_generation_tags() && texts.iter().any(|text| text.contains(GENERATION)) {
            let reason = "it has U+1FFFE or U+1FFFF, which are no characters".into();
            return Err(TokenizerError::Ambiguous(reason).into());
        }
        if let Some(marker) = marker {
            let mark = |text: &str| tokenizer.mark(text, marker).map(String::from);
            json.iter_mut().try_for_each(|message| map_texts(message, &mark))?;
        }
        let answers: Vec<usize> = (0..messages.len()).filter(|&i| messages[i].role == "assistant").collect();

        let (text, regions) = match template.has_generation_tags() {
            true => unmarked(&template.render_marked(&json)?)?,
            false => {
                let render = |n: usize, prompt| template.render(&json[..n], prompt, &Map::new());
                let text = render(json.len(), false)?;
                let mut regions = Vec::with_capacity(answers.len());
                for &at in &answers {
                    let (before, after) = (render(at, true)?, render(at + 1, false)?);
                    if !text.starts_with(&before) || !text.starts_with(&after) || after.len() < before.len() {
                        return Err(PromptError::Turns(format!(
                            "it renders the conversation up to message {} otherwise than as the beginning of the whole",
                            at + 1
                        )));
                    }
                    regions.push(before.len()..after.len());
                }
                (text, regions)
            }
        };
        if regions.len() != answers.len() {
            return Err(PromptError::Turns(format!(
                "its generation tags mark {} turns, the assistant has {}",
                regions.len(),
                answers.len()
            )));
        }
        let (ids, spans) = tokenizer.encode_spans(&Rendered::new(text, marker))?;
        let mut turns = Vec::with_capacity(regions.len());
        for (region, at) in regions.iter().zip(&answers) {
            let start = spans.partition_point(|span| span.end <= region.start);
            let mut end = spans.partition_point(|span| span.start < region.end).max(start);
            let first_end = (start..end).find(|&i| ends.contains(&ids[i]));
            match (template.has_generation_tags(), first_end) {
                (true, Some(_)) => {}
                (true, None) => end += usize::from(ids.get(end).is_some_and(|id| ends.contains(id))),
                (false, Some(last)) => end = last + 1,
                (false, None) => {
                    return Err(PromptError::Turns(format!("it ends message {} with no end-of-turn token", at + 1)));
                }
            }
            turns.push(start..end);
        }
        Ok(Dialogue { ids, turns })
    }
}

/// The text without the marks of generation, and what was between each pair of them.
fn unmarked(marked: &str) -> Result<(String, Vec<Range<usize>>), PromptError> {
    let [open, close] = GENERATION;
    let mut text = String::with_capacity(marked.len());
    let (mut regions, mut start) = (Vec::new(), None);
    for c in marked.chars() {
        match (c == open, c == close, start) {
            (true, _, None) => start = Some(text.len()),
            (_, true, Some(from)) => {
                regions.push(from..text.len());
                start = None;
            }
            (false, false, _) => text.push(c),
            _ => return Err(PromptError::Turns("its generation tags are nested".into())),
        }
    }
    Ok((text, regions))
}
