//! Structured output: what a text must be (JSON, a schema, a regular expression, a grammar), compiled to a
//! [`Matcher`] that says after each token which may follow.
//!
//! The automata are llguidance's; ours are the token trie, the budgets, and refusing whatever would not be kept to
//! the letter. A compiled constraint is never moved: each sequence gets a copy of its own, lexer included, so that
//! what one sequence may generate, and the limits it may run into, depend on nothing but its own tokens.

mod schema;
mod trie;

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;

pub use self::schema::enforced as enforced_schema;
use super::tokenizer::Tokenizer;
use crate::engine::{Matcher, TokenId};

/// Bytes of a schema, or of all schemas of a request's tools, as JSON.
const MAX_SCHEMA: usize = 256 << 10;
/// Bytes of a grammar, or of all choices.
const MAX_GRAMMAR: usize = 64 << 10;
/// Bytes of a regular expression.
const MAX_REGEX: usize = 16 << 10;

/// How long a request waits for its constraint. llguidance counts its work and gives up far earlier; this is for
/// what it does not count.
const BUDGET: Duration = Duration::from_secs(5);
/// Compilations at once. One that is past its budget still counts.
const AT_ONCE: usize = 2;
/// Stack of a compilation: a chain of references is followed recursively, and the limits above allow thousands.
const STACK: usize = 256 << 20;
/// Compiled constraints that are kept.
const KEPT: usize = 32;

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// A JSON object.
    JsonObject,
    /// JSON that matches a JSON Schema.
    JsonSchema(Value),
    /// A match of a regular expression, from beginning to end.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// A sentence of a grammar in llguidance's dialect of Lark.
    Grammar(String),
    /// The same, made by the server of checked parts.
    Generated(String),
}

/// Why there is no such constraint. The messages are clauses for clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// A schema cannot be kept to.
    #[error("the schema at '#{pointer}' {reason}")]
    Schema {
        /// JSON pointer into the schema.
        pointer: String,
        /// What about it.
        reason: String,
    },
    /// A regular expression, a grammar or a choice cannot be kept to.
    #[error("{0}")]
    Grammar(String),
    /// It is too long.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How long it may be.
        limit: usize,
    },
    /// Compiling took too long.
    #[error("it is too complex: compiling it takes more than {} seconds", BUDGET.as_secs())]
    TimedOut,
    /// Nothing could end the text.
    #[error("the model has no end-of-sequence token, so a complete text could not end")]
    NoEnd,
}

impl Spec {
    fn check_size(&self) -> Result<(), ConstraintError> {
        let (what, size, limit) = match self {
            Self::JsonObject => return Ok(()),
            Self::JsonSchema(schema) => ("the schema", schema.to_string().len(), MAX_SCHEMA),
            Self::Regex(regex) => ("the regular expression", regex.len(), MAX_REGEX),
            Self::Choice(choices) => ("the choice", choices.iter().map(String::len).sum(), MAX_GRAMMAR),
            Self::Grammar(grammar) => ("the grammar", grammar.len(), MAX_GRAMMAR),
            Self::Generated(grammar) => ("the schemas of all tools", grammar.len(), MAX_SCHEMA),
        };
        if size > limit { Err(ConstraintError::TooLarge { what, limit }) } else { Ok(()) }
    }

    /// Equal for equal constraints alone: the order of a schema's properties counts.
    fn key(&self) -> String {
        match self {
            Self::JsonObject => "o".into(),
            Self::JsonSchema(schema) => format!("s{schema}"),
            Self::Regex(regex) => format!("r{regex}"),
            Self::Choice(choices) => format!("c{}", Value::from(choices.as_slice())),
            Self::Grammar(grammar) | Self::Generated(grammar) => format!("g{grammar}"),
        }
    }
}

/// The constraints of one model. Nothing is built before the first is asked for.
pub struct Constraints {
    tokenizer: Arc<Tokenizer>,
    vocab_size: usize,
    eos: Vec<TokenId>,
    factory: OnceLock<Result<ParserFactory, String>>,
    /// Newest first.
    kept: Mutex<VecDeque<(String, TokenMatcher)>>,
    compiling: Mutex<usize>,
    compiled: Condvar,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints").finish_non_exhaustive()
    }
}

