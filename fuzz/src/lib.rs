//! What the targets share: a directory in memory, reading everything a checkpoint has, and a server.

pub mod server;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use lima::model::weights::Checkpoint;

/// A directory of this process alone, in memory where the system has such a place, with `files` and nothing else.
/// The same path each time.
pub fn directory(files: &[(&str, &[u8])]) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = base.join(format!("lima-fuzz-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("the directory can be made");
    for entry in fs::read_dir(&dir).expect("the directory can be read").flatten() {
        // Removed, not cut short: an old map of it stays whole.
        fs::remove_file(entry.path()).expect("files can be removed");
    }
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).expect("files can be written");
    }
    dir
}

/// Opens a checkpoint and reads every number in it. A refusal must be one line that names a file.
pub fn open(path: &Path) {
    match Checkpoint::open(path) {
        Ok(checkpoint) => {
            let names: Vec<&str> = checkpoint.names().collect();
            for name in names {
                let view = checkpoint.tensor(name).expect("a named tensor is there");
                assert_eq!(view.to_f32().len(), view.rows * view.cols);
            }
        }
        Err(e) => {
            one_line(&e);
            let message = e.to_string();
            assert!(message.starts_with('/'), "no file: {message}");
        }
    }
}

/// Errors are shown to users: one line, not too long, without control characters.
pub fn one_line(error: &impl std::fmt::Display) {
    let message = error.to_string();
    assert!(!message.is_empty() && message.len() < 2000 && !message.contains(char::is_control), "{message:?}");
}

/// The fuzzer ends the process at any panic. Those of the crate `tokenizers` that our code catches, and turns into
/// an error, are no findings; one that comes through to here is, and is shown.
pub fn with_caught_panics(run: impl FnOnce()) {
    static ONCE: Once = Once::new();
    static LAST: Mutex<String> = Mutex::new(String::new());
    ONCE.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_some_and(|l| l.file().contains("/tokenizers-")) {
                *LAST.lock().expect("nothing panics while it is held") = info.to_string();
            } else {
                abort(info);
            }
        }));
    });
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        eprintln!("not caught: {}", LAST.lock().expect("nothing panics while it is held"));
        std::process::abort();
    }
}
