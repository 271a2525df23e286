//! Examples shown on a terminal.

use std::fmt::Write;

use super::render::{Example, Renderer};

/// How supervised tokens are told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Green, the others dim; special tokens are underlined.
    Colour,
    /// Between ⟦ and ⟧.
    Plain,
}

const SUPERVISED: &str = "\x1b[32m";
const OTHER: &str = "\x1b[2m";
const SPECIAL: &str = "\x1b[4m";
const RESET: &str = "\x1b[0m";

/// Text that does nothing to a terminal: control characters other than tab and line feed are shown as U+FFFD.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\t' | '\n') { '\u{FFFD}' } else { c }).collect()
}

/// An example's text, special tokens included, as the model sees it.
pub fn show(renderer: &Renderer, example: &Example, style: Style) -> String {
    let tokenizer = renderer.prompts().tokenizer();
    let mut out = String::new();
    let mut at = 0;
    while at < example.ids.len() {
        let kind = |i: usize| (example.supervised[i], tokenizer.is_special(example.ids[i]));
        let end = (at..example.ids.len()).find(|&i| kind(i) != kind(at)).unwrap_or(example.ids.len());
        let (supervised, special) = kind(at);
        let run = &example.ids[at..end];
        let text = match special {
            true => run.iter().filter_map(|&id| tokenizer.token_str(id)).collect(),
            false => {
                let bytes: Vec<u8> = run.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
                plain(&String::from_utf8_lossy(&bytes))
            }
        };
        match style {
            Style::Colour => {
                out.push_str(if supervised { SUPERVISED } else { OTHER });
                out.push_str(if special { SPECIAL } else { "" });
                out.push_str(&text);
                out.push_str(RESET);
            }
            Style::Plain => {
                let was = at > 0 && example.supervised[at - 1];
                let goes_on = end < example.ids.len() && example.supervised[end];
                out.push_str(if supervised && !was { "⟦" } else { "" });
                out.push_str(&text);
                out.push_str(if supervised && !goes_on { "⟧" } else { "" });
            }
        }
        at = end;
    }
    if example.trimmed > 0 {
        let _ = write!(out, "\n… {} tokens more are cut off", example.trimmed);
    }
    out
}

/// An example's ids, sixteen on a line; supervised ones are coloured, or have a star.
pub fn show_ids(example: &Example, style: Style) -> String {
    let mut out = String::new();
    for (i, (id, supervised)) in example.ids.iter().zip(&example.supervised).enumerate() {
        out.push_str(if i == 0 {
            ""
        } else if i % 16 == 0 {
            "\n"
        } else {
            " "
        });
        let _ = match (style, supervised) {
            (Style::Colour, true) => write!(out, "{SUPERVISED}{id}{RESET}"),
            (Style::Plain, true) => write!(out, "{id}*"),
            (_, false) => write!(out, "{id}"),
        };
    }
    out
}
