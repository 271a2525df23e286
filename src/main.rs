//! `lima`: parses the command line, sets up logs, and hands over to the library.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lima::config::{DEFAULT_MODEL, LogFormat, Options, arguments, one_line};
use lima::{chat, eval, plan};
use tracing_subscriber::EnvFilter;

/// Serves LLaMA models over the OpenAI API.
#[derive(Parser)]
#[command(name = "lima", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model (the default)
    Serve(Box<Options>),
    /// Talk to a model in the terminal, on this or any server of OpenAI's API
    Chat(Box<chat::Options>),
    /// Find out whether a model answers better: answers, judges, statistics, reports
    Eval(Box<eval::Options>),
    /// Ask a server whether it is ready; the exit code tells
    Health {
        /// Address of the server [default: http://127.0.0.1 and the port of LIMA_PORT, or 8000]
        #[arg(long)]
        url: Option<String>,
        #[arg(long, env = "LIMA_PORT", default_value_t = 8000, hide = true)]
        port: u16,
    },
    /// Work out what serving a model would take and reach at most: memory, sequences, speed
    Plan(plan::Options),
    /// Print the description of the API, as OpenAPI
    Openapi,
    /// Fetch a model into the cache without serving it
    Pull {
        /// As for --model
        #[arg(env = "LIMA_MODEL", default_value = DEFAULT_MODEL)]
        model: String,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments(std::env::args_os())) {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => return usage(&one_line(&e)),
    };
    let options = match cli.command {
        Some(Command::Pull { model }) => {
            logs(LogFormat::Text);
            return outcome(lima::serve::pull(&model));
        }
        Some(Command::Plan(options)) => {
            return outcome(options.plans().and_then(|plans| Ok(write!(std::io::stdout().lock(), "{plans}")?)));
        }
        Some(Command::Openapi) => {
            let yaml = lima::http::openapi::yaml();
            return outcome(std::io::stdout().write_all(yaml.as_bytes()).map_err(Into::into));
        }
        Some(Command::Chat(options)) => {
            return chat::run(&options).unwrap_or_else(|e| outcome(Err(e)));
        }
        Some(Command::Eval(options)) => return outcome(eval::run(&options).map_err(Into::into)),
        Some(Command::Health { url, port }) => {
            return outcome(lima::serve::health(&url.unwrap_or_else(|| format!("http://127.0.0.1:{port}"))));
        }
        Some(Command::Serve(options)) => *options,
        None => cli.options,
    };
    let config = match options.resolve() {
        Ok(config) => config,
        Err(e) => return usage(&e.to_string()),
    };
    logs(config.network.log_format);
    match lima::serve::secrets(&config) {
        Ok(secrets) => outcome(lima::serve::run(config, secrets)),
        Err(reason) => usage(&reason),
    }
}

/// From here on logs go to standard error.
fn logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LIMA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().with_current_span(true).with_span_list(false).init(),
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("lima: {message}");
    ExitCode::from(2)
}

fn outcome(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lima: {e:#}");
            ExitCode::FAILURE
        }
    }
}
