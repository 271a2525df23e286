//! `train`: fine-tunes a LLaMA by LIMA's recipe, and looks at data before.

mod dry;
mod flags;
mod inspect;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lima::config::one_line;
use lima::train::signals::{self, stop_flag};
use lima::train::{Outcome, Prepared};

/// Fine-tunes a LLaMA by LIMA's recipe. What comes out is served by `lima --model DIR/epoch-15`.
#[derive(Parser)]
#[command(name = "train", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: flags::Run,
}

#[derive(Subcommand)]
enum Command {
    /// Validate a data set, count its tokens, and show examples as the model would see them
    Inspect(inspect::Inspect),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => {
            eprintln!("train: {}", one_line(&e));
            return ExitCode::from(2);
        }
    };
    let ended = match cli.command {
        Some(Command::Inspect(options)) => inspect::inspect(&options).map(|()| ExitCode::SUCCESS),
        None if cli.run.dry.dry_run => plan(cli.run),
        None => run(cli.run),
    };
    match ended {
        Ok(code) => code,
        // A reader that has seen enough, such as `head`, is no failure.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(e) => {
            // Errors of the library are whole sentences; their sources are in them.
            eprintln!("train: {e}");
            ExitCode::FAILURE
        }
    }
}

fn show(prepared: &Prepared) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", prepared.report)?;
    for (name, value) in &prepared.record {
        writeln!(out, "{name:<20}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    }
    out.flush()
}

fn plan(flags: flags::Run) -> anyhow::Result<ExitCode> {
    let plan = flags.plan()?;
    let mut out = std::io::stdout().lock();
    write!(out, "{plan}")?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn run(flags: flags::Run) -> anyhow::Result<ExitCode> {
    let (options, choices) = flags.take()?;
    let stop = stop_flag(|| eprintln!("train: stopping after this step; once more stops at once"))?;
    let prepared = Prepared::new(&options, &choices)?;
    // That nobody reads it is no reason not to train.
    let _ = show(&prepared);
    Ok(match lima::train::train(&prepared, &options, &stop)? {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Interrupted { step } => {
            if !options.progress {
                eprintln!("train: stopped after step {step}; the same command goes on from there");
            }
            ExitCode::from(signals::INTERRUPTED)
        }
    })
}
