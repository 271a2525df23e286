//! Reads function calls out of a text that comes in pieces.
//!
//! How the text is cut changes nothing but how text and arguments are. Where the text is constrained, a call is told
//! as it comes; where it is not, once it is complete and right, and what is not right is text.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::prompt::{CLOSE, OPEN, PYTHON_TAG, ToolFormat};
use crate::http::state::ServedModel;

/// What a piece of text gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that is no call.
    Content(String),
    /// A call begins.
    Call {
        /// Its place among the calls of the answer.
        index: u32,
        /// The function.
        name: Arc<str>,
    },
    /// More of a call's arguments; all of them joined are a JSON object.
    Arguments {
        /// The call's.
        index: u32,
        /// JSON text.
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Text that may hold a call.
    Text,
    /// Text that holds none any more.
    Plain,
    /// What should be a call.
    Call,
    /// Arguments of a call.
    Arguments,
    /// The end of the call's object, after its arguments.
    Tail,
    /// After a call.
    After,
    /// No more is wanted.
    Done,
}

/// The calls of one answer.
#[derive(Clone, Debug)]
pub struct CallParser {
    format: ToolFormat,
    names: Vec<Arc<str>>,
    /// Whether calls can only be right.
    constrained: bool,
    parallel: bool,
    state: State,
    /// What is not told yet, nor known to be dropped.
    buffer: String,
    /// White space at the end of the text so far: dropped if a call follows.
    space: String,
    scan: Scan,
    calls: u32,
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Box<RawValue>,
}

impl CallParser {
    /// For calls of these functions. `constrained`: the text follows the grammar of such calls.
    pub(super) fn new(format: ToolFormat, names: Vec<Arc<str>>, constrained: bool, parallel: bool) -> Self {
        Self {
            format,
            names,
            constrained,
            parallel,
            state: State::Text,
            buffer: String::new(),
            space: String::new(),
            scan: Scan::default(),
            calls: 0,
        }
    }

    /// What stands before the arguments of a constrained call.
    pub(super) fn header(format: ToolFormat, name: &str) -> String {
        let key = match format {
            ToolFormat::Hermes => "arguments",
            ToolFormat::Llama3Json => "parameters",
        };
        format!("{{\"name\": \"{name}\", \"{key}\": ")
    }

    /// Whether its tags are special tokens of the model, which are otherwise no text.
    pub fn has_special_tags(&self, model: &ServedModel) -> bool {
        let tokenizer = &model.tokenizer;
        let special = |tag| tokenizer.token_id(tag).is_some_and(|id| tokenizer.is_special(id));
        self.format == ToolFormat::Hermes && [OPEN, CLOSE].into_iter().any(special)
    }

