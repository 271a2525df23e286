//! `metrics.jsonl`: one JSON object a line, for each thing that happened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{about, replace};
use crate::train::events::{Answer, StepReport, number};

/// Its name in a run's directory.
pub const FILE: &str = "metrics.jsonl";

/// A line. `time` is in seconds since 1970, and `step` counts steps done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // The fields are those of the events.
pub enum Line {
    /// A process took up the run after `step`.
    Begin {
        time: f64,
        step: u64,
        base: String,
        recipe: Map<String, Value>,
        parameters: u64,
        trained: u64,
        steps: u64,
        epochs: u32,
        supervised_tokens_per_epoch: u64,
        /// Floating-point operations a second that `mfu` is measured against.
        peak_flops: f64,
        /// Where that number is from.
        peak_source: String,
    },
    /// A step, and what follows from its report.
    Step {
        time: f64,
        #[serde(flatten)]
        report: StepReport,
        tokens_per_second: f64,
        /// Model FLOPs of the step.
        flops: f64,
        /// Model FLOPs utilisation, 1 being the peak.
        mfu: f64,
    },
    Validation {
        time: f64,
        step: u64,
        epoch: u32,
        #[serde(deserialize_with = "number")]
        nll: f64,
        #[serde(deserialize_with = "number")]
        perplexity: f64,
    },
    Checkpoint {
        time: f64,
        step: u64,
        epoch: u32,
        path: String,
    },
    Samples {
        time: f64,
        step: u64,
        epoch: u32,
        answers: Vec<Answer>,
    },
    End {
        time: f64,
        step: u64,
        reason: String,
    },
}

impl Line {
    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Begin { step, .. }
            | Self::Validation { step, .. }
            | Self::Checkpoint { step, .. }
            | Self::Samples { step, .. }
            | Self::End { step, .. } => *step,
            Self::Step { report, .. } => report.step,
        }
    }
}

/// The file, open for more.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Cuts the file of a run back to what happened up to `step`, and opens it; returns the lines that stay. At step 0 a
    /// run begins anew, with an empty file. A last line that was never finished goes too.
    ///
    /// # Errors
    /// It cannot be written, or another line of it is not one of a run's: that file is left as it is.
    pub fn open(out: &Path, step: u64) -> io::Result<(Self, Vec<Line>)> {
        let path = out.join(FILE);
        let old = match fs::read_to_string(&path) {
            Ok(text) if step > 0 => text,
            Ok(_) => String::new(),
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(about(&path, e)),
        };
        let (mut lines, mut kept) = (Vec::new(), String::new());
        for (i, text) in old.split_inclusive('\n').enumerate().filter(|(_, text)| text.ends_with('\n')) {
            let line: Line = serde_json::from_str(text).map_err(|e| {
                let message = format!("{}:{}: not a line of a run's metrics: {e}", path.display(), i + 1);
                io::Error::new(ErrorKind::InvalidData, message)
            })?;
            if line.step() <= step {
                kept.push_str(text);
                lines.push(line);
            }
        }
        // Replaced as a whole, so that a crash here leaves the old file or the new one.
        replace(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| about(&path, e))?;
        Ok((Self { path, file }, lines))
    }

    /// Adds a line, in one write.
    pub fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|e| about(&self.path, e))
    }
}
