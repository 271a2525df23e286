//! A server of this machine's own, for as long as it is needed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::EvalError;
use super::store::digest;
use crate::chat::{ChatError, Client};

/// Between two looks at a server that loads.
const TICK: Duration = Duration::from_millis(50);

/// The server's end follows from ours, however we end: the shell waits for the end of a pipe that only we hold.
const SHELL: &str = "\"$@\" & exec >&-; cat >/dev/null; kill $! 2>/dev/null; wait $!";

/// Variables that the server takes over: where models are, how much of the machine to use, what to log.
const KEPT: [&str; 5] = ["LIMA_CACHE", "LIMA_PYTHON", "LIMA_CPU_LEVEL", "LIMA_THREADS", "LIMA_LOG"];

/// `lima serve` on a free port; it ends when this is dropped.
pub struct Local {
    child: Child,
    /// Knows where it is.
    pub client: Client,
    /// The name it has for its model.
    pub model: String,
}

impl Local {
    /// Serves a model, whatever `--model` takes, and waits until it is ready. What it logs goes to a file.
    ///
    /// # Errors
    /// It ended, for the reason that the log's last line tells.
    pub fn start(program: &Path, model: &str, log: &Path) -> Result<Self, EvalError> {
        let file = File::create(log).map_err(EvalError::at(log))?;
        let mut command = Command::new("sh");
        command.args(["-c", SHELL, "sh"]).arg(program).args(["serve", "--model", model]);
        command.args(["--host", "127.0.0.1", "--port", "0", "--drain-timeout", "1"]);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("LIMA_") && !KEPT.contains(&name)) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(EvalError::at(program))?;
        let failed = || {
            let said = fs::read_to_string(log).unwrap_or_default();
            let last =
                said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why").to_owned();
            EvalError::Usage(format!("the model '{model}' is not served: {last}"))
        };
        let mut stdout = child.stdout.take().map(BufReader::new).ok_or_else(failed)?;
        let mut line = String::new();
        let read = stdout.read_line(&mut line);
        let Some(url) = read.ok().and_then(|_| line.trim().strip_prefix("listening on ")) else {
            drop(child.stdin.take());
            let _ = child.wait();
            return Err(failed());
        };
        // Its end is the end of its standard output, which only it has open.
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut stdout, &mut std::io::sink());
            seen.store(true, Ordering::Relaxed);
        });
        let client = Client::new(url, None)?;
        let mut local = Self { child, client, model: String::new() };
        loop {
            match local.client.first_model() {
                Ok(name) => {
                    local.model = name;
                    return Ok(local);
                }
                Err(ChatError::Refused { status: 503, .. } | ChatError::Unreachable { .. })
                    if !ended.load(Ordering::Relaxed) =>
                {
                    std::thread::sleep(TICK);
                }
                Err(_) if ended.load(Ordering::Relaxed) => return Err(failed()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The program that is running, which also serves.
///
/// # Errors
/// The system does not tell.
pub fn this_program() -> Result<PathBuf, EvalError> {
    std::env::current_exe().map_err(|e| EvalError::Usage(format!("this program's own file cannot be found: {e}")))
}

/// What a model on this machine is, for the key of a call: its path, and a digest of its files' names, sizes and times.
/// A name that is no path stands for itself.
pub fn identity(model: &str) -> String {
    let Ok(path) = Path::new(model).canonicalize() else { return model.to_owned() };
    let mut files: Vec<PathBuf> = match fs::read_dir(&path) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|file| file.is_file()).collect(),
        Err(_) => vec![path.clone()],
    };
    files.sort();
    let about = |file: &PathBuf| {
        let meta = file.metadata().ok()?;
        let time = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(format!("{} {} {}\n", file.display(), meta.len(), time.as_nanos()))
    };
    let listing: String = files.iter().filter_map(about).collect();
    format!("{}#{}", path.display(), &digest(listing.as_bytes())[..16])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_changed_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        let name = dir.path().to_str().unwrap();
        let before = identity(name);
        assert_eq!(before, identity(name));
        fs::write(dir.path().join("a"), "22").unwrap();
        assert_ne!(before, identity(name));
        assert_eq!(identity("smollm2-135m-instruct"), "smollm2-135m-instruct");
    }

    #[test]
    fn a_server_that_ends_tells_why() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let program = dir.path().join("server");
        fs::write(&program, "#!/bin/sh\necho broken >&2\n").unwrap();
        Command::new("chmod").arg("+x").arg(&program).status().unwrap();
        let error = Local::start(&program, "m", &log).err().unwrap().to_string();
        assert_eq!(error, "the model 'm' is not served: broken");
    }
}
