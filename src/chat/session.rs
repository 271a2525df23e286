//! A conversation that goes on: lines of the user's, commands among them, and the answers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::client::{ChatError, Client, Piece};
use super::conversation::Conversation;
use super::interrupt::Interrupt;

/// How often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(30);
/// How often a server that is too busy is asked.
const TRIES: u32 = 20;

const HELP: &str = "\
/retry          answer the last message again
/edit TEXT      say this instead of the last message
/system [TEXT]  show or set the system prompt; '/system -' removes it
/save FILE      add the conversation to a file, as a line of JSON
/clear          begin anew
/quit           leave (as Ctrl-D)
A line that ends with a backslash goes on in the next. Ctrl-C stops an answer; a second one leaves.";

/// What a line of the user's is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Say(String),
    Help,
    Retry,
    Edit(String),
    System(Option<String>),
    Save(PathBuf),
    Clear,
    Quit,
}

impl Line {
    fn parse(line: &str) -> Result<Self, ChatError> {
        let line = line.trim();
        if !line.starts_with('/') {
            return Ok(Self::Say(line.to_owned()));
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match (command, rest) {
            ("/help", "") => Ok(Self::Help),
            ("/retry", "") => Ok(Self::Retry),
            ("/edit", "") => Err(ChatError::Command("/edit wants the message as it should be".into())),
            ("/edit", text) => Ok(Self::Edit(text.to_owned())),
            ("/clear", "") => Ok(Self::Clear),
            ("/quit" | "/exit", "") => Ok(Self::Quit),
            ("/system", "") => Ok(Self::System(None)),
            ("/system", "-") => Ok(Self::System(Some(String::new()))),
            ("/system", text) => Ok(Self::System(Some(text.to_owned()))),
            ("/save", "") => Err(ChatError::Command("/save wants the name of a file".into())),
            ("/save", file) => Ok(Self::Save(file.into())),
            ("/help" | "/retry" | "/clear" | "/quit" | "/exit", _) => {
                Err(ChatError::Command(format!("{command} takes nothing else")))
            }
            _ => Err(ChatError::Command(format!("there is no command '{command}'; /help tells them all"))),
        }
    }
}

/// What follows a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next line.
    Listen,
    /// The next line, after an answer.
    Answered,
    /// The end.
    Leave,
}

/// Numbers of an answer.
#[derive(Clone, Debug, Default)]
struct Numbers {
    /// Counted by the server, else pieces.
    usage: Option<Value>,
    pieces: u64,
    first: Option<Duration>,
    last: Option<Duration>,
}

/// A conversation with a model.
pub struct Session {
    client: Client,
    model: String,
    sampling: Map<String, Value>,
    conversation: Conversation,
    /// Whether control characters of an answer are shown as they come.
    controls: bool,
    /// Lines that ended with a backslash.
    begun: String,
    numbers: Option<Numbers>,
}

impl Session {
    /// Begins. Without `controls`, an answer's control characters are left out, but for line breaks and tabs.
    pub fn new(
        client: Client,
        model: String,
        system: Option<String>,
        sampling: Map<String, Value>,
        controls: bool,
    ) -> Self {
        let conversation = Conversation::new(system);
        Self { client, model, sampling, conversation, controls, begun: String::new(), numbers: None }
    }

    /// Who answers.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What was said.
    pub fn conversation(&self) -> &Conversation {
        &self.conversation
    }

    /// Follows a line: a command, or something to be answered.
    ///
    /// # Errors
    /// A command that cannot be followed, or as [`Session::ask`].
    pub fn line(&mut self, line: &str, interrupt: &Interrupt, out: &mut dyn Write) -> Result<Next, ChatError> {
        if let Some(part) = line.strip_suffix('\\') {
            self.begun.push_str(part);
            self.begun.push('\n');
            return Ok(Next::Listen);
        }
        let line = std::mem::take(&mut self.begun) + line;
        let nothing = || ChatError::Command("nothing was said yet".into());
        match Line::parse(&line)? {
            Line::Say(text) if text.is_empty() => {}
            Line::Say(text) => {
                self.ask(text, interrupt, out)?;
                return Ok(Next::Answered);
            }
            Line::Retry => {
                let text = self.conversation.take_back().ok_or_else(nothing)?;
                self.ask(text, interrupt, out)?;
                return Ok(Next::Answered);
            }
            Line::Edit(text) => {
                self.conversation.take_back().ok_or_else(nothing)?;
                self.ask(text, interrupt, out)?;
                return Ok(Next::Answered);
            }
            Line::Quit => return Ok(Next::Leave),
            Line::Help => tell(out, HELP)?,
            Line::System(None) => tell(out, self.conversation.system.as_deref().unwrap_or("(the model's own)"))?,
            Line::System(Some(text)) => self.conversation.system = Some(text).filter(|text| !text.is_empty()),
            Line::Clear => self.conversation.clear(),
            Line::Save(_) if self.conversation.is_empty() => return Err(nothing()),
            Line::Save(file) => self.save(&file, out)?,
        }
        Ok(Next::Listen)
    }

    fn save(&self, file: &Path, out: &mut dyn Write) -> Result<(), ChatError> {
        let failed = |e| ChatError::Command(format!("'{}' cannot be written: {e}", file.display()));
        self.conversation.append_to(file).map_err(failed)?;
        tell(out, &format!("added to {}", file.display()))
    }

