//! `hf:org/name[@revision][:file]`: repositories of the Hugging Face hub.
//!
//! Files are kept in the layout of Hugging Face's own libraries, in their cache, so what one of them downloaded is
//! found by all:
//!
//! ```text
//! models--<org>--<name>/refs/<revision>            the commit a branch or tag was when last asked for
//! models--<org>--<name>/snapshots/<commit>/<file>  links into blobs
//! models--<org>--<name>/blobs/<etag>               complete, and of the hash that names it
//! models--<org>--<name>/blobs/<etag>.part          what has come of one; the next attempt goes on from there
//! models--<org>--<name>/.lima/<commit>             says that all that is needed of the commit is there
//! models--<org>--<name>/.lima/lock                 held (flock) by the one `lima` at work
//! ```
//!
//! `hf-hub` gives the layout, addresses and the token's place. Its download is not used: it appends to a part
//! whatever the server answers, cannot go on after a part that is complete, waits forever for a silent server, checks
//! no hash, and takes names of files from the server as they are.

mod client;
mod fetch;
mod needed;
mod store;

use std::env;
use std::path::PathBuf;

use super::{HubError, Progress};
use client::Client;
use store::Store;

/// Where the hub is, unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A model on the hub. Every part is safe in a path and in an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfModel {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit; `main` if not given.
    pub revision: Option<String>,
    /// One `.gguf` file; otherwise the repository is a Hugging Face model directory.
    pub file: Option<String>,
}

/// How to reach the hub and where to keep what comes from it.
#[derive(Clone, Debug)]
pub struct HfSettings {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Token for private and gated repositories.
    pub token: Option<String>,
    /// The folder of repositories.
    pub cache_dir: PathBuf,
    /// No requests: what the cache has, or an error.
    pub offline: bool,
}

impl HfSettings {
    /// From the environment: `HF_ENDPOINT`; `HF_TOKEN`, else the file `token` that Hugging Face's tools leave in
    /// `HF_HOME`; `HF_HUB_OFFLINE`. The cache is `HF_HOME/hub`, else `LIMA_CACHE/huggingface/hub`, else
    /// `~/.cache/huggingface/hub`, as for Hugging Face's tools.
    pub(super) fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| env::var(name).ok().filter(|v| !v.trim().is_empty()))
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let lima = || Some(PathBuf::from(var("LIMA_CACHE")?).join("huggingface"));
        let xdg = || var("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let shared = || Some(xdg().or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache")))?.join("huggingface"));
        let home = var("HF_HOME").map(PathBuf::from);
        let cache_dir = home.clone().or_else(lima).or_else(shared).ok_or(HubError::NoCache)?.join("hub");
        // The token stays where Hugging Face's tools put it, wherever this program's cache is.
        let token_dir = home.or_else(shared).map(|dir| dir.join("hub"));
        let saved = || token_dir.and_then(|dir| hf_hub::Cache::new(dir).token());
        let is_on = |v: String| matches!(v.trim().to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Ok(Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim().trim_end_matches('/').to_owned(),
            token: var("HF_TOKEN").map(|t| t.trim().to_owned()).or_else(saved),
            cache_dir,
            offline: var("HF_HUB_OFFLINE").is_some_and(is_on),
        })
    }
}

impl HfModel {
    /// What stands after `hf:`; the error says which part is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (model, file) = text.split_once(':').map_or((text, None), |(model, file)| (model, Some(file)));
        let (repo, revision) = model.split_once('@').map_or((model, None), |(repo, rev)| (repo, Some(rev)));
        // Hugging Face's rules for names.
        let is_name = |s: &str| {
            s.len() <= 96
                && s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !s.contains("..")
                && !s.contains("--")
        };
        if !repo.split_once('/').is_some_and(|(org, name)| is_name(org) && is_name(name)) {
            return Err("the repository is not of the form org/name");
        }
        let is_segment = |s: &str| {
            !s.starts_with('.') && !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        };
        if revision.is_some_and(|r| r.len() > 128 || r.starts_with('-') || !r.split('/').all(is_segment)) {
            return Err("the revision is malformed");
        }
        if let Some(file) = file {
            let is_part = |s: &str| is_segment(&s.replace([' ', '(', ')', ',', '='], "_"));
            if file.len() > 512 || !file.split('/').all(is_part) {
                return Err("the file is malformed");
            }
            if !file.ends_with(".gguf") {
                return Err("the file does not end in .gguf (without a file, safetensors are used)");
            }
        }
        Ok(Self { repo: repo.into(), revision: revision.map(Into::into), file: file.map(Into::into) })
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        self.repo.rsplit('/').next().unwrap_or(&self.repo)
    }

    fn error(&self, what: impl std::fmt::Display) -> HubError {
        HubError::HuggingFace { model: self.to_string(), what: what.to_string() }
    }
}

impl std::fmt::Display for HfModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        self.revision.iter().try_for_each(|r| write!(f, "@{r}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// The model's path if everything it needs is in the cache.
pub(super) fn cached(settings: &HfSettings, model: &HfModel) -> Option<PathBuf> {
    let store = Store::new(settings, model);
    let commit = store.commit(model.revision())?;
    store.is_complete(&commit, model.file.as_deref()).then(|| store.path(&commit, model.file.as_deref()))
}

/// Makes sure the model is in the cache; returns its path. What is complete there is used without a request, unless
/// `update` asks the hub which commit the revision is now.
pub(super) fn pull(
    settings: &HfSettings,
    model: &HfModel,
    update: bool,
    progress: &dyn Fn(Progress<'_>),
) -> Result<PathBuf, HubError> {
    if let Some(path) = cached(settings, model).filter(|_| !update || settings.offline) {
        return Ok(path);
    }
    let store = Store::new(settings, model);
    if settings.offline {
        return store.partial(model).ok_or_else(|| model.error("it is not in the cache, and HF_HUB_OFFLINE is set"));
    }
    let _lock = match store.lock(progress) {
        Ok(lock) => lock,
        // The cache may be mounted read only.
        Err(e) => return store.partial(model).ok_or(e),
    };
    // Another process may have finished while this one waited.
    if let Some(path) = cached(settings, model).filter(|_| !update) {
        return Ok(path);
    }
    let client = Client::new(settings, model)?;
    let info = match client.info() {
        Ok(info) => info,
        // Downloaded by other means, perhaps: the loader will say if something is missing.
        Err(client::Failure::Network(reason)) => {
            let path = store.partial(model).ok_or_else(|| model.error(&reason))?;
            tracing::warn!("{reason}; using what is in the cache");
            return Ok(path);
        }
        Err(e) => return Err(model.error(e)),
    };
    fetch::fetch(&store, &client, model, &info, progress)?;
    progress(Progress::Done);
    Ok(store.path(&info.commit, model.file.as_deref()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
