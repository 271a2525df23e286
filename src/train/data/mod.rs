//! Conversations from a file: four formats, detected and validated.
//!
//! A file is hostile until it is read: sizes are limited, and whatever is wrong with a row is one sentence that names
//! file, line and reason.

mod formats;
mod json;
mod split;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use formats::Format;
pub use split::split;

use formats::Row;

/// Bytes of a file.
const MAX_FILE: u64 = 1 << 30;
/// Bytes of a row.
const MAX_ROW: usize = 8 << 20;
/// Messages of a conversation.
const MAX_TURNS: usize = 1000;
/// Errors that are shown; the others are counted.
const MAX_ERRORS: usize = 10;

/// Who says a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions before the conversation; at most one turn, the first.
    System,
    /// The one who asks.
    User,
    /// The one who answers, and is trained.
    Assistant,
}

impl Role {
    /// As chat templates call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Who says it.
    pub role: Role,
    /// What is said: not only white space, and without control characters other than tab, line feed and carriage
    /// return.
    pub text: String,
    /// Whether it is learnt: an assistant's turn whose weight is not 0.
    pub learn: bool,
}

/// A conversation that is well formed: a system turn or none, then user and assistant by turns, the assistant last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// At least a user's and an assistant's; at least one is learnt.
    pub turns: Vec<Turn>,
    /// Where the row says it comes from.
    pub source: Option<String>,
    /// The line it begins in, from 1.
    pub line: usize,
    /// Whether a last message without an answer was left out.
    pub dropped_last: bool,
}

/// A file's conversations, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// At least one.
    pub conversations: Vec<Conversation>,
}

/// One thing wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
pub struct DataError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, if it is one line's fault.
    pub line: Option<usize>,
    /// What is wrong.
    pub reason: String,
}

/// Everything wrong with a file, a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", shown(first), more(*total - first.len()))]
pub struct DataErrors {
    /// The first ones, at least one.
    pub first: Vec<DataError>,
    /// How many there are.
    pub total: usize,
}

fn shown(first: &[DataError]) -> String {
    first.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn more(n: usize) -> String {
    if n > 0 { format!("\nand {n} more such errors") } else { String::new() }
}

impl Dataset {
    /// Reads a file: rows of JSON (jsonl), or one JSON array of rows.
    pub fn read(path: &Path) -> Result<Self, DataErrors> {
        let whole = |reason: String| one(path, None, reason);
        let file = File::open(path).map_err(|e| whole(format!("cannot be read: {e}")))?;
        let mut bytes = Vec::new();
        // Not by its length alone: a pipe or a device has none.
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| whole(format!("cannot be read: {e}")))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(whole(format!("is larger than {} MiB", MAX_FILE >> 20)));
        }
        Self::parse(path, &bytes)
    }

    /// Reads a file's bytes; `path` is for errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DataErrors> {
        let rows = json::rows(bytes).map_err(|(line, reason)| one(path, line, reason))?;
        let mut errors = DataErrors { first: Vec::new(), total: 0 };
        let mut format = None;
        let mut conversations = Vec::with_capacity(rows.len());
        for row in rows {
            let parsed = if row.text.len() > MAX_ROW {
                Err(format!("the row is larger than {} MiB", MAX_ROW >> 20))
            } else {
                json::parse(&row).and_then(|value| {
                    let (found, parsed) = formats::parse(value)?;
                    let (first, line) = *format.get_or_insert((found, row.line));
                    match found == first {
                        true => conversation(parsed, row.line),
                        false => Err(format!("the row is {found}, but line {line} is {first}")),
                    }
                })
            };
            match parsed {
                Ok(conversation) => conversations.push(conversation),
                Err(reason) => {
                    errors.total += 1;
                    if errors.first.len() < MAX_ERRORS {
                        errors.first.push(DataError { path: path.into(), line: Some(row.line), reason });
                    }
                }
            }
        }
        match format {
            _ if errors.total > 0 => Err(errors),
            Some((format, _)) => Ok(Self { path: path.into(), format, conversations }),
            None => Err(one(path, None, "has no rows".into())),
        }
    }
}

fn one(path: &Path, line: Option<usize>, reason: String) -> DataErrors {
    DataErrors { first: vec![DataError { path: path.into(), line, reason }], total: 1 }
}

/// Checks what all formats have in common. A last message without an answer is left out.
fn conversation(row: Row, line: usize) -> Result<Conversation, String> {
    let Row { mut turns, source } = row;
    if turns.len() > MAX_TURNS {
        return Err(format!("the conversation has {} messages, more than {MAX_TURNS}", turns.len()));
    }
    // As OpenAI's API takes it: nothing is said.
    if turns.first().is_some_and(|t| t.role == Role::System && t.text.is_empty()) {
        turns.remove(0);
    }
    let system = usize::from(turns.first().is_some_and(|t| t.role == Role::System));
    for (i, turn) in turns.iter().enumerate() {
        let at = i + 1;
        if turn.text.trim().is_empty() {
            return Err(format!("message {at}, of the {}, is empty", turn.role.name()));
        }
        if let Some(c) = turn.text.chars().find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
            return Err(format!("message {at} has the control character U+{:04X}", c as u32));
        }
        let expected = if (i + system) % 2 == 0 { Role::User } else { Role::Assistant };
        if i >= system && turn.role != expected {
            let rule = "after an optional system message, user and assistant alternate";
            return Err(format!(
                "message {at} is the {}'s where the {}'s is due: {rule}",
                turn.role.name(),
                expected.name()
            ));
        }
    }
    let dropped_last = turns.last().is_some_and(|t| t.role == Role::User);
    if dropped_last {
        turns.pop();
    }
    if !turns.iter().any(|t| t.role == Role::Assistant) {
        return Err("the conversation has no message of the assistant".into());
    }
    if !turns.iter().any(|t| t.learn) {
        return Err("every message of the assistant has weight 0, so there is nothing to learn".into());
    }
    Ok(Conversation { turns, source, line, dropped_last })
}
