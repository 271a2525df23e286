//! Chat templates: Jinja, in the dialect Hugging Face tokenizers give it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::strftime::strftime;
use super::tojson::tojson;

/// Instructions one rendering may execute.
const FUEL: u64 = 10_000_000;
/// Bytes one rendering may produce.
const MAX_OUTPUT: usize = 16 << 20;
const NAME: &str = "chat_template";
/// The template with marks around what the assistant says.
const MARKED: &str = "marked_chat_template";
/// What stands before and after what the assistant says: noncharacters, which no text should have.
pub(super) const GENERATION: [char; 2] = ['\u{1FFFE}', '\u{1FFFF}'];

/// Why a chat template gave no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template refused the conversation with `raise_exception`: the caller's mistake.
    #[error("{0}")]
    Raised(String),
    /// The conversation cannot be rendered, for example because the template needs something that
    /// it does not have.
    #[error("the chat template cannot render this conversation: {0}")]
    Render(String),
    /// The rendering took too long.
    #[error("the chat template executes more than {FUEL} instructions")]
    OutOfFuel,
    /// The text is too long.
    #[error("the chat template produces more than {MAX_OUTPUT} bytes")]
    TooLong,
    /// The template is not valid: the model's mistake.
    #[error("the model's chat template is broken: {0}")]
    Broken(String),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Box<str>,
    has_generation_tags: bool,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`. Templates see the spellings of the special tokens as `bos_token` and
    /// `eos_token`; one that is `None` is undefined.
    pub fn new(source: &str, bos_token: Option<&str>, eos_token: Option<&str>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError::Broken(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
        for (name, token) in [("bos_token", bos_token), ("eos_token", eos_token)] {
            if let Some(token) = token {
                environment.add_global(name, Value::from(token));
            }
        }
        let broken = |e: Error| TemplateError::Broken(format!("{e:#}"));
        // A `with` that names nothing is a scope of its own too, and white space control stays as written.
        let plain = with_generation_tags(source, ["with", "endwith"]);
        environment.add_template_owned(NAME, plain).map_err(broken)?;
        let marked = with_generation_tags(source, ["filter generation", "endfilter"]);
        let has_generation_tags = marked != source;
        if has_generation_tags {
            let [open, close] = GENERATION;
            environment.add_filter("generation", move |said: String| format!("{open}{said}{close}"));
            environment.add_template_owned(MARKED, marked).map_err(broken)?;
        }
        Ok(Self { environment, source: source.into(), has_generation_tags })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says by `{% generation %}` what the assistant says.
    pub fn has_generation_tags(&self) -> bool {
        self.has_generation_tags
    }

    /// [`ChatTemplate::render`] of a finished conversation, with [`GENERATION`] around each `{% generation %}`; only
    /// for a template that has them.
    pub(super) fn render_marked(&self, messages: &[Json]) -> Result<String, TemplateError> {
        self.render_named(MARKED, messages, false, &serde_json::Map::new())
    }

    /// Renders a conversation. `messages` are objects as templates read them (`role`, `content`, …);
    /// `extra` are further variables (`tools`, `enable_thinking`, …), which cannot replace the
    /// conversation.
    pub fn render(
        &self,
        messages: &[Json],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Json>,
    ) -> Result<String, TemplateError> {
        self.render_named(NAME, messages, add_generation_prompt, extra)
    }

    fn render_named(
        &self,
        name: &str,
        messages: &[Json],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Json>,
    ) -> Result<String, TemplateError> {
        // Hugging Face always defines `tools` and `documents`.
        let mut context: BTreeMap<&str, Value> = BTreeMap::from([("tools", ().into()), ("documents", ().into())]);
        context.extend(extra.iter().map(|(name, value)| (name.as_str(), from_json(value))));
        context.insert("messages", messages.iter().map(from_json).collect::<Vec<_>>().into());
        context.insert("add_generation_prompt", add_generation_prompt.into());
        let template = self.environment.get_template(name).map_err(|e| TemplateError::Broken(e.to_string()))?;
        let mut output = Capped::default();
        match template.render_captured_to(Value::from_pairs(context), &mut output) {
            Ok(_) => String::from_utf8(output.bytes).map_err(|e| TemplateError::Render(e.to_string())),
            Err(_) if output.full => Err(TemplateError::TooLong),
            Err(e) => Err(classify(&e)),
        }
    }
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn classify(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        if e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::OutOfFuel;
        }
        cause = e.source();
    }
    TemplateError::Render(error.to_string())
}

/// Collects output up to [`MAX_OUTPUT`] bytes.
#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), from_json(v)))),
    }
}

/// Replaces Hugging Face's `{% generation %}` … `{% endgeneration %}`, which mark what the assistant says.
fn with_generation_tags(source: &str, [open, close]: [&str; 2]) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inside = tag[..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match inside {
            "generation" => open,
            "endgeneration" => close,
            _ => continue,
        };
        out.push_str(&tag[..end].replace(inside, replacement));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}
