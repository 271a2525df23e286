//! Ctrl-C: the first one stops an answer, any other one leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Whether an answer is being written, and whether it is to stop.
#[derive(Debug, Default)]
pub struct Interrupt {
    answering: AtomicBool,
    stopped: AtomicBool,
}

impl Interrupt {
    /// Listens for SIGINT from now on.
    ///
    /// # Errors
    /// A system that gives no signals.
    pub fn listen() -> anyhow::Result<Arc<Self>> {
        let this = Arc::new(Self::default());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot listen for signals")?;
        let mut signals = {
            let _inside = runtime.enter();
            signal(SignalKind::interrupt()).context("cannot listen for signals")?
        };
        let listener = Arc::clone(&this);
        std::thread::spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    if !listener.stop() {
                        std::process::exit(i32::from(super::INTERRUPTED));
                    }
                }
            });
        });
        Ok(this)
    }

    /// An answer begins.
    pub fn begin(&self) {
        self.stopped.store(false, SeqCst);
        self.answering.store(true, SeqCst);
    }

    /// It has ended, one way or another.
    pub fn end(&self) {
        self.answering.store(false, SeqCst);
    }

    /// Stops the answer; false if there is none, or if it was stopped before.
    pub fn stop(&self) -> bool {
        self.answering.load(SeqCst) && !self.stopped.swap(true, SeqCst)
    }

    /// Whether the last answer was stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stops_and_the_second_leaves() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.stop() && !interrupt.is_stopped());
        interrupt.begin();
        assert!(interrupt.stop() && interrupt.is_stopped());
        assert!(!interrupt.stop());
        interrupt.end();
        assert!(interrupt.is_stopped());
        interrupt.begin();
        assert!(!interrupt.is_stopped() && interrupt.stop());
    }
}
