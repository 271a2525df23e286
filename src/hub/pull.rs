//! From a wheel on an index to a file in the cache.
//!
//! Invariant: a file at its [`destination`] is complete. It was written elsewhere, synced, checked
//! and renamed. Under the cache directory:
//!
//! ```text
//! models/sha256/<hash>/<file>             pinned: named by content, whoever pulled it
//! models/pypi/<package>-<version>/<path>  not pinned
//! wheels/<package>-<version>/*.whl        downloaded, until the model is extracted
//! wheels/<package>-<version>/lock         held (flock) by the one process at work
//! wheels/<package>-<version>/tmp.*        work in progress; whatever the lock's holder finds is stale
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::ZipError;

use super::{Alias, Hub, HubError, Progress, WheelMember, pip};

/// Where the model will be.
pub(super) fn destination(hub: &Hub, member: &WheelMember, pin: Option<&Alias>) -> PathBuf {
    let models = hub.cache_dir.join("models");
    match pin {
        Some(alias) => models.join("sha256").join(alias.sha256).join(member.file_name()),
        None => models.join("pypi").join(directory_name(member)).join(&member.path),
    }
}

fn directory_name(member: &WheelMember) -> String {
    format!("{}-{}", member.package, member.version)
}

/// Makes sure the model is in the cache; returns its path.
pub(super) fn pull(
    hub: &Hub,
    member: &WheelMember,
    pin: Option<&Alias>,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, HubError> {
    let target = destination(hub, member, pin);
    if target.is_file() {
        return Ok(target);
    }
    let dir = hub.cache_dir.join("wheels").join(directory_name(member));
    create_dir(&dir)?;
    let _lock = lock(&dir.join("lock"), progress)?;
    // Another process may have finished while this one waited.
    if target.is_file() {
        return Ok(target);
    }
    let wheel = match remove_stale(&dir)? {
        Some(wheel) => wheel,
        None => download(hub, member, pin, &dir, progress)?,
    };
    extract(&wheel, member, pin, &target, progress)?;
    // The model is in place: the wheel has served, and is no loss if it stays. A pip that outlived
    // its killed parent may have left its own since the start.
    let _ = fs::remove_file(&wheel);
    let _ = remove_stale(&dir);
    progress(Progress::Done);
    Ok(target)
}

pub(super) fn lock(path: &Path, progress: &dyn Fn(Progress)) -> Result<File, HubError> {
    let file = File::create(path).map_err(HubError::io(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(HubError::io(path))?;
        }
        Err(TryLockError::Error(e)) => return Err(HubError::io(path)(e)),
    }
    Ok(file)
}

/// Removes what an interrupted pull left; returns a finished wheel.
fn remove_stale(dir: &Path) -> Result<Option<PathBuf>, HubError> {
    let mut wheel = None;
    for entry in fs::read_dir(dir).map_err(HubError::io(dir))?.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("tmp.") {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(HubError::io(&path))?;
        } else if path.extension().is_some_and(|e| e == "whl") {
            wheel = Some(path);
        }
    }
    Ok(wheel)
}

fn download(
    hub: &Hub,
    member: &WheelMember,
    pin: Option<&Alias>,
    dir: &Path,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, HubError> {
    // A name of its own for each attempt: a pip that outlived its parent cannot write into it.
    let work = dir.join(format!("tmp.{}", std::process::id()));
    create_dir(&work)?;
    let what = member.requirement();
    let total = pin.map(|alias| alias.wheel_bytes);
    let grown = |bytes| progress(Progress::Download { what: &what, bytes, total });
    grown(0);
    let result = pip::download(hub, member, &work, &grown).and_then(|wheel| {
        File::open(&wheel).and_then(|f| f.sync_all()).map_err(HubError::io(&wheel))?;
        let name = wheel.file_name().expect("a file in a directory has a name");
        let finished = dir.join(name);
        fs::rename(&wheel, &finished).map_err(HubError::io(&finished))?;
        Ok(finished)
    });
    // Left-overs are removed by the next pull at the latest.
    let _ = fs::remove_dir_all(&work);
    result
}

/// Copies the member to a temporary file, hashing it, and moves that into place.
fn extract(
    wheel: &Path,
    member: &WheelMember,
    pin: Option<&Alias>,
    target: &Path,
    progress: &dyn Fn(Progress),
) -> Result<(), HubError> {
    let bad_wheel = |e: &dyn std::fmt::Display| {
        let _ = fs::remove_file(wheel);
        HubError::BadWheel { path: wheel.to_owned(), what: format!("is not a readable wheel ({e})") }
    };
    let file = File::open(wheel).map_err(HubError::io(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(|e| bad_wheel(&e))?;
    let models = archive.file_names().flatten().filter(|n| n.ends_with(".gguf")).map(|n| n.into_owned()).collect();
    let mut entry = match archive.by_name(&member.path) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Err(HubError::no_member(member, models)),
        Err(e) => return Err(bad_wheel(&e)),
    };
    let total = entry.size();

    let parent = target.parent().expect("a model in the cache has a directory");
    create_dir(parent)?;
    // Beside the wheel, where the next pull clears up after an interrupted one.
    let temporary = wheel.with_file_name("tmp.model");
    let copied = (|| {
        let mut out = File::create(&temporary).map_err(HubError::io(&temporary))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            // The reader checks the length and the CRC of the archive.
            let n = entry.read(&mut buffer).map_err(|e| bad_wheel(&e))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            out.write_all(&buffer[..n]).map_err(HubError::io(&temporary))?;
            bytes += n as u64;
            progress(Progress::Extract { what: member.file_name(), bytes, total });
        }
        if bytes != total {
            return Err(bad_wheel(&format_args!("{bytes} bytes of {total}")));
        }
        out.sync_all().map_err(HubError::io(&temporary))?;
        let actual: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        match pin {
            Some(alias) if alias.sha256 != actual => {
                let _ = fs::remove_file(wheel);
                Err(HubError::Hash {
                    package: member.requirement(),
                    member: member.path.clone(),
                    actual,
                    expected: alias.sha256.into(),
                })
            }
            _ => fs::rename(&temporary, target).map_err(HubError::io(target)),
        }
    })();
    match copied {
        Ok(()) => File::open(parent).and_then(|d| d.sync_all()).map_err(HubError::io(parent)),
        Err(e) => {
            let _ = fs::remove_file(&temporary);
            Err(e)
        }
    }
}

pub(super) fn create_dir(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(HubError::io(path))
}
