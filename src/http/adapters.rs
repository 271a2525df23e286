//! LoRA adapters by name: which are served, and `POST /v1/load_lora_adapter`, `POST /v1/unload_lora_adapter`.
//!
//! Loading names a folder of the server, so it is off unless there is a folder below which clients may choose.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, quote};
use super::fields::{self, Fields, wrong_type};
use super::intake;
use super::state::{App, ServedModel, unix_seconds};
use crate::engine::{AdapterError, AdapterLease, AdapterWeights};

/// Reads an adapter's folder; the error is a sentence without its period.
pub type AdapterLoader = Box<dyn Fn(&Path) -> Result<Arc<AdapterWeights>, String> + Send + Sync>;

/// Names of at most so many characters.
const MAX_NAME: usize = 256;
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The adapters of a model.
pub struct Adapters {
    load: AdapterLoader,
    /// Where clients may load from.
    root: Option<PathBuf>,
    served: Mutex<BTreeMap<String, Served>>,
    /// Held while one is loaded or unloaded: they are done one after the other.
    updating: Arc<tokio::sync::Mutex<()>>,
}

/// An adapter that requests may name.
#[derive(Clone)]
pub struct Served {
    /// Keeps it loaded.
    pub lease: AdapterLease,
    /// Where it came from, as it was asked for.
    pub root: String,
    /// The name of the model it is for.
    pub parent: String,
    /// Seconds since the epoch when it was loaded.
    pub created: u64,
}

