//! Where a run is seen: the terminal, `metrics.jsonl`, TensorBoard's event files, `report.html`.
//!
//! `metrics.jsonl` is the record; what the others show is made of it, or of what is appended to it, so a run that is
//! resumed shows all of its past.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

mod chart;
pub mod flops;
pub mod history;
pub mod metrics;
mod page;
mod progress;
mod proto;
pub mod tfevents;
mod watchers;

pub use page::page;
pub use watchers::Watchers;

/// How a run is watched.
#[derive(Clone, Debug)]
pub struct Options {
    /// The run's directory, which exists.
    pub out: PathBuf,
    /// Threads that compute, for the machine's peak.
    pub threads: usize,
    /// Floating-point operations a second that utilisation is measured against; `None`: this machine's, measured.
    pub peak_flops: Option<f64>,
    /// Whether progress is shown on standard error.
    pub progress: bool,
}

/// The error with the file it is about.
fn about(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Replaces a file by another as a whole: whoever reads sees the old one or the new one, also after a crash.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let other = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&other)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&other, path)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|e| {
        // What is left of it is of no use.
        let _ = fs::remove_file(&other);
        about(path, e)
    })
}
