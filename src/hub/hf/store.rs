//! The cache's side: which files are there, and putting them in place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::super::pull::{create_dir, lock};
use super::{HfModel, HfSettings};
use crate::hub::{HubError, Progress};
use crate::model::weights::part_names;

pub(super) struct Store {
    cache: Cache,
    /// Of the repository.
    dir: PathBuf,
    repo: String,
}

impl Store {
    pub fn new(settings: &HfSettings, model: &HfModel) -> Self {
        let repo = Repo::new(model.repo.clone(), RepoType::Model);
        Self {
            cache: Cache::new(settings.cache_dir.clone()),
            dir: settings.cache_dir.join(repo.folder_name()),
            repo: model.repo.clone(),
        }
    }

    /// Held until dropped.
    pub fn lock(&self, progress: &dyn Fn(Progress<'_>)) -> Result<File, HubError> {
        let dir = self.dir.join(".lima");
        create_dir(&dir)?;
        lock(&dir.join("lock"), progress)
    }

    /// The commit of a revision, as far as the cache knows.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && revision.len() == 40 {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|c| is_commit(c))
    }

    /// Remembers which commit a revision is.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let repo = Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned());
        self.cache.repo(repo).create_ref(commit).map_err(HubError::io(&self.dir.join("refs").join(revision)))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// What the loader is given.
    pub fn path(&self, commit: &str, file: Option<&str>) -> PathBuf {
        let snapshot = self.snapshot(commit);
        file.map_or(snapshot.clone(), |file| snapshot.join(file))
    }

    /// Whether everything needed was put in place.
    pub fn is_complete(&self, commit: &str, file: Option<&str>) -> bool {
        let has = |name: String| self.snapshot(commit).join(name).is_file();
        match file {
            Some(file) => part_names(file).unwrap_or_else(|| vec![file.to_owned()]).into_iter().all(has),
            None => self.dir.join(".lima").join(commit).is_file() && has("config.json".into()),
        }
    }

    pub fn set_complete(&self, commit: &str) -> Result<(), HubError> {
        let path = self.dir.join(".lima").join(commit);
        File::create(&path).map(drop).map_err(HubError::io(&path))
    }

    /// What the cache has of a model without knowing whether it is all.
    pub fn partial(&self, model: &HfModel) -> Option<PathBuf> {
        let path = self.path(&self.commit(model.revision())?, model.file.as_deref());
        let is_there = if model.file.is_some() { path.is_file() } else { path.join("config.json").is_file() };
        is_there.then_some(path)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Makes a complete blob a file of the snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        create_dir(path.parent().expect("a file in a snapshot has a directory"))?;
        // A link that leads nowhere is in the way.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(HubError::io(&path))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        let blob = Path::new(&up).join("blobs").join(etag);
        std::os::unix::fs::symlink(blob, &path).map_err(HubError::io(&path))
    }
}

/// Whether text can be a commit's hash, and so is safe as a name.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}
