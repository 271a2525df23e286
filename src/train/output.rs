//! The directory of a run.
//!
//! Invariant: what stands under its final name is complete. It was written under a name of its own that ends in `.tmp`,
//! synced and renamed, and whoever holds the lock may remove what has such a name.
//!
//! ```text
//! lock                             held (flock) by the one process at work
//! recipe.json                      what the run is made of
//! epoch-01/ …                      a model each
//! state/step-00000032.safetensors  the newest state; older ones are removed after it is in place
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

const TEMPORARY: &str = ".tmp";
const STATES: &str = "state";
const STATE_ENDS: &str = ".safetensors";

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Something in it cannot be written, moved or removed: no space, no permission.
    #[error("{} cannot be written: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Two runs would write over each other.
    #[error("{}: another process is training into it", .0.display())]
    Locked(PathBuf),
}

impl OutputError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// The directory, ours as long as this lives.
#[derive(Debug)]
pub struct Output {
    root: PathBuf,
    _lock: Option<File>,
}

impl Output {
    /// Makes the directory if need be, locks it, and removes what interrupted writes left.
    ///
    /// # Errors
    /// It cannot be written, or another process has it.
    pub fn open(root: &Path) -> Result<Self, OutputError> {
        let states = root.join(STATES);
        fs::create_dir_all(&states).map_err(OutputError::at(root))?;
        let path = root.join("lock");
        let lock = File::create(&path).map_err(OutputError::at(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OutputError::Locked(root.to_owned())),
            Err(TryLockError::Error(e)) => return Err(OutputError::at(&path)(e)),
        }
        remove_temporary(root)?;
        remove_temporary(&states)?;
        Ok(Self { root: root.to_owned(), _lock: Some(lock) })
    }

    /// The directory of a run that another process holds; here it is only read.
    pub fn beside(root: &Path) -> Self {
        Self { root: root.to_owned(), _lock: None }
    }

    /// Where the state after so many steps is.
    pub fn state_at(&self, step: u64) -> PathBuf {
        self.root.join(STATES).join(format!("step-{step:08}{STATE_ENDS}"))
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the model of an epoch (from 1) is or will be.
    pub fn epoch(&self, epoch: u32) -> PathBuf {
        self.root.join(format!("epoch-{epoch:02}"))
    }

    /// Epochs that have a model, ascending.
    pub fn epochs(&self) -> Vec<u32> {
        let number = |name: &str| name.strip_prefix("epoch-")?.parse::<u32>().ok();
        let mut all: Vec<u32> = names(&self.root).iter().filter_map(|name| number(name)).collect();
        all.sort_unstable();
        all
    }

    /// The newest state.
    pub fn state(&self) -> Option<PathBuf> {
        self.states().pop().map(|(_, path)| path)
    }

    /// Steps and paths of states, ascending. There are several only if a process ended between two moves.
    fn states(&self) -> Vec<(u64, PathBuf)> {
        let dir = self.root.join(STATES);
        let step = |name: &str| name.strip_prefix("step-")?.strip_suffix(STATE_ENDS)?.parse::<u64>().ok();
        let mut all: Vec<_> = names(&dir).iter().filter_map(|name| Some((step(name)?, dir.join(name)))).collect();
        all.sort_unstable();
        all
    }

    /// Lets `write` write the state after `step` steps, puts it in place, and removes those before.
    ///
    /// # Errors
    /// It cannot be written; those before are as they were.
    pub fn save_state(&self, step: u64, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf, OutputError> {
        let old = self.states();
        let path = self.state_at(step);
        publish(&path, write)?;
        for (_, old) in old.into_iter().filter(|(_, old)| *old != path) {
            fs::remove_file(&old).map_err(OutputError::at(&old))?;
        }
        Ok(path)
    }

    /// Lets `write` fill the directory of an epoch, and puts it in place.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_epoch(&self, epoch: u32, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf, OutputError> {
        let path = self.epoch(epoch);
        publish(&path, |dir| {
            fs::create_dir(dir)?;
            write(dir)?;
            sync(dir)
        })?;
        Ok(path)
    }

    /// Removes the models of all epochs but the last `keep`.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn retain(&self, keep: usize) -> Result<(), OutputError> {
        let epochs = self.epochs();
        for epoch in &epochs[..epochs.len().saturating_sub(keep)] {
            let path = self.epoch(*epoch);
            // Renamed first: half a model must not have a model's name.
            let gone = temporary(&path);
            fs::rename(&path, &gone).and_then(|()| fs::remove_dir_all(&gone)).map_err(OutputError::at(&path))?;
        }
        Ok(())
    }

