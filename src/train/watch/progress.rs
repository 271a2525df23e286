//! Progress on standard error: a bar on a terminal, else lines.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::history::Step;
use crate::units::{bytes, count, duration, number};

/// At most one line of a step in this time, where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

/// Shows where a run is.
pub struct Progress {
    /// On a terminal.
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Option<Instant>,
    resumed_at: u64,
    steps: u64,
    epochs: u32,
}

impl Progress {
    /// Of a run of `steps` steps, of which `resumed_at` are done.
    pub fn new(steps: u64, epochs: u32, resumed_at: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}").expect("the template is valid");
            let bar = ProgressBar::new(steps).with_style(style.progress_chars("=> "));
            bar.set_position(resumed_at);
            bar
        });
        Self { bar, started: Instant::now(), last_line: None, resumed_at, steps, epochs }
    }

    /// After a step.
    pub fn step(&mut self, step: &Step) {
        let done = step.report.step.saturating_sub(self.resumed_at).max(1);
        // By the clock, so that what lies between steps (validation, checkpoints, answers) counts.
        let each = self.started.elapsed().as_secs_f64() / done as f64;
        let left = Duration::try_from_secs_f64(each * self.steps.saturating_sub(step.report.step) as f64);
        let text = describe(step, self.epochs, left.unwrap_or(Duration::MAX));
        match &self.bar {
            Some(bar) => {
                bar.set_position(step.report.step);
                bar.set_message(text);
            }
            None => {
                let due = self.last_line.is_none_or(|at| at.elapsed() >= BETWEEN_LINES);
                if due || step.report.step == self.steps {
                    self.last_line = Some(Instant::now());
                    line(&format!("step {}/{} {text}", step.report.step, self.steps));
                }
            }
        }
    }

    /// Says something between steps.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => line(text),
        }
    }

    /// Nothing follows.
    pub fn end(&mut self, reason: &str) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
        line(reason);
    }
}

/// Progress that nobody can read is no reason to end.
fn line(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// A step in words. Utilisation is left out where the peak is unknown.
fn describe(step: &Step, epochs: u32, left: Duration) -> String {
    let r = &step.report;
    let mut text = format!(
        "epoch {}/{epochs} loss {:.4} lr {:.2e} {} tok/s MFU {:.0} % left {}",
        r.epoch,
        r.loss,
        r.lr,
        match step.tokens_per_second {
            rate if rate < 1000.0 => number(rate),
            rate => count(rate as u64),
        },
        step.mfu * 100.0,
        duration(left),
    );
    if let Some(resident) = r.memory.resident {
        text += &format!(" memory {}", bytes(resident));
    }
    if let Some(peak) = r.memory.peak {
        text += &format!(" (peak {})", bytes(peak));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::events::{Memory, StepReport};

    #[test]
    fn a_step_in_words() {
        let report = StepReport {
            step: 12,
            epoch: 2,
            loss: 2.34567,
            lr: 9.5e-6,
            grad_norm: 1.0,
            tokens: 800,
            supervised: 700,
            pairs: 0,
            seconds: 1.0,
            memory: Memory { resident: Some(3 << 29), peak: Some(2 << 30) },
        };
        let step = Step { report, tokens_per_second: 1234.5, mfu: 0.414 };
        assert_eq!(
            describe(&step, 15, Duration::from_secs(125)),
            "epoch 2/15 loss 2.3457 lr 9.50e-6 1,234 tok/s MFU 41 % left 2 min 05 s memory 1.50 GiB (peak 2.00 GiB)"
        );
    }
}
