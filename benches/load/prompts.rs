//! What is asked: synthetic conversations, or those of a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::lengths::{Lengths, draw};
use super::rng::Rng;
use super::words::{self, WordRate};

/// What a user will say. Answers are the server's.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    pub system: Option<String>,
    pub turns: Vec<Turn>,
}

/// One request of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub user: String,
    pub max_tokens: u32,
}

/// Shapes of the conversations.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    pub input: Lengths,
    /// Of the user's turns after the first.
    pub turn_input: Lengths,
    pub output: Lengths,
    pub turns: usize,
    /// Tokens of a system message that conversations share; 0 for none.
    pub shared_prefix: u32,
    /// How many different shared prefixes there are.
    pub prefix_groups: usize,
    /// A file's prompts are sent again as they are once all were sent, not marked to be new.
    pub allow_repeats: bool,
}

/// Conversations by number: the same seed, shape and number give the same conversation.
pub struct Prompts {
    shape: Shape,
    rate: WordRate,
    file: Option<Vec<FileConversation>>,
}

/// The user's side of a conversation of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileConversation {
    pub system: Option<String>,
    pub users: Vec<String>,
}

impl Prompts {
    pub fn new(shape: Shape, rate: WordRate, file: Option<Vec<FileConversation>>) -> Self {
        let mut file = file;
        if let Some(file) = &mut file {
            Rng::new(shape.seed, 0x73_6875_6666_6c65).shuffle(file);
        }
        Self { shape, rate, file }
    }

    pub fn conversation(&self, number: u64) -> Conversation {
        let shape = &self.shape;
        let mut rng = Rng::new(shape.seed, number);
        let mut lengths: Vec<(u32, u32)> = Vec::new();
        for turn in 0..shape.turns {
            let input = if turn == 0 { shape.input } else { shape.turn_input };
            lengths.push(draw(input, shape.output, &mut rng));
        }
        let group = rng.below(shape.prefix_groups.max(1)) as u64;
        let prefix = (shape.shared_prefix > 0).then(|| {
            let mut rng = Rng::new(shape.seed ^ 0x7072_6566_6978, group);
            words::text(&mut rng, self.rate.words(shape.shared_prefix))
        });
        let Some(file) = &self.file else {
            let turns = lengths.into_iter().map(|(input, output)| Turn {
                user: words::text(&mut rng, self.rate.words(input)),
                max_tokens: output,
            });
            return Conversation { system: prefix, turns: turns.collect() };
        };
        let (pass, index) = (number / file.len() as u64, (number % file.len() as u64) as usize);
        let FileConversation { system, users } = &file[index];
        let system = match (prefix, system) {
            (Some(prefix), Some(system)) => Some(format!("{prefix}\n{system}")),
            (prefix, system) => prefix.or_else(|| system.clone()),
        };
        let mut turns: Vec<Turn> = users
            .iter()
            .zip(&lengths)
            .map(|(user, &(_, output))| Turn { user: user.clone(), max_tokens: output })
            .collect();
        if pass > 0 && !shape.allow_repeats {
            // Else a prefix cache would answer for the model.
            turns[0].user.insert_str(0, &format!("({pass}) "));
        }
        Conversation { system, turns }
    }
}

/// Reads conversations, one JSON object a line: `messages` (OpenAI's), `conversations` of texts (LIMA's) or of
/// `from` and `value` (ShareGPT's), or `prompt`. Assistants' messages are left out.
pub fn read(path: &Path) -> Result<Vec<FileConversation>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            all.push(parse(line).with_context(|| format!("{}, line {}", path.display(), i + 1))?);
        }
    }
    if all.is_empty() {
        bail!("{} has no conversations", path.display());
    }
    Ok(all)
}

/// One line of such a file.
pub fn parse(line: &str) -> Result<FileConversation> {
    let row: Value = serde_json::from_str(line).context("not JSON")?;
    let (mut system, mut users) = (None, Vec::new());
    if let Some(messages) = row.get("messages").and_then(Value::as_array) {
        for message in messages {
            match (message["role"].as_str(), content(&message["content"])) {
                (Some("system" | "developer"), Some(text)) => system = Some(text),
                (Some("user"), Some(text)) => users.push(text),
                (Some(_), _) => {}
                (None, _) => bail!("a message has no role"),
            }
        }
    } else if let Some(parts) = row.get("conversations").and_then(Value::as_array) {
        for (i, part) in parts.iter().enumerate() {
            match (part.as_str(), part["from"].as_str(), part["value"].as_str()) {
                (Some(text), _, _) if i % 2 == 0 => users.push(text.to_owned()),
                (None, Some("system"), Some(text)) => system = Some(text.to_owned()),
                (None, Some("human" | "user"), Some(text)) => users.push(text.to_owned()),
                (Some(_), _, _) | (None, Some(_), Some(_)) => {}
                _ => bail!("an element of 'conversations' is neither a text nor 'from' and 'value'"),
            }
        }
    } else if let Some(prompt) = row["prompt"].as_str() {
        users.push(prompt.to_owned());
    } else {
        bail!("neither 'messages' nor 'conversations' nor 'prompt'");
    }
    if users.is_empty() {
        bail!("nobody asks anything");
    }
    Ok(FileConversation { system, users })
}

/// A message's text: a string, or the parts of type `text`.
fn content(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|p| p["text"].as_str()).collect();
            (!texts.is_empty()).then(|| texts.join("\n"))
        }
        _ => None,
    }
}
