//! `train`: fine-tunes a LLaMA by LIMA's recipe, and looks at data before.

mod dry;
mod flags;
mod inspect;
mod nodes;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lima::config::one_line;
use lima::parallel::{Pulse, Ranks};
use lima::train::signals::{self, stop_flag};
use lima::train::{Outcome, Prepared, abort, train, train_on};

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
    let (world, timeout) = (flags.world()?, flags.join_timeout());
    let (options, choices) = flags.take(world.as_ref())?;
    let is_first = world.as_ref().is_none_or(|world| world.rank == 0);
    let stop = stop_flag(move || {
        if is_first {
            eprintln!("train: stopping after this step; once more stops at once");
        }
    })?;
    // Others are met before anything takes long, so that they hear what goes wrong here.
    let ranks = world.map(|world| Ranks::join(&world, options.layout, timeout, Pulse::default())).transpose()?;
    let prepared = Prepared::new(&options, &choices);
    let prepared = prepared.inspect_err(|error| abort(ranks.as_deref().unwrap_or_default(), &error.to_string()))?;
    if is_first {
        // That nobody reads it is no reason not to train.
        let _ = show(&prepared);
    }
    let ended = match ranks {
        Some(ranks) => train_on(&prepared, &options, &stop, ranks),
        None => train(&prepared, &options, &stop),
    };
    Ok(match ended? {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Interrupted { step } => {
            if !options.progress && is_first {
                eprintln!("train: stopped after step {step}; the same command goes on from there");
            }
            ExitCode::from(signals::INTERRUPTED)
        }
    })
}
