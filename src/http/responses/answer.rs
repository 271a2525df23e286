//! A response while it is generated. The object that is returned whole is the one the events of a stream tell of.

use super::wire::{Event, Failure, Incomplete, Item, Part, Response};
use crate::http::choice::Added;
use crate::http::error::ApiError;
use crate::http::pieces::{Piece, Pieces};
use crate::http::prepare::new_id;
use crate::http::state::unix_seconds;
use crate::http::wire::{TokenLogprob, Usage};

/// The response so far.
pub struct Answer {
    response: Response,
    pieces: Pieces,
    /// Whether the last item of the output is in progress.
    open: bool,
    /// The finish reason.
    reason: Option<&'static str>,
    events: Events,
}

/// Events that are not yet sent.
struct Events {
    streaming: bool,
    text: String,
    next: u64,
}

impl Events {
    fn put(&mut self, event: Event<'_>) {
        if self.streaming {
            let event = Event { sequence_number: self.next, ..event };
            let json = serde_json::to_string(&event).expect("plain data serialises");
            self.text += &format!("event: {}\ndata: {json}\n\n", event.kind);
            self.next += 1;
        }
    }

    fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}

impl Answer {
    /// `response` has no output yet. Only if `streaming` are there events.
    pub fn new(response: Response, pieces: Pieces, streaming: bool) -> Self {
        let events = Events { streaming, text: String::new(), next: 0 };
        Self { response, pieces, open: false, reason: None, events }
    }

    /// The object.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The events that tell of `added`.
    pub fn added(&mut self, added: Added) -> String {
        self.begin();
        for piece in self.pieces.of(added) {
            self.add(piece);
        }
        self.events.take()
    }

    /// The last events of a response that went well.
    pub fn end(&mut self, usage: Usage) -> String {
        self.begin();
        if self.response.output.is_empty() {
            self.open_message();
        }
        let cut = self.reason == Some("length");
        let status = if cut { "incomplete" } else { "completed" };
        self.close(status);
        self.response.status = status;
        self.response.usage = Some(usage.into());
        let kind = if cut {
            self.response.incomplete_details = Some(Incomplete { reason: "max_output_tokens" });
            "response.incomplete"
        } else {
            self.response.completed_at = Some(unix_seconds());
            "response.completed"
        };
        self.events.put(Event { kind, response: Some(&self.response), ..Event::default() });
        self.events.take()
    }

    /// The last events of a response that failed.
    pub fn failed(&mut self, error: &ApiError, usage: Usage) -> String {
        self.begin();
        if let (true, Some(item)) = (self.open, self.response.output.last_mut()) {
            *item.status() = "incomplete";
        }
        self.open = false;
        self.response.status = "failed";
        self.response.usage = Some(usage.into());
        self.response.error = Some(Failure { code: "server_error", message: error.to_string() });
        self.events.put(Event { kind: "response.failed", response: Some(&self.response), ..Event::default() });
        self.events.take()
    }

    /// The first events, once.
    fn begin(&mut self) {
        if self.events.next == 0 {
            for kind in ["response.created", "response.in_progress"] {
                self.events.put(Event { kind, response: Some(&self.response), ..Event::default() });
            }
        }
    }

    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Text { text, logprobs } => self.text(&text, logprobs),
            Piece::Call { id, name } => {
                self.close("completed");
                self.announce(Item::FunctionCall {
                    id: new_id("fc_"),
                    status: "in_progress",
                    call_id: id,
                    name,
                    arguments: String::new(),
                });
            }
            Piece::Arguments(more) => {
                let output_index = self.response.output.len().checked_sub(1);
                if let Some(Item::FunctionCall { id, arguments, .. }) = self.response.output.last_mut() {
                    *arguments += &more;
                    self.events.put(Event {
                        kind: "response.function_call_arguments.delta",
                        output_index,
                        item_id: Some(id),
                        delta: Some(&more),
                        ..Event::default()
                    });
                }
            }
            Piece::End(reason) => self.reason = Some(reason),
        }
    }

    fn text(&mut self, more: &str, logprobs: Vec<TokenLogprob>) {
        if !matches!(self.response.output.last(), Some(Item::Message { .. })) {
            if more.is_empty() {
                return;
            }
            self.close("completed");
            self.open_message();
        }
        let output_index = self.response.output.len().checked_sub(1);
        let Some(Item::Message { id, content, .. }) = self.response.output.last_mut() else { return };
        self.events.put(Event {
            kind: "response.output_text.delta",
            output_index,
            item_id: Some(id),
            content_index: Some(0),
            delta: Some(more),
            logprobs: Some(&logprobs),
            ..Event::default()
        });
        if let Some(part) = content.last_mut() {
            part.text += more;
            part.logprobs.extend(logprobs);
        }
    }

    fn open_message(&mut self) {
        let id = new_id("msg_");
        self.announce(Item::Message { id, status: "in_progress", role: "assistant", content: Vec::new() });
        let output_index = self.response.output.len().checked_sub(1);
        if let Some(Item::Message { id, content, .. }) = self.response.output.last_mut() {
            content.push(Part::empty());
            self.events.put(Event {
                kind: "response.content_part.added",
                output_index,
                item_id: Some(id),
                content_index: Some(0),
                part: content.last(),
                ..Event::default()
            });
        }
    }

    fn announce(&mut self, item: Item) {
        self.open = true;
        self.response.output.push(item);
        self.events.put(Event {
            kind: "response.output_item.added",
            output_index: self.response.output.len().checked_sub(1),
            item: self.response.output.last(),
            ..Event::default()
        });
    }

    /// Ends the item in progress, if there is one.
    fn close(&mut self, status: &'static str) {
        let output_index = self.response.output.len().checked_sub(1);
        let Some(item) = self.response.output.last_mut().filter(|_| std::mem::take(&mut self.open)) else { return };
        *item.status() = status;
        match item {
            Item::Message { id, content, .. } => {
                let (item_id, part) = (Some(&**id), content.last());
                self.events.put(Event {
                    kind: "response.output_text.done",
                    output_index,
                    item_id,
                    content_index: Some(0),
                    text: part.map(|part| &*part.text),
                    logprobs: part.map(|part| &*part.logprobs),
                    ..Event::default()
                });
                self.events.put(Event {
                    kind: "response.content_part.done",
                    output_index,
                    item_id,
                    content_index: Some(0),
                    part,
                    ..Event::default()
                });
            }
            Item::FunctionCall { id, name, arguments, .. } => self.events.put(Event {
                kind: "response.function_call_arguments.done",
                output_index,
                item_id: Some(id),
                name: Some(name),
                arguments: Some(arguments),
                ..Event::default()
            }),
        }
        self.events.put(Event {
            kind: "response.output_item.done",
            output_index,
            item: Some(item),
            ..Event::default()
        });
    }
}

impl Item {
    fn status(&mut self) -> &mut &'static str {
        match self {
            Self::Message { status, .. } | Self::FunctionCall { status, .. } => status,
        }
    }
}