impl Adapters {
    /// None yet. `root` is where clients may load from, if anywhere.
    pub fn new(load: AdapterLoader, root: Option<PathBuf>) -> Self {
        Self { load, root, served: Mutex::default(), updating: Arc::default() }
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter of a name.
    pub fn get(&self, name: &str) -> Option<Served> {
        self.served().get(name).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(String, Served)> {
        self.served().iter().map(|(name, served)| (name.clone(), served.clone())).collect()
    }

    /// Loads a folder under a name that is not in use; blocks. `shown` is what the API says of where it is.
    fn add(&self, model: &ServedModel, name: &str, dir: &Path, shown: String, parent: String) -> Result<(), Refusal> {
        if model.names.iter().any(|n| n == name) || self.served().contains_key(name) {
            return Err(Refusal::Name(format!("'{}' is already loaded", quote(name))));
        }
        // First the slot: what has no place is not read.
        let slot = model.engine.reserve_adapter().map_err(Refusal::Engine)?;
        let weights = (self.load)(dir).map_err(Refusal::Path)?;
        let lease = slot.load(weights).map_err(Refusal::Engine)?;
        tracing::info!("adapter '{}' is loaded", quote(name));
        let served = Served { lease, root: shown, parent, created: unix_seconds() };
        self.served().insert(name.to_owned(), served);
        Ok(())
    }

    /// New requests do not find it any more; it is unloaded when the last sequence that uses it has ended.
    fn remove(&self, name: &str) -> bool {
        let removed = self.served().remove(name);
        if removed.is_some() {
            tracing::info!("adapter '{}' is unloaded", quote(name));
        }
        removed.is_some()
    }

    /// The folder a client names, if it is below the root, links followed. Nothing is said of what is outside.
    fn allowed(&self, path: &str) -> Option<PathBuf> {
        let root = self.root.as_ref()?.canonicalize().ok()?;
        let dir = root.join(path).canonicalize().ok()?;
        let inside = |path: &Path| path.starts_with(&root);
        let files_inside = FILES.iter().all(|file| dir.join(file).canonicalize().map_or(true, |f| inside(&f)));
        (inside(&dir) && dir.is_dir() && files_inside).then_some(dir)
    }
}

/// Why an adapter was not loaded.
enum Refusal {
    Name(String),
    Path(String),
    Engine(AdapterError),
}

impl Refusal {
    fn into_error(self) -> ApiError {
        match self {
            Self::Name(message) => ApiError::value("lora_name", "invalid_value", message),
            Self::Path(message) => ApiError::value("lora_path", "invalid_value", message),
            Self::Engine(AdapterError::Stopped) => ApiError::EngineStopped,
            Self::Engine(error @ AdapterError::Full(_)) => {
                ApiError::value("lora_name", "adapter_limit_reached", error.to_string())
            }
            Self::Engine(AdapterError::Executor(error)) => {
                tracing::error!("loading an adapter failed: {error}");
                ApiError::Engine
            }
        }
    }
}

impl ServedModel {
    /// Serves adapters too.
    pub fn with_adapters(mut self, adapters: Adapters) -> Self {
        self.adapters = Some(adapters);
        self
    }

    /// Loads an adapter at the start; blocks.
    ///
    /// # Errors
    /// A sentence that names the adapter and the reason.
    pub fn load_adapter(&self, name: &str, dir: &Path, parent: Option<&str>) -> Result<(), String> {
        let parent = parent.unwrap_or(&self.names[0]);
        if !self.names.iter().any(|n| n == parent) {
            return Err(format!("--lora-modules {name}: base_model_name '{parent}' is not served"));
        }
        let Some(adapters) = &self.adapters else { return Err("adapters are not enabled".into()) };
        adapters.add(self, name, dir, dir.display().to_string(), parent.to_owned()).map_err(|refusal| {
            let reason = match refusal {
                Refusal::Name(m) | Refusal::Path(m) => m,
                Refusal::Engine(e) => e.to_string(),
            };
            format!("--lora-modules {name}: {reason}")
        })
    }

    /// What a request's `model` means: the model itself, or with an adapter.
    ///
    /// # Errors
    /// No such name.
    pub fn resolve(&self, name: &str) -> Result<Option<AdapterLease>, ApiError> {
        if self.names.iter().any(|n| n == name) {
            return Ok(None);
        }
        let served = self.adapters.as_ref().and_then(|a| a.get(name));
        served.map(|s| Some(s.lease)).ok_or_else(|| ApiError::ModelNotFound(quote(name)))
    }
}

/// `POST /v1/load_lora_adapter`.
pub async fn load(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (model, mut fields) = begin(&app, request).await?;
    let name = name(&mut fields)?;
    let path = match fields.require("lora_path")? {
        serde_json::Value::String(path) => path,
        other => return Err(wrong_type("lora_path", "a string", &other)),
    };
    fields.finish()?;
    let told = format!("Success: LoRA adapter '{name}' added successfully.");
    let guard = lock(&model).await?;
    let work = move || {
        // Held until the work is done, even when the client has gone.
        let _guard = guard;
        let adapters = model.adapters.as_ref().ok_or(ApiError::AdapterUpdates)?;
        let dir = adapters.allowed(&path).ok_or_else(|| {
            ApiError::value("lora_path", "invalid_value", "it is no folder below the one that the server allows")
        })?;
        let parent = model.names[0].clone();
        adapters.add(&model, &name, &dir, path, parent).map_err(Refusal::into_error)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        tracing::error!("loading an adapter failed: {e}");
        ApiError::Internal
    })??;
    Ok(text(told))
}

/// `POST /v1/unload_lora_adapter`.
pub async fn unload(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (model, mut fields) = begin(&app, request).await?;
    let name = name(&mut fields)?;
    // vLLM's second name for it; the first is enough.
    fields.integer("lora_int_id", 0, i64::MAX)?;
    fields.finish()?;
    let _guard = lock(&model).await?;
    match model.adapters.as_ref().is_some_and(|a| a.remove(&name)) {
        true => Ok(text(format!("Success: LoRA adapter '{name}' removed successfully."))),
        false => Err(ApiError::ModelNotFound(quote(&name))),
    }
}

/// Refuses a server that takes no updates, and reads the body.
async fn begin(app: &App, request: Request) -> Result<(Arc<ServedModel>, Fields), ApiError> {
    let (model, bytes) = intake::receive(app, request).await?;
    if model.adapters.as_ref().is_none_or(|a| a.root.is_none()) {
        return Err(ApiError::AdapterUpdates);
    }
    Ok((model, Fields::new("", fields::parse(&bytes)?)?))
}

async fn lock(model: &ServedModel) -> Result<tokio::sync::OwnedMutexGuard<()>, ApiError> {
    let adapters = model.adapters.as_ref().ok_or(ApiError::AdapterUpdates)?;
    Ok(Arc::clone(&adapters.updating).lock_owned().await)
}

fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = match fields.require("lora_name")? {
        serde_json::Value::String(name) => name,
        other => return Err(wrong_type("lora_name", "a string", &other)),
    };
    fields::check_length("lora_name", &name, MAX_NAME)?;
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(ApiError::value("lora_name", "invalid_value", "it must not be empty nor hold white space"));
    }
    Ok(name)
}

fn text(message: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))], message).into_response()
}
