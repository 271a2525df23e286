//! A message while it is generated: content blocks, and the events of a stream that tell of them.

use serde_json::{Value, json};

use super::error::object;
use crate::http::chat::Identity;
use crate::http::choice::Added;
use crate::http::error::ApiError;
use crate::http::pieces::{Piece, Pieces};
use crate::http::wire::Usage;

/// The event that keeps a silent stream open.
pub const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// One thing the model said.
enum Block {
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
    blocks: Vec<Block>,
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
    pub fn message(&self, identity: &Identity, usage: Usage) -> Value {
        json!({
            "id": identity.id,
            "type": "message",
            "role": "assistant",
            "model": identity.model,
            "content": self.blocks.iter().map(Block::whole).collect::<Vec<_>>(),
            "stop_reason": self.stop_reason(),
            "stop_sequence": self.stop_sequence(),
            "usage": tokens(usage),
        })
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
            self.put("message_start", json!({"message": message}));
            self.events += PING;
        }
        self.read(added);
        std::mem::take(&mut self.events)
    }

    /// The last events of a message that went well.
    pub fn end(&mut self, usage: Usage) -> String {
        self.close();
        let delta = json!({"stop_reason": self.stop_reason(), "stop_sequence": self.stop_sequence()});
        self.put("message_delta", json!({"delta": delta, "usage": tokens(usage)}));
        self.put("message_stop", json!({}));
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
                Piece::Text { text, .. } => self.text(&text),
                Piece::Call { id, name } => self.open(Block::ToolUse { id, name, input: String::new() }),
                Piece::Arguments(more) => {
                    if let Some(Block::ToolUse { input, .. }) = self.blocks.last_mut() {
                        *input += &more;
                        self.delta(json!({"type": "input_json_delta", "partial_json": more}));
                    }
                }
                Piece::End(reason) => self.reason = Some(reason),
            }
        }
    }

    fn text(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        if !matches!(self.blocks.last(), Some(Block::Text(_))) {
            self.open(Block::Text(String::new()));
        }
        if let Some(Block::Text(text)) = self.blocks.last_mut() {
            *text += more;
        }
        self.delta(json!({"type": "text_delta", "text": more}));
    }

    fn open(&mut self, block: Block) {
        self.close();
        let (index, announced) = (self.blocks.len(), block.whole());
        self.blocks.push(block);
        self.open = true;
        self.put("content_block_start", json!({"index": index, "content_block": announced}));
    }

    fn delta(&mut self, delta: Value) {
        self.put("content_block_delta", json!({"index": self.blocks.len() - 1, "delta": delta}));
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.put("content_block_stop", json!({"index": self.blocks.len() - 1}));
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

    fn stop_sequence(&self) -> Option<&String> {
        self.stop_sequences.get(self.stop?)
    }

    fn put(&mut self, kind: &str, fields: Value) {
        let mut event = json!({"type": kind});
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        self.events += &format!("event: {kind}\ndata: {event}\n\n");
    }
}

impl Block {
    /// As a message has it. Arguments that were cut off are none.
    fn whole(&self) -> Value {
        match self {
            Self::Text(text) => json!({"type": "text", "text": text, "citations": null}),
            Self::ToolUse { id, name, input } => {
                let input = serde_json::from_str(input).ok().filter(Value::is_object).unwrap_or_else(|| json!({}));
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

/// What was found in the cache is not counted as input.
fn tokens(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.cached_tokens;
    json!({
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_was_cut_off_is_none() {
        let block = |input: &str| Block::ToolUse { id: "1".into(), name: "f".into(), input: input.into() };
        assert_eq!(block("{\"a\": 1}").whole()["input"], json!({"a": 1}));
        assert_eq!(block("{\"a\": ").whole()["input"], json!({}));
        assert_eq!(block("").whole()["input"], json!({}));
    }
}
