//! What was said.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// A turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who.
    pub role: Role,
    /// What.
    pub content: String,
}

/// Turns of user and assistant in alternation, and perhaps a system prompt before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The system prompt.
    pub system: Option<String>,
    turns: Vec<Message>,
}

impl Conversation {
    /// Nothing said yet.
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// The user's turn.
    pub fn ask(&mut self, content: String) {
        self.turns.push(Message { role: Role::User, content });
    }

    /// The assistant's.
    pub fn answered(&mut self, content: String) {
        self.turns.push(Message { role: Role::Assistant, content });
    }

    /// Takes the last question back, and its answer if there is one. `None` if nothing was asked.
    pub fn take_back(&mut self) -> Option<String> {
        let at = self.turns.iter().rposition(|turn| turn.role == Role::User)?;
        self.turns.drain(at..).next().map(|turn| turn.content)
    }

    /// Forgets the turns; the system prompt stays.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// What is sent.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.clone().map(|content| Message { role: Role::System, content });
        system.into_iter().chain(self.turns.iter().cloned()).collect()
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds it to a file as one line of JSON, in the form that trainers read.
    ///
    /// # Errors
    /// Those of the file.
    pub fn append_to(&self, path: &Path) -> io::Result<()> {
        let line = format!("{}\n", serde_json::json!({ "messages": self.messages() }));
        OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
    }
}
