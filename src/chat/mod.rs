//! `lima chat`: a conversation in the terminal, with any server that speaks OpenAI's API.

mod client;
mod conversation;
pub mod events;
mod interrupt;
mod session;

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

pub use self::client::{ChatError, Client};
pub use self::conversation::Conversation;
pub use self::interrupt::Interrupt;
pub use self::session::{Next, Session};

/// After Ctrl-C, as shells count it.
const INTERRUPTED: u8 = 130;

/// Flags of `lima chat`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Address of the server's API
    #[arg(long, env = "LIMA_URL", default_value = "http://127.0.0.1:8000/v1")]
    pub url: String,
    /// Key that the server wants
    #[arg(long, env = "LIMA_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Model to talk to [default: the first that the server names]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Sampling temperature; 0 is greedy [default: the server's]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Sample from the smallest set of tokens with this much probability [default: the server's]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Sample from so many tokens [default: the server's]
    #[arg(long, value_name = "N")]
    pub top_k: Option<i64>,
    /// Penalty on tokens that were there already [default: the server's]
    #[arg(long, value_name = "FACTOR")]
    pub repetition_penalty: Option<f64>,
    /// Longest answer, tokens [default: the server's]
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u64>,
    /// Seed of the sampling [default: the server's]
    #[arg(long)]
    pub seed: Option<i64>,
}

impl Options {
    /// What is set, as the API names it.
    fn sampling(&self) -> Map<String, Value> {
        let set = json!({
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        });
        let Value::Object(set) = set else { unreachable!("an object was written") };
        set.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    /// A conversation with the server that was named.
    ///
    /// # Errors
    /// An address that is none; a server that cannot be asked for its models.
    pub fn session(&self) -> Result<Session, ChatError> {
        let client = Client::new(&self.url, self.api_key.as_deref())?;
        let model = match &self.model {
            Some(model) => model.clone(),
            None => client.first_model()?,
        };
        // A model's words must not move a terminal's cursor or set its title.
        let controls = !io::stdout().is_terminal();
        Ok(Session::new(client, model, self.system.clone(), self.sampling(), controls))
    }
}

/// Talks until the user leaves; off a terminal, answers once what comes by standard input.
///
/// # Errors
/// One sentence: no server, a request it refuses, an answer that breaks off, a terminal that cannot be used.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    if io::stdin().is_terminal() { talk(options, &interrupt) } else { answer_once(options, &interrupt) }
}

fn answer_once(options: &Options, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let mut question = String::new();
    io::stdin().read_to_string(&mut question).context("standard input cannot be read")?;
    if question.trim().is_empty() {
        bail!("standard input is empty: there is nothing to answer");
    }
    let mut session = options.session()?;
    session.ask(question.trim().to_owned(), interrupt, &mut io::stdout())?;
    if io::stderr().is_terminal()
        && let Some(numbers) = session.numbers()
    {
        eprintln!("{}", dim(&numbers, true));
    }
    Ok(if interrupt.is_stopped() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn talk(options: &Options, interrupt: &Interrupt) -> anyhow::Result<ExitCode> {
    let mut session = options.session()?;
    let colours = io::stdout().is_terminal();
    let mut out = io::stdout();
    writeln!(out, "{}", dim(&format!("{} · /help tells the commands, Ctrl-D leaves", session.model()), colours))?;
    loop {
        write!(out, "> ")?;
        out.flush()?;
        let mut line = String::new();
        if io::stdin().read_line(&mut line).context("the terminal cannot be read")? == 0 {
            writeln!(out)?;
            return Ok(ExitCode::SUCCESS);
        }
        match session.line(line.trim_end_matches(['\n', '\r']), interrupt, &mut out) {
            Ok(Next::Leave) => return Ok(ExitCode::SUCCESS),
            Ok(Next::Answered) => {
                if let Some(numbers) = session.numbers() {
                    writeln!(out, "{}\n", dim(&numbers, colours))?;
                }
            }
            Ok(Next::Listen) => {}
            // The conversation is as it was before the question, which can be asked again.
            Err(e) => eprintln!("lima: {e}"),
        }
    }
}

fn dim(text: &str, colours: bool) -> String {
    if colours { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}
