//! From a conversation to ids and a mask, by the renderer that serves.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::base::Base;
use super::data::{Conversation, Role};
use crate::engine::TokenId;
use crate::model::config::GenerationDefaults;
use crate::text::{ChatMessage, PromptError, PromptRenderer, TokenizerError, TokenizerFiles};

/// Tokens of an example beyond which it is cut, as in LIMA.
pub const MAX_TOKENS: usize = 2048;

/// How the new token of [`Template::Lima`] is spelt.
pub const END_OF_TURN: &str = "<|lima_eot|>";

/// LIMA's format as a chat template. Without role markers, who speaks is known from the order alone, so an order that
/// training does not have is refused.
pub const LIMA_TEMPLATE: &str = include_str!("lima.jinja");

/// How conversations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// LIMA's: BOS, then each message followed by a new end-of-turn token; no role markers. A system message is put
    /// before the first of the user's, with an empty line between.
    Lima,
    /// The base's own chat template and end-of-turn token.
    Base,
}

/// Why there is no renderer for a base, or no example of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The tokenizer cannot be extended, or not be written as Hugging Face's.
    #[error("the base's tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// `--template base`, of a base that is not a chat model.
    #[error("the base has no chat template: use --template lima")]
    NoTemplate,
    /// The template is broken.
    #[error(transparent)]
    Template(PromptError),
    /// A conversation that the template refuses, or that cannot be taken apart.
    #[error("line {line}: {error}")]
    Conversation {
        /// Where the conversation begins in its file.
        line: usize,
        /// What is wrong.
        error: PromptError,
    },
}

/// A conversation as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// At most as many as asked for.
    pub ids: Vec<TokenId>,
    /// For each of `ids`, whether the model learns to predict it: the assistant's turns and the token that ends each.
    pub supervised: Vec<bool>,
    /// Tokens that were cut off at the end. The last turn then has no end-of-turn token; none is made up.
    pub trimmed: usize,
    /// Its index in the data set, set by whoever makes the list of examples: noise in training is keyed by it.
    pub row: u32,
}

impl Example {
    /// How many tokens the model learns to predict.
    pub fn supervised_tokens(&self) -> usize {
        self.supervised.iter().filter(|s| **s).count()
    }
}

/// A base's tokenizer and one template, for training and for the model that comes out.
#[derive(Debug)]
pub struct Renderer {
    prompts: PromptRenderer,
    files: TokenizerFiles,
    ends: Vec<TokenId>,
    new_token: Option<TokenId>,
    generation: GenerationDefaults,
}

impl Renderer {
    /// Takes the base's tokenizer, with a new end-of-turn token for [`Template::Lima`].
    pub fn new(base: &Base, template: Template) -> Result<Self, RenderError> {
        let (files, new_token) = match template {
            Template::Base => (base.tokenizer.clone(), None),
            // What this trainer has made before goes on with the token it has.
            Template::Lima if base.tokenizer.template() == Some(LIMA_TEMPLATE) => (base.tokenizer.clone(), None),
            Template::Lima => {
                let (files, id) = base.tokenizer.clone().with_end_of_turn(END_OF_TURN, LIMA_TEMPLATE)?;
                (files, Some(id))
            }
        };
        let prompts = files.renderer().map_err(RenderError::Template)?;
        if prompts.template().is_none() {
            return Err(RenderError::NoTemplate);
        }
        let mut ends = base.ends();
        ends.extend(prompts.tokenizer().eos_id().into_iter().chain(new_token));
        ends.sort_unstable();
        ends.dedup();
        Ok(Self { prompts, files, ends, new_token, generation: base.checkpoint.generation_defaults().clone() })
    }

    /// The tokenizer and chat template with which the result is served.
    pub fn prompts(&self) -> &PromptRenderer {
        &self.prompts
    }

    /// The end-of-turn token that the base does not have: the model needs a row more for it.
    pub fn new_token(&self) -> Option<TokenId> {
        self.new_token
    }

    /// The tokens that end an answer, in ascending order.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Renders a conversation, and cuts it to `max_tokens`.
    pub fn example(&self, conversation: &Conversation, max_tokens: usize) -> Result<Example, RenderError> {
        let turns = &conversation.turns;
        let messages: Vec<_> = turns.iter().map(|t| ChatMessage::text(t.role.name(), t.text.as_str())).collect();
        let dialogue = self
            .prompts
            .dialogue(&messages, &self.ends)
            .map_err(|error| RenderError::Conversation { line: conversation.line, error })?;
        let (mut ids, mut supervised) = (dialogue.ids, Vec::new());
        supervised.resize(ids.len(), false);
        let said = turns.iter().filter(|t| t.role == Role::Assistant);
        for (range, _) in dialogue.turns.into_iter().zip(said).filter(|(_, turn)| turn.learn) {
            supervised[range].fill(true);
        }
        let trimmed = ids.len().saturating_sub(max_tokens);
        ids.truncate(max_tokens);
        supervised.truncate(max_tokens);
        Ok(Example { ids, supervised, trimmed, row: 0 })
    }

    /// Writes `tokenizer.json` (or `tokenizer.model`), `tokenizer_config.json`, `chat_template.jinja` and
    /// `generation_config.json` into `dir`, which exists: what the server and transformers need to render and to stop
    /// as in training.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        self.files.write(dir)?;
        let mut json = serde_json::to_vec_pretty(&self.generation_config())?;
        json.push(b'\n');
        fs::write(dir.join("generation_config.json"), json)
    }

    /// The base's sampling values, and what ends an answer: the new token first, as it is the one that is learnt.
    fn generation_config(&self) -> Value {
        let mut map = Map::new();
        map.extend(self.prompts.tokenizer().bos_id().map(|id| ("bos_token_id".to_owned(), id.into())));
        let mut ends: Vec<TokenId> = self.new_token.into_iter().collect();
        ends.extend(self.ends.iter().filter(|id| Some(**id) != self.new_token));
        map.insert("eos_token_id".into(), ends.into());
        let g = &self.generation;
        // As it is written: 0.7 rather than the double nearest to the float.
        let float = |v: Option<f32>| v.and_then(|v| v.to_string().parse::<f64>().ok()).map(Value::from);
        let values = [
            ("temperature", float(g.temperature)),
            ("top_p", float(g.top_p)),
            ("top_k", g.top_k.map(Value::from)),
            ("min_p", float(g.min_p)),
            ("repetition_penalty", float(g.repetition_penalty)),
            ("max_new_tokens", g.max_new_tokens.map(Value::from)),
        ];
        map.extend(values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Value::Object(map)
    }
}
