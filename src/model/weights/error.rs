//! Why a model could not be loaded.

use std::io;
use std::path::{Path, PathBuf};

/// One line, naming the file and the tensor or field.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is damaged, contradictory, or of a kind that is not supported.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        what: String,
    },
}

impl LoadError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: &Path, what: impl ToString) -> Self {
        Self::File { path: path.to_owned(), what: what.to_string() }
    }
}

/// Why bytes are not the format they should be; the caller knows the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub(crate) String);

/// A name from a file as it may be shown: quoted, escaped, cut short.
pub(crate) fn shown(name: &str) -> String {
    const MOST: usize = 64;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// Another library's words as they may be shown: one line, cut short.
pub(crate) fn brief(error: &impl std::fmt::Display) -> String {
    const MOST: usize = 200;
    let text = error.to_string();
    let mut out: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}