    /// Calls begun.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.buffer.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts, false) {}
        parts
    }

    /// Ends the text.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        while self.step(&mut parts, true) {}
        if self.calls == 0 {
            let space = std::mem::take(&mut self.space);
            tell(&mut parts, space);
        }
        parts
    }

    /// Goes on as far as one state goes; false when more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>, end: bool) -> bool {
        match self.state {
            State::Text if self.format == ToolFormat::Hermes => self.tagged(parts, end),
            State::Text => self.opening(end),
            State::Plain => {
                let text = std::mem::take(&mut self.buffer);
                self.content(parts, &text);
                false
            }
            State::Call if self.constrained => self.constrained_call(parts, end),
            State::Call => self.call(parts, end),
            State::Arguments => self.arguments(parts),
            State::Tail => {
                self.skip_space();
                match self.buffer.starts_with('}') {
                    true => {
                        self.buffer.drain(..1);
                        self.go(State::After)
                    }
                    false => self.drop_at(end),
                }
            }
            State::After => self.after(end),
            State::Done => {
                self.buffer.clear();
                false
            }
        }
    }

    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    /// Text up to a tag that opens a call.
    fn tagged(&mut self, parts: &mut Vec<Part>, end: bool) -> bool {
        if let Some(at) = self.buffer.find(OPEN) {
            let text: String = self.buffer.drain(..at + OPEN.len()).collect();
            self.content(parts, &text[..at]);
            self.scan = Scan::default();
            return self.go(State::Call);
        }
        let withheld = if end { 0 } else { overlap(&self.buffer, OPEN) };
        let text: String = self.buffer.drain(..self.buffer.len() - withheld).collect();
        self.content(parts, &text);
        false
    }

    /// The first character decides.
    fn opening(&mut self, end: bool) -> bool {
        let text = self.buffer.trim_start();
        let call = text.strip_prefix(PYTHON_TAG).map(str::trim_start).unwrap_or(text);
        if call.starts_with('{') {
            self.scan = Scan::default();
            return self.go(State::Call);
        }
        let open = text.is_empty() || PYTHON_TAG.starts_with(text) || (call.is_empty() && text != call);
        if open && !end { false } else { self.go(State::Plain) }
    }

    /// A call that has one form only.
    fn constrained_call(&mut self, parts: &mut Vec<Part>, end: bool) -> bool {
        self.skip_space();
        let begins = |name: &&Arc<str>| self.buffer.starts_with(&Self::header(self.format, name));
        match self.names.iter().find(begins).cloned() {
            Some(name) => {
                self.buffer.drain(..Self::header(self.format, &name).len());
                self.begin(parts, name);
                self.scan = Scan::default();
                self.go(State::Arguments)
            }
            None => self.drop_at(end),
        }
    }

    fn arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let (complete, upto) = match self.scan.value(&self.buffer, 0) {
            Some(upto) => (true, upto),
            None => (false, self.buffer.len()),
        };
        let text: String = self.buffer.drain(..upto).collect();
        self.scan.at = 0;
        if !text.is_empty() {
            parts.push(Part::Arguments { index: self.calls - 1, text });
        }
        if complete { self.go(State::Tail) } else { false }
    }

    /// A call in whatever form, once it is complete.
    fn call(&mut self, parts: &mut Vec<Part>, end: bool) -> bool {
        let skipped = self.before_value();
        let rest = &self.buffer[skipped..];
        if rest.is_empty() && !end {
            return false;
        }
        let value = rest.starts_with(['{', '[']).then(|| self.scan.value(&self.buffer, skipped));
        match value {
            Some(None) if !end => false,
            Some(Some(upto)) => match self.written(&self.buffer[skipped..upto]) {
                Some(calls) => {
                    self.buffer.drain(..upto);
                    for (name, arguments) in calls {
                        if self.parallel || self.calls == 0 {
                            self.begin(parts, name);
                            parts.push(Part::Arguments { index: self.calls - 1, text: arguments });
                        }
                    }
                    self.go(State::After)
                }
                None => self.not_a_call(parts, upto),
            },
            // It is none, or never became complete.
            Some(None) => self.not_a_call(parts, self.buffer.len()),
            None => self.not_a_call(parts, skipped),
        }
    }

    /// Bytes of the buffer before the value of a call.
    fn before_value(&self) -> usize {
        let text = self.buffer.trim_start();
        let text = match self.format {
            ToolFormat::Hermes => text,
            ToolFormat::Llama3Json => text.strip_prefix(PYTHON_TAG).map(str::trim_start).unwrap_or(text),
        };
        self.buffer.len() - text.len()
    }

    /// The calls that a JSON text describes: one, or a list.
    fn written(&self, json: &str) -> Option<Vec<(Arc<str>, String)>> {
        let written: Vec<Written> = match json.starts_with('[') {
            true => serde_json::from_str(json).ok()?,
            false => vec![serde_json::from_str(json).ok()?],
        };
        let call = |w: Written| {
            let name = self.names.iter().find(|name| ***name == *w.name)?;
            let arguments = w.arguments.get();
            arguments.starts_with('{').then(|| (Arc::clone(name), arguments.to_owned()))
        };
        written.into_iter().map(call).collect()
    }

    /// What was taken for a call is text after all, up to here.
    fn not_a_call(&mut self, parts: &mut Vec<Part>, upto: usize) -> bool {
        let text: String = self.buffer.drain(..upto).collect();
        match self.format {
            ToolFormat::Hermes => {
                self.content(parts, OPEN);
                self.content(parts, &text);
                self.go(State::Text)
            }
            ToolFormat::Llama3Json => {
                self.content(parts, &text);
                self.go(State::Plain)
            }
        }
    }

    fn after(&mut self, end: bool) -> bool {
        self.skip_space();
        if !self.parallel {
            return self.go(State::Done);
        }
        match self.format {
            ToolFormat::Hermes if self.buffer.starts_with(CLOSE) => {
                self.buffer.drain(..CLOSE.len());
                self.go(State::Text)
            }
            ToolFormat::Hermes if !end && CLOSE.starts_with(&self.buffer) => false,
            ToolFormat::Hermes => self.go(State::Text),
            ToolFormat::Llama3Json => match self.buffer.trim_start_matches([';', ',']).trim_start() {
                "" if end => self.go(State::Done),
                "" => false,
                call if call.starts_with('{') => {
                    self.buffer = call.to_owned();
                    self.scan = Scan::default();
                    self.go(State::Call)
                }
                _ => self.go(State::Plain),
            },
        }
    }

    fn begin(&mut self, parts: &mut Vec<Part>, name: Arc<str>) {
        self.space.clear();
        parts.push(Part::Call { index: self.calls, name });
        self.calls += 1;
    }

    /// Tells text; white space at its end when more text follows.
    fn content(&mut self, parts: &mut Vec<Part>, text: &str) {
        let solid = text.trim_end();
        if !solid.is_empty() {
            let mut told = std::mem::take(&mut self.space);
            told.push_str(solid);
            tell(parts, told);
        }
        self.space.push_str(&text[solid.len()..]);
    }

    fn skip_space(&mut self) {
        let skipped = self.buffer.len() - self.buffer.trim_start().len();
        self.buffer.drain(..skipped);
    }

    /// Waits for more; what is left at the end of the text is the beginning of something that has no meaning.
    fn drop_at(&mut self, end: bool) -> bool {
        end && self.go(State::Done)
    }
}

fn tell(parts: &mut Vec<Part>, text: String) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Content(told)) => told.push_str(&text),
        _ => parts.push(Part::Content(text)),
    }
}

/// Length of the longest end of `text` that begins `tag` and is not all of it.
fn overlap(text: &str, tag: &str) -> usize {
    (1..tag.len().min(text.len() + 1)).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

/// Finds the end of a JSON object or array, text by text.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    /// Bytes of the buffer that were looked at.
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Where the value that begins at `from` ends, if it does. Goes on where it stopped.
    fn value(&mut self, text: &str, from: usize) -> Option<usize> {
        let start = self.at.max(from);
        for (i, byte) in text.bytes().enumerate().skip(start) {
            self.at = i + 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(i + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
