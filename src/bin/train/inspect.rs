//! `train inspect`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use lima::train::inspect::{Style, show, show_ids};
use lima::train::{Base, Dataset, Renderer, Report, render};

use super::flags::TemplateName;

#[derive(clap::Args)]
pub struct Inspect {
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

/// Validates, counts, shows.
pub fn inspect(options: &Inspect) -> anyhow::Result<()> {
    let data = Dataset::read(&options.data)?;
    let base = Base::open(&options.base)?;
    let renderer = Renderer::new(&base, options.template.into())?;
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
