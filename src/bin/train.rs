//! `train`: looks at the data that a model is to be trained on.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use lima::train::inspect::{Style, show, show_ids};
use lima::train::{Base, Dataset, Renderer, Report, Template, render};

/// Prepares training data for LLaMA models.
#[derive(Parser)]
#[command(name = "train", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Validate a data set, count its tokens, and show examples as the model would see them
    Inspect(Inspect),
}

#[derive(clap::Args)]
struct Inspect {
    /// Conversations: LIMA's jsonl, OpenAI's `messages`, ShareGPT or alpaca, as jsonl or as one JSON array
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The model whose tokenizer is used: whatever `lima --model` takes
    #[arg(long, value_name = "MODEL")]
    base: String,
    /// How conversations are written
    #[arg(long, value_enum, default_value_t = TemplateName::Lima)]
    template: TemplateName,
    /// Tokens beyond which a row is cut
    #[arg(long, value_name = "N", default_value_t = render::MAX_TOKENS, value_parser = at_least_two)]
    max_tokens: usize,
    /// Examples to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3)]
    examples: usize,
    /// The first row to show, counted from 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: usize,
    /// Show token ids below each example
    #[arg(long)]
    ids: bool,
    /// Colour supervised tokens, or put them between ⟦ and ⟧
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    color: Colour,
}

#[derive(Clone, Copy, ValueEnum)]
enum TemplateName {
    /// BOS, then each message followed by a new end-of-turn token
    Lima,
    /// The base's own chat template and end-of-turn token
    Base,
}

#[derive(Clone, Copy, ValueEnum)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Colour {
    fn style(self) -> Style {
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        match self {
            Self::Always => Style::Colour,
            Self::Auto if std::io::stdout().is_terminal() && !asked_not_to => Style::Colour,
            Self::Auto | Self::Never => Style::Plain,
        }
    }
}

fn at_least_two(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 2..) => Ok(n),
        _ => Err("a whole number of at least 2 is needed".into()),
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => e.exit(),
        Err(e) => {
            // clap's first paragraph, on one line.
            let text = e.to_string();
            let line: Vec<_> = text.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
            eprintln!("train: {}", line.join(" ").trim_start_matches("error: "));
            return ExitCode::from(2);
        }
    };
    let Command::Inspect(options) = cli.command;
    match inspect(&options) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough, such as `head`, is no failure.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("train: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn inspect(options: &Inspect) -> anyhow::Result<()> {
    let data = Dataset::read(&options.data)?;
    let base = Base::open(&options.base)?;
    let template = match options.template {
        TemplateName::Lima => Template::Lima,
        TemplateName::Base => Template::Base,
    };
    let renderer = Renderer::new(&base, template)?;
    let examples = data
        .conversations
        .iter()
        .map(|conversation| renderer.example(conversation, options.max_tokens))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| anyhow::anyhow!("{}: {e}", options.data.display()))?;

    let mut out = std::io::stdout().lock();
    write!(out, "{}", Report::new(&data, &examples, options.max_tokens))?;
    let style = options.color.style();
    let rows = data.conversations.iter().zip(&examples).enumerate();
    for (i, (conversation, example)) in rows.skip(options.from.saturating_sub(1)).take(options.examples) {
        let (tokens, supervised) = (example.ids.len(), example.supervised_tokens());
        let line = conversation.line;
        writeln!(out, "\n── row {}, line {line}: {tokens} tokens, {supervised} supervised", i + 1)?;
        writeln!(out, "{}", show(&renderer, example, style))?;
        if options.ids {
            writeln!(out, "{}", show_ids(example, style))?;
        }
    }
    out.flush()?;
    Ok(())
}
