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
pub(super) struct MappedFile {
    pub path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(LoadError::io(path))?;
        if !file.metadata().map_err(LoadError::io(path))?.is_file() {
            return Err(LoadError::file(path, "is not a file"));
        }
        // SAFETY: the map is private and read only. Files are replaced by renaming; someone who
        // truncates a model in place while it is served ends the process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.map_err(LoadError::io(path))?;
        Ok(Self { path: path.to_owned(), map })
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