    /// Asks, and writes the answer as it comes. What an interrupted answer has said stays said.
    ///
    /// # Errors
    /// No answer, or not all of it: then the conversation is as it was before.
    pub fn ask(&mut self, text: String, interrupt: &Interrupt, out: &mut dyn Write) -> Result<(), ChatError> {
        self.numbers = None;
        self.conversation.ask(text);
        interrupt.begin();
        let answer = self.answer(interrupt, out);
        interrupt.end();
        match answer {
            Ok(answer) if !answer.is_empty() || !interrupt.is_stopped() => self.conversation.answered(answer),
            // Stopped before its first word.
            Ok(_) => _ = self.conversation.take_back(),
            Err(error) => {
                self.conversation.take_back();
                return Err(error);
            }
        }
        Ok(())
    }

    fn answer(&mut self, interrupt: &Interrupt, out: &mut dyn Write) -> Result<String, ChatError> {
        let mut body = json!({
            "model": self.model,
            "messages": self.conversation.messages(),
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        for (name, value) in &self.sampling {
            body[name] = value.clone();
        }
        for tries in 1.. {
            match self.attempt(&body, interrupt, out) {
                Err(ChatError::Refused { retry_after: Some(wait), .. }) if tries < TRIES => {
                    if !waited(wait, interrupt) {
                        return Ok(String::new());
                    }
                }
                outcome => return outcome,
            }
        }
        unreachable!("the last try returns")
    }

    fn attempt(&mut self, body: &Value, interrupt: &Interrupt, out: &mut dyn Write) -> Result<String, ChatError> {
        let begun = Instant::now();
        let pieces = self.client.stream(body);
        let mut numbers = Numbers::default();
        let mut answer = String::new();
        let mut ending = None;
        while !interrupt.is_stopped() {
            match pieces.recv_timeout(TICK) {
                Ok(Piece::Text(text)) => {
                    numbers.pieces += 1;
                    numbers.last = Some(begun.elapsed());
                    numbers.first = numbers.first.or(numbers.last);
                    let shown = if self.controls { text.clone() } else { without_controls(&text) };
                    write!(out, "{shown}").and_then(|()| out.flush()).map_err(unwritten)?;
                    answer.push_str(&text);
                }
                Ok(Piece::Usage(usage)) => numbers.usage = Some(usage),
                Ok(Piece::Done) => break,
                Ok(Piece::Failed(error)) => {
                    ending = Some(error);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    ending = Some(ChatError::Broken("it was not read to its end".into()));
                    break;
                }
            }
        }
        if !answer.is_empty() && !answer.ends_with('\n') {
            tell(out, "")?;
        }
        self.numbers = (numbers.pieces > 0).then_some(numbers);
        ending.map_or(Ok(answer), Err)
    }

    /// The last answer's numbers, in words.
    pub fn numbers(&self) -> Option<String> {
        let Numbers { usage, pieces, first, last } = self.numbers.as_ref()?;
        let count = |path: &str| usage.as_ref().and_then(|usage| usage.pointer(path)).and_then(Value::as_u64);
        let tokens = count("/completion_tokens");
        let mut out = match tokens {
            Some(tokens) => vec![format!("{tokens} tokens")],
            // Without counts, a piece is a token or more.
            None => vec![format!("at least {pieces} tokens")],
        };
        let tokens = tokens.unwrap_or(*pieces);
        if let (Some(first), Some(last), 2..) = (first, last, tokens)
            && last > first
        {
            out.push(format!("{:.0} tokens/s", (tokens - 1) as f64 / (*last - *first).as_secs_f64()));
        }
        if let Some(first) = first {
            out.push(format!("first after {} ms", first.as_millis()));
        }
        if let Some(prompt) = count("/prompt_tokens") {
            let cached = count("/prompt_tokens_details/cached_tokens").unwrap_or(0);
            out.push(format!("prompt {prompt}, {cached} cached"));
        }
        Some(out.join(" · "))
    }
}

fn unwritten(error: std::io::Error) -> ChatError {
    ChatError::Output(error.to_string())
}

fn tell(out: &mut dyn Write, text: &str) -> Result<(), ChatError> {
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(unwritten)
}

/// Waits as the server asks; false if the user does not want to.
fn waited(wait: Duration, interrupt: &Interrupt) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < wait && !interrupt.is_stopped() {
        std::thread::sleep(TICK.min(wait));
    }
    !interrupt.is_stopped()
}

fn without_controls(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        let parse = |line: &str| Line::parse(line);
        assert_eq!(parse(" hello /help "), Ok(Line::Say("hello /help".into())));
        assert_eq!(parse("/help"), Ok(Line::Help));
        assert_eq!(parse("/exit"), Ok(Line::Quit));
        assert_eq!(parse("/system"), Ok(Line::System(None)));
        assert_eq!(parse("/system -"), Ok(Line::System(Some(String::new()))));
        assert_eq!(parse("/system  Be brief. "), Ok(Line::System(Some("Be brief.".into()))));
        assert_eq!(parse("/save my chats.jsonl"), Ok(Line::Save("my chats.jsonl".into())));
        assert_eq!(parse("/edit  Hi. "), Ok(Line::Edit("Hi.".into())));
        for (line, word) in
            [("/save", "wants"), ("/edit", "wants"), ("/retry now", "nothing else"), ("/nope", "'/nope'"), ("/", "'/'")]
        {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn words_do_not_move_the_cursor() {
        assert_eq!(without_controls("a\x1b[2Jb\r\u{9b}c\td\ne\u{7}ö"), "a[2Jbc\td\neö");
    }
}
