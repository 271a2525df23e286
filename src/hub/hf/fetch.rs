//! Downloading what is needed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::client::{Client, Failure, Info};
use super::needed::{self, INDEX};
use super::store::Store;
use super::{HfModel, HubError, Progress};
use crate::hub::pull::create_dir;

/// Attempts in a row that bring no byte before a download is given up.
const ATTEMPTS: u32 = 5;

/// Brings every file that is needed into the snapshot, then says that it is complete.
pub(super) fn fetch(
    store: &Store,
    client: &Client<'_>,
    model: &HfModel,
    info: &Info,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), HubError> {
    let needed = match &model.file {
        Some(file) => needed::gguf(&info.files, file),
        None => needed::directory(&info.files),
    };
    let mut needed = needed.map_err(|e| model.error(e))?;
    let job = Job { store, client, model, commit: &info.commit };
    if needed.last().is_some_and(|last| last == INDEX) {
        for file in &job.plan(&needed)? {
            job.download(file, &|_| {})?;
        }
        let path = store.snapshot(&info.commit).join(INDEX);
        let index = fs::read(&path).map_err(HubError::io(&path))?;
        needed = needed::shards(&index, &info.files).map_err(|e| model.error(e))?;
    }
    let plan = job.plan(&needed)?;
    let total = plan.iter().map(|file| file.size).sum::<Option<u64>>();
    let mut before = 0;
    for file in &plan {
        let tell = |bytes: u64| progress(Progress::Download { what: &model.repo, bytes: before + bytes, total });
        tell(0);
        before += job.download(file, &tell)?;
    }
    if model.file.is_none() {
        store.set_complete(&info.commit)?;
    }
    store.set_commit(model.revision(), &info.commit)
}

struct Job<'a> {
    store: &'a Store,
    client: &'a Client<'a>,
    model: &'a HfModel,
    commit: &'a str,
}

/// A file that is not in the snapshot.
struct Planned {
    name: String,
    etag: String,
    size: Option<u64>,
}

impl Job<'_> {
    /// Asks about the files that are not there.
    fn plan(&self, names: &[String]) -> Result<Vec<Planned>, HubError> {
        let absent = names.iter().filter(|name| !self.store.snapshot(self.commit).join(name).is_file());
        absent
            .map(|name| {
                let info = self.client.file_info(self.commit, name).map_err(|e| self.model.error(e))?;
                Ok(Planned { name: name.clone(), etag: info.etag, size: info.size })
            })
            .collect()
    }

    /// Puts one file in place; returns its size. `tell` hears how much of it is there.
    fn download(&self, file: &Planned, tell: &dyn Fn(u64)) -> Result<u64, HubError> {
        let blob = self.store.blob(&file.etag);
        create_dir(blob.parent().expect("a blob has a directory"))?;
        if !blob.is_file() {
            let part = blob.with_extension("part");
            self.complete(file, &part, tell)?;
            self.check(file, &part)?;
            fs::rename(&part, &blob).map_err(HubError::io(&blob))?;
        }
        self.store.link(self.commit, &file.name, &file.etag)?;
        Ok(fs::metadata(&blob).map_err(HubError::io(&blob))?.len())
    }

    /// Goes on with the part until it is whole, however often the connection breaks.
    fn complete(&self, file: &Planned, part: &Path, tell: &dyn Fn(u64)) -> Result<(), HubError> {
        let mut out =
            OpenOptions::new().append(true).create(true).open(part).map_err(HubError::io(part))?;
        let mut in_vain = 0;
        loop {
            let have = out.metadata().map_err(HubError::io(part))?.len();
            if file.size == Some(have) {
                break;
            }
            let have = if file.size.is_some_and(|size| have > size) {
                out.set_len(0).map_err(HubError::io(part))?;
                0
            } else {
                have
            };
            let reason = match self.append(file, &mut out, have, tell) {
                Ok(()) if file.size.is_none() => break,
                Ok(()) => "the answer is too short".to_owned(),
                Err(Broken::Disk(e)) => return Err(HubError::Io { path: part.to_owned(), source: e }),
                Err(Broken::Refused(reason)) => return Err(self.model.error(reason)),
                Err(Broken::Connection(reason)) => reason,
            };
            let now = out.metadata().map_err(HubError::io(part))?.len();
            in_vain = if now > have { 0 } else { in_vain + 1 };
            if in_vain == ATTEMPTS {
                let total = file.size.map_or_else(String::new, |n| format!(" of {n}"));
                return Err(self.model.error(format_args!(
                    "the download of {} broke at byte {now}{total} ({reason}; {ATTEMPTS} attempts); run it again to go \
                     on from there",
                    file.name
                )));
            }
            thread::sleep(Duration::from_millis(100) * (1 << in_vain));
        }
        out.sync_all().map_err(HubError::io(part))
    }

    /// Appends what one answer brings to the `have` bytes there are.
    fn append(&self, file: &Planned, out: &mut File, mut have: u64, tell: &dyn Fn(u64)) -> Result<(), Broken> {
        let response = self.client.content(self.commit, &file.name, have)?;
        let begins = response.header("content-range").and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        if have > 0 && !(response.status() == 206 && begins == Some(have)) {
            // The server does not know ranges: all of it comes again.
            out.set_len(0).map_err(Broken::Disk)?;
            have = 0;
        }
        // No more than there should be: an endless answer must not fill the disk.
        let most = file.size.map_or(u64::MAX, |size| size - have);
        let mut body = response.into_reader().take(most);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Broken::Connection(e.to_string())),
            };
            out.write_all(&buffer[..n]).map_err(Broken::Disk)?;
            have += n as u64;
            tell(have);
        }
    }

    /// Large files are named by their SHA-256.
    fn check(&self, file: &Planned, part: &Path) -> Result<(), HubError> {
        if file.etag.len() != 64 || !file.etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut hash = Sha256::new();
        let mut input = File::open(part).map_err(HubError::io(part))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match input.read(&mut buffer).map_err(HubError::io(part))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let actual: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        if actual == file.etag.to_ascii_lowercase() {
            return Ok(());
        }
        fs::remove_file(part).map_err(HubError::io(part))?;
        Err(self.model.error(format_args!(
            "{} has SHA-256 {actual}, the hub says {}; the download was removed, pull again",
            file.name, file.etag
        )))
    }
}

/// Why an answer ended early.
enum Broken {
    Connection(String),
    Refused(String),
    Disk(io::Error),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Network(reason) => Self::Connection(reason),
            Failure::Refused(reason) => Self::Refused(reason),
        }
    }
}
