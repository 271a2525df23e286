//! A message while it is generated: content blocks, and the events of a stream that tell of them.

use serde_json::{Map, Value};

use super::error::object;
use super::wire::{Block, Delta, End, Event, Message};
use crate::http::chat::Identity;
use crate::http::choice::Added;
use crate::http::error::ApiError;
use crate::http::pieces::{Piece, Pieces};
use crate::http::wire::Usage;

/// The event that keeps a silent stream open.
pub const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// One thing the model said.
enum Said {
    Text(String),
    ToolUse { id: String, name: String, input: String },
}

/// The message so far.
pub struct Answer {
    pieces: Pieces,
    stop_sequences: Vec<String>,
    /// Whether the limit of the answer is the end of the context.
    at_end_of_context: bool,
    request_id: String,
    begun: bool,
    blocks: Vec<Said>,
    /// Whether the last block is in progress.
    open: bool,
    /// The finish reason.
    reason: Option<&'static str>,
    /// Which of the stop sequences ended it.
    stop: Option<usize>,
    events: String,
}

impl Answer {
    /// Nothing yet.
    pub fn new(pieces: Pieces, stop_sequences: Vec<String>, at_end_of_context: bool, request_id: String) -> Self {
        Self {
            pieces,
            stop_sequences,
            at_end_of_context,
            request_id,
            begun: false,
            blocks: Vec::new(),
            open: false,
            reason: None,
            stop: None,
            events: String::new(),
        }
    }

    /// The whole message.
    pub fn message(&self, identity: &Identity, usage: Usage) -> Message {
        Message {
            id: identity.id.clone(),
            kind: "message",
            role: "assistant",
            model: identity.model.clone(),
            content: self.blocks.iter().map(Said::whole).collect(),
            stop_reason: self.stop_reason(),
            stop_sequence: self.stop_sequence(),
            usage: usage.into(),
        }
    }

    /// Takes `added` without telling of it.
    pub fn take(&mut self, added: Added) {
        self.read(added);
        self.events.clear();
    }

    /// The events that tell of `added`.
    pub fn added(&mut self, identity: &Identity, added: Added, usage: Usage) -> String {
        if !std::mem::replace(&mut self.begun, true) {
            let message = self.message(identity, usage);
            self.put(&Event::MessageStart { message });
            self.put(&Event::Ping);
        }
        self.read(added);
        std::mem::take(&mut self.events)
    }

    /// The last events of a message that went well.
    pub fn end(&mut self, usage: Usage) -> String {
        self.close();
        let delta = End { stop_reason: self.stop_reason(), stop_sequence: self.stop_sequence() };
        self.put(&Event::MessageDelta { delta, usage: usage.into() });
        self.put(&Event::MessageStop);
        std::mem::take(&mut self.events)
    }

    /// The last event of a message that failed.
    pub fn failed(&mut self, error: &ApiError) -> String {
        format!("event: error\ndata: {}\n\n", object(error, &self.request_id))
    }

    fn read(&mut self, added: Added) {
        self.stop = added.stop.or(self.stop);
        for piece in self.pieces.of(added) {
            match piece {
                Piece::Text { text, .. } => self.text(text),
                Piece::Call { id, name } => self.open(Said::ToolUse { id, name, input: String::new() }),
                Piece::Arguments(more) => {
                    if let Some(Said::ToolUse { input, .. }) = self.blocks.last_mut() {
                        *input += &more;
                        self.delta(Delta::InputJsonDelta { partial_json: more });
                    }
                }
                Piece::End(reason) => self.reason = Some(reason),
            }
        }
    }

    fn text(&mut self, more: String) {
        if more.is_empty() {
            return;
        }
        if !matches!(self.blocks.last(), Some(Said::Text(_))) {
            self.open(Said::Text(String::new()));
        }
        if let Some(Said::Text(text)) = self.blocks.last_mut() {
            *text += &more;
        }
        self.delta(Delta::TextDelta { text: more });
    }

    fn open(&mut self, said: Said) {
        self.close();
        let (index, content_block) = (self.blocks.len(), said.whole());
        self.blocks.push(said);
        self.open = true;
        self.put(&Event::ContentBlockStart { index, content_block });
    }

    fn delta(&mut self, delta: Delta) {
        self.put(&Event::ContentBlockDelta { index: self.blocks.len() - 1, delta });
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.put(&Event::ContentBlockStop { index: self.blocks.len() - 1 });
        }
    }

    /// `null` as long as nothing has ended.
    fn stop_reason(&self) -> Option<&'static str> {
        Some(match self.reason? {
            "tool_calls" => "tool_use",
            "length" if self.at_end_of_context => "model_context_window_exceeded",
            "length" => "max_tokens",
            _ if self.stop.is_some() => "stop_sequence",
            _ => "end_turn",
        })
    }

    fn stop_sequence(&self) -> Option<String> {
        self.stop_sequences.get(self.stop?).cloned()
    }

    fn put(&mut self, event: &Event) {
        let json = serde_json::to_string(event).expect("plain data serialises");
        self.events += &format!("event: {}\ndata: {json}\n\n", event.name());
    }
}

impl Said {
    /// As a message has it. Arguments that were cut off are none.
    fn whole(&self) -> Block {
        match self {
            Self::Text(text) => Block::Text { text: text.clone(), citations: None },
            Self::ToolUse { id, name, input } => {
                let input = serde_json::from_str(input).ok().filter(Value::is_object);
                let input = input.unwrap_or_else(|| Value::Object(Map::new()));
                Block::ToolUse { id: id.clone(), name: name.clone(), input }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn input_that_was_cut_off_is_none() {
        let input = |text: &str| {
            let said = Said::ToolUse { id: "1".into(), name: "f".into(), input: text.into() };
            serde_json::to_value(said.whole()).map(|block| block["input"].clone()).ok()
        };
        assert_eq!(input("{\"a\": 1}"), Some(json!({"a": 1})));
        assert_eq!(input("{\"a\": "), Some(json!({})));
        assert_eq!(input(""), Some(json!({})));
    }

    #[test]
    fn events_are_named_by_their_types() {
        for event in [Event::Ping, Event::MessageStop, Event::ContentBlockStop { index: 0 }] {
            let json = serde_json::to_value(&event).ok();
            assert_eq!(json.and_then(|json| json["type"].as_str().map(str::to_owned)), Some(event.name().to_owned()));
        }
        assert_eq!(PING, format!("event: ping\ndata: {}\n\n", json!({"type": "ping"})));
    }
}
