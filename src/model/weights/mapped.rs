//! Files as bytes: weights memory-mapped, JSON read with a limit.

use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::error::{LoadError, brief};

/// Largest JSON file read.
const MAX_JSON: u64 = 16 << 20;

/// A file in memory, and where it came from.
#[derive(Debug)]
pub struct MappedFile {
    /// Its path.
    pub path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a file that is not changed in place.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(LoadError::io(path))?;
        if !file.metadata().map_err(LoadError::io(path))?.is_file() {
            return Err(LoadError::file(path, "is not a file"));
        }
        // SAFETY: the map is read only. Files are replaced by renaming; someone who
        // truncates a model in place while it is served ends the process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.map_err(LoadError::io(path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Gives back the memory that a part takes in this process; it is read again when needed.
    pub fn release(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is shared and read only, so its pages come back from the file as they were. Failure
            // is harmless.
            let _ = unsafe { self.map.unchecked_advise_range(advice, offset, len) };
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// A JSON file's bytes.
pub(super) fn read_json(path: &Path) -> Result<Vec<u8>, LoadError> {
    let size = fs::metadata(path).map_err(LoadError::io(path))?.len();
    if size > MAX_JSON {
        return Err(LoadError::file(path, format!("has {size} bytes, at most {MAX_JSON} are read")));
    }
    fs::read(path).map_err(LoadError::io(path))
}

/// A JSON file that holds an object.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let bytes = read_json(path)?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::file(path, format!("is not a JSON object ({})", brief(&e))))
}