impl Constraints {
    /// Of tokens below `vocab_size`; a text ends with one of `eos`.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, mut eos: Vec<TokenId>) -> Arc<Self> {
        eos.retain(|id| (*id as usize) < vocab_size);
        Arc::new(Self {
            tokenizer,
            vocab_size,
            eos,
            factory: OnceLock::new(),
            kept: Mutex::default(),
            compiling: Mutex::default(),
            compiled: Condvar::new(),
        })
    }

    /// A matcher in its first state. Blocks: not for async code.
    ///
    /// # Errors
    /// The specification is not valid, uses what is not supported, allows no text at all, or is too large.
    pub fn compile(self: &Arc<Self>, spec: &Spec) -> Result<Box<dyn Matcher>, ConstraintError> {
        spec.check_size()?;
        if self.eos.is_empty() {
            return Err(ConstraintError::NoEnd);
        }
        let key = spec.key();
        if let Some(matcher) = self.kept(&key) {
            return Ok(Box::new(matcher));
        }
        let deadline = Instant::now() + BUDGET;
        let turn = self.turn(deadline)?;
        let (this, spec) = (Arc::clone(self), spec.clone());
        let (result, receiver) = sync_channel(1);
        let compilation = move || {
            let _turn = turn;
            // Whoever waited has given up.
            let _ = result.send(this.build(&spec));
        };
        let thread = std::thread::Builder::new().name("constraint".into()).stack_size(STACK).spawn(compilation);
        thread.map_err(|e| ConstraintError::Grammar(format!("it cannot be compiled now: {e}")))?;
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(matcher) => {
                let matcher = matcher?;
                let fork = matcher.fork();
                self.keep(key, matcher);
                Ok(fork)
            }
            Err(RecvTimeoutError::Timeout) => Err(ConstraintError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(ConstraintError::Grammar("it cannot be compiled".into())),
        }
    }

    /// A copy of what is kept under a key.
    fn kept(&self, key: &str) -> Option<TokenMatcher> {
        let mut kept = lock(&self.kept);
        let index = kept.iter().position(|(k, _)| k == key)?;
        let entry = kept.remove(index)?;
        let copy = entry.1.copy();
        kept.push_front(entry);
        Some(copy)
    }

    fn keep(&self, key: String, matcher: TokenMatcher) {
        let mut kept = lock(&self.kept);
        kept.push_front((key, matcher));
        kept.truncate(KEPT);
    }

    /// A place among those that compile.
    fn turn(self: &Arc<Self>, deadline: Instant) -> Result<Turn, ConstraintError> {
        let mut compiling = lock(&self.compiling);
        while *compiling >= AT_ONCE {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConstraintError::TimedOut);
            }
            compiling = self.compiled.wait_timeout(compiling, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *compiling += 1;
        Ok(Turn(Arc::clone(self)))
    }

    fn build(&self, spec: &Spec) -> Result<TokenMatcher, ConstraintError> {
        let grammar = match spec {
            Spec::JsonObject => TopLevelGrammar::from_json_schema(schema::object()),
            Spec::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema::prepare(schema)?),
            Spec::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Spec::Choice(choices) => TopLevelGrammar::from_lark(choice(choices)),
            Spec::Grammar(grammar) | Spec::Generated(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        self.start(grammar).map_err(|reason| match spec {
            Spec::JsonSchema(schema) => {
                let fails = |part: &Value| {
                    let grammar = schema::prepare(part).ok().map(TopLevelGrammar::from_json_schema);
                    grammar.is_some_and(|grammar| self.start(grammar).is_err_and(|r| r == reason))
                };
                ConstraintError::Schema { pointer: schema::locate(schema, fails), reason: schema::explain(&reason) }
            }
            _ => ConstraintError::Grammar(reason),
        })
    }

    /// A matcher that allows at least one token.
    fn start(&self, grammar: TopLevelGrammar) -> Result<TokenMatcher, String> {
        let factory = self.factory.get_or_init(|| trie::factory(&self.tokenizer, self.vocab_size, &self.eos));
        let parser = factory.as_ref()?.create_parser(grammar).map_err(|e| clause(&format!("{e:#}")))?;
        let mut matcher = llguidance::Matcher::new(Ok(parser));
        matcher.compute_mask_or_eos().map_err(|e| clause(&format!("{e:#}")))?;
        Ok(TokenMatcher(matcher))
    }
}

/// Held while compiling.
struct Turn(Arc<Constraints>);

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&self.0.compiling) -= 1;
        self.0.compiled.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A grammar of a few strings.
fn choice(choices: &[String]) -> String {
    let quoted: Vec<String> = choices.iter().map(|c| Value::from(c.as_str()).to_string()).collect();
    format!("start: {}", quoted.join(" | "))
}

/// An error's first line, and where it points at a place of an expression the reason below; shortened, as a clause.
fn clause(message: &str) -> String {
    const MAX: usize = 300;
    let line = message.lines().next().unwrap_or_default();
    let reason = message.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
    let line: String = [line, " ", reason].concat().chars().filter(|c| !c.is_control()).take(MAX).collect();
    let line = line.trim().trim_end_matches(['.', ':']).to_owned();
    match line.as_str() {
        // What the engine says when a state has no way on.
        "" | "NoExtensionBias" => "no text can match it".to_owned(),
        _ => line,
    }
}

/// llguidance's automaton.
struct TokenMatcher(llguidance::Matcher);

impl TokenMatcher {
    fn copy(&self) -> Self {
        Self(self.0.deep_clone())
    }
}

impl fmt::Debug for TokenMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenMatcher").finish_non_exhaustive()
    }
}

impl Matcher for TokenMatcher {
    fn fork(&self) -> Box<dyn Matcher> {
        Box::new(self.copy())
    }

    fn mask(&mut self, mask: &mut Vec<u32>) -> Result<(), String> {
        *mask = self.0.compute_mask_or_eos().map_err(|e| clause(&format!("{e:#}")))?.into();
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.0.consume_token(token).map_err(|e| clause(&format!("{e:#}")))
    }
}
