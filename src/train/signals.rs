//! Signals that ask a run to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// The status with which an interrupted run ends: that of a program that SIGINT ended.
pub const INTERRUPTED: u8 = 130;

/// A flag that SIGINT or SIGTERM sets; `said` is called then. A second signal ends the process at once, which loses
/// nothing but what was computed after the last state.
///
/// # Errors
/// The system gives no thread or no signal handler.
pub fn stop_flag(said: impl FnOnce() + Send + 'static) -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let flag = Arc::clone(&stop);
    let wait = async move {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        flag.store(true, Ordering::SeqCst);
        said();
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        std::process::exit(INTERRUPTED.into());
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
    Ok(stop)
}