    /// Writes `recipe.json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_record(&self, record: &Map<String, Value>) -> Result<(), OutputError> {
        let path = self.root.join("recipe.json");
        publish(&path, |path| {
            let mut json = serde_json::to_vec_pretty(record)?;
            json.push(b'\n');
            fs::write(path, json)?;
            File::open(path)?.sync_all()
        })
    }
}

/// Names in a directory; none if it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY);
    path.with_file_name(name)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn remove_temporary(dir: &Path) -> Result<(), OutputError> {
    for name in names(dir).iter().filter(|name| name.ends_with(TEMPORARY)) {
        let path = dir.join(name);
        remove(&path).map_err(OutputError::at(&path))?;
    }
    Ok(())
}

/// Lets `write` write and sync under another name, and renames.
fn publish(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), OutputError> {
    let unfinished = temporary(path);
    let done = write(&unfinished).and_then(|()| fs::rename(&unfinished, path));
    if let Err(source) = done {
        // Makes room again on a full disk. The next run tries once more.
        let _ = remove(&unfinished);
        return Err(OutputError::Io { path: path.to_owned(), source });
    }
    path.parent().map_or(Ok(()), sync).map_err(OutputError::at(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(text: &'static str) -> impl FnOnce(&Path) -> io::Result<()> {
        move |path| fs::write(path, text)
    }

    /// What stands in a directory, subdirectories with a slash.
    fn tree(root: &Path) -> Vec<String> {
        let mut all = names(root);
        for dir in names(root).iter().filter(|name| root.join(name).is_dir()) {
            all.extend(names(&root.join(dir)).into_iter().map(|name| format!("{dir}/{name}")));
        }
        all.sort();
        all
    }

    /// A kill leaves a temporary name, or a new state beside the old one. Each is put right.
    #[test]
    fn every_point_of_a_write_can_be_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let out = Output::open(&root).unwrap();
        assert_eq!((out.state(), out.epochs()), (None, vec![]));
        out.save_state(3, write("3")).unwrap();
        out.save_epoch(1, |dir| fs::write(dir.join("config.json"), "{}")).unwrap();
        drop(out);
        let whole = tree(&root);
        assert_eq!(whole, ["epoch-01", "epoch-01/config.json", "lock", "state", "state/step-00000003.safetensors"]);

        // While the state was written; while the model was; while it was removed; while the recipe was.
        fs::write(root.join("state/step-00000004.safetensors.tmp"), "4 is not fin").unwrap();
        fs::create_dir(root.join("epoch-02.tmp")).unwrap();
        fs::write(root.join("epoch-02.tmp/model.safetensors"), "half").unwrap();
        fs::write(root.join("recipe.json.tmp"), "{").unwrap();
        let out = Output::open(&root).unwrap();
        assert_eq!(tree(&root), whole);
        assert_eq!(out.epochs(), [1]);
        assert!(out.state().unwrap().ends_with("step-00000003.safetensors"));

        // After a state was put in place and before the one before it was removed.
        fs::write(root.join("state/step-00000100.safetensors"), "100").unwrap();
        assert!(out.state().unwrap().ends_with("step-00000100.safetensors"));
        out.save_state(101, write("101")).unwrap();
        assert_eq!(names(&root.join("state")), ["step-00000101.safetensors"]);
    }

    #[test]
    fn a_failing_write_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = Output::open(dir.path()).unwrap();
        out.save_state(1, write("1")).unwrap();
        let full = || io::Error::from_raw_os_error(28);
        let before = tree(dir.path());
        let error = out.save_state(2, |path| fs::write(path, "2").and(Err(full()))).unwrap_err().to_string();
        assert!(error.contains("step-00000002.safetensors cannot be written: No space left"), "{error}");
        let error = out.save_epoch(1, |dir| fs::write(dir.join("x"), "2").and(Err(full()))).unwrap_err().to_string();
        assert!(error.contains("epoch-01 cannot be written: No space left"), "{error}");
        assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn retention_keeps_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let out = Output::open(dir.path()).unwrap();
        for epoch in [1, 2, 9, 10, 11, 100] {
            out.save_epoch(epoch, |dir| fs::write(dir.join("x"), "")).unwrap();
        }
        out.retain(10).unwrap();
        assert_eq!(out.epochs(), [1, 2, 9, 10, 11, 100]);
        out.retain(2).unwrap();
        assert_eq!(out.epochs(), [11, 100]);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let out = Output::open(dir.path()).unwrap();
        let error = Output::open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("another process is training into it"), "{error}");
        drop(out);
        assert!(Output::open(dir.path()).is_ok());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Output::open(&file.join("out")).unwrap_err().to_string();
        assert!(error.contains("out cannot be written: Not a directory"), "{error}");
    }
}
