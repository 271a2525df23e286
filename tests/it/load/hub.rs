//! Pulling from the Hugging Face hub: only what is needed, whole, once, and errors that say what to do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lima::hub::{HfSettings, Hub, ModelSource, Progress};
use lima::model::weights::{Checkpoint, Source};
use lima::ops::quant::DType;
use tempfile::TempDir;

use super::hub_server::{COMMIT, HubServer, REPO, sha256};
use super::writer::{GgufFile, config, config_json, safetensors, tensors};

/// The model's files as they would lie on the hub, weights in two shards, and much else.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let all = tensors(&config());
    let (a, b) = all.split_at(5);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let of = |part: &[super::writer::Tensor], file: &str| -> serde_json::Map<String, serde_json::Value> {
        part.iter().map(|(name, ..)| (name.clone(), file.into())).collect()
    };
    let mut map = of(a, names[0]);
    map.extend(of(b, names[1]));
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    [
        ("config.json", config_json().to_string().into_bytes()),
        ("generation_config.json", b"{\"temperature\": 0.5}".to_vec()),
        ("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec()),
        ("tokenizer.model", vec![7; 100]),
        ("tokenizer_config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        (names[0], safetensors(DType::F32, a)),
        (names[1], safetensors(DType::F32, b)),
        ("pytorch_model.bin", vec![0x80; 5000]),
        ("consolidated.00.pth", vec![0x80; 5000]),
        ("original/params.json", b"{}".to_vec()),
        ("README.md", b"# tiny".to_vec()),
        ("tiny-q8_0.gguf", GgufFile::new(DType::Q8_0).bytes()),
        ("gguf/tiny f32.gguf", GgufFile::new(DType::F32).bytes()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}

struct Client {
    tmp: TempDir,
    hub: Hub,
}

impl Client {
    fn new(server: &HubServer) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let hf = HfSettings {
            endpoint: server.endpoint(),
            token: None,
            cache_dir: tmp.path().join("hub"),
            offline: false,
        };
        let hub = Hub { cache_dir: tmp.path().join("cache"), python: "/no/such/python".into(), hf };
        Self { tmp, hub }
    }

    fn pull(&self, text: &str) -> Result<PathBuf, String> {
        let source: ModelSource = text.parse().unwrap();
        self.hub.resolve(&source, &|_| {}).map_err(|e| {
            let message = e.to_string();
            assert!(!message.contains('\n') && message.contains(text), "{message}");
            message
        })
    }

    #[track_caller]
    fn assert_refused(&self, text: &str, words: &[&str]) {
        let message = self.pull(text).unwrap_err();
        for part in words {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }

    fn blobs(&self) -> Vec<PathBuf> {
        let dir = self.tmp.path().join("hub/models--org--tiny/blobs");
        fs::read_dir(dir).map_or_else(|_| Vec::new(), |d| d.map(|e| e.unwrap().path()).collect())
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const MODEL: &str = "hf:org/tiny";

#[test]
fn a_directory_is_what_is_needed_and_no_more() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    let source: ModelSource = MODEL.parse().unwrap();
    assert_eq!(client.hub.cached(&source), None);
    let seen = RefCell::new(Vec::new());
    let path = client.hub.resolve(&source, &|p: Progress<'_>| seen.borrow_mut().push(format!("{p:?}"))).unwrap();

    let needed = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names_in(&path), needed);
    assert!(path.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")), "{}", path.display());
    let files = repository();
    for name in needed {
        assert_eq!(fs::read(path.join(name)).unwrap(), files[name], "{name}");
    }
    let requests = server.requests();
    for other in ["tokenizer.model", ".bin", ".pth", "README", "gguf", "params.json"] {
        assert!(requests.iter().all(|r| !r.contains(other)), "{other} in {requests:?}");
    }
    let weights: usize = needed[2..4].iter().map(|n| files[*n].len()).sum();
    let last = seen.borrow().iter().rev().nth(1).cloned().unwrap();
    assert_eq!(last, format!("Download {{ what: \"org/tiny\", bytes: {weights}, total: Some({weights}) }}"));
    assert_eq!(seen.borrow().last().unwrap(), "Done");

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.source(), &Source::HuggingFace(path.clone()));
    assert_eq!(checkpoint.generation_defaults().temperature, Some(0.5));

    // Again: no request, even with the server gone for good.
    assert_eq!(client.pull(MODEL), Ok(path.clone()));
    assert_eq!(client.hub.cached(&source), Some(path.clone()));
    assert_eq!(server.requests(), Vec::<String>::new());
    let mut offline = client.hub.clone();
    offline.hf.offline = true;
    offline.hf.endpoint = "http://127.0.0.1:9".into();
    assert_eq!(offline.resolve(&source, &|_| {}).unwrap(), path);
    assert_eq!(offline.update(&source, &|_| {}).unwrap(), path);

    // An update asks for the commit, and fetches nothing that is there.
    assert_eq!(client.hub.update(&source, &|_| {}).unwrap(), path);
    assert_eq!(server.requests(), [format!("GET /api/models/{REPO}/revision/main")]);
}

#[test]
fn a_file_is_that_file() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    for (text, file) in
        [("hf:org/tiny:tiny-q8_0.gguf", "tiny-q8_0.gguf"), ("hf:org/tiny@v1:gguf/tiny f32.gguf", "gguf/tiny f32.gguf")]
    {
        let path = client.pull(text).unwrap();
        assert!(path.ends_with(file));
        assert!(Checkpoint::open(&path).unwrap().gguf_vocab().is_some());
        let requests = server.requests();
        assert!(requests.iter().all(|r| r.contains("/api/") || r.contains("gguf") || r.contains("/cdn/")), "{requests:?}");
        assert_eq!(client.pull(text), Ok(path));
        assert_eq!(server.requests(), Vec::<String>::new());
    }
}

#[test]
fn a_pinned_commit_is_asked_for_and_then_never_again() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    let pinned = format!("hf:org/tiny@{COMMIT}");
    let path = client.pull(&pinned).unwrap();
    assert_eq!(server.requests()[0], format!("GET /api/models/{REPO}/revision/{COMMIT}"));
    assert!(!client.tmp.path().join("hub/models--org--tiny/refs").exists());
    assert_eq!(client.pull(&pinned), Ok(path.clone()));
    assert_eq!(server.requests(), Vec::<String>::new());
    // A branch at the same commit needs one request to learn it.
    assert_eq!(client.pull(MODEL), Ok(path));
    assert_eq!(server.requests().len(), 1);
    client.assert_refused("hf:org/tiny@v9", &["no revision \"v9\"", "404"]);
}

#[test]
fn a_broken_connection_is_resumed() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    server.set(|s| s.breaks = 3);
    let path = client.pull("hf:org/tiny:tiny-q8_0.gguf").unwrap();
    let model = &repository()["tiny-q8_0.gguf"];
    assert_eq!(&fs::read(path).unwrap(), model);
    let half = model.len() / 2;
    let requests = server.requests();
    let ranged: Vec<_> = requests.iter().filter(|r| r.starts_with("GET /cdn/") && r.contains("bytes=")).collect();
    assert_eq!(ranged.len(), 3, "{requests:?}");
    assert!(ranged[0].ends_with(&format!("bytes={half}-")), "{requests:?}");
}

#[test]
fn a_later_run_goes_on_where_the_last_one_stopped() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    let model = repository()["tiny-q8_0.gguf"].clone();
    let blobs = client.tmp.path().join("hub/models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.part", sha256(&model)));

    // A part, a part that is already whole, one that is too long, and a server without ranges.
    for (length, no_ranges, range) in
        [(1000, false, Some(1000)), (model.len(), false, None), (model.len() + 5, false, None), (1000, true, Some(1000))]
    {
        let mut bytes = model.clone();
        bytes.resize(length, 0);
        fs::write(&part, bytes).unwrap();
        server.set(|s| s.no_ranges = no_ranges);
        let path = client.pull("hf:org/tiny:tiny-q8_0.gguf").unwrap();
        assert_eq!(fs::read(&path).unwrap(), model, "{length}");
        let requests = server.requests();
        let asked = requests.iter().find_map(|r| r.strip_prefix("GET /cdn/")?.split_once("bytes="));
        assert_eq!(asked.map(|(_, r)| r.to_owned()), range.map(|n| format!("{n}-")), "{requests:?}");
        fs::remove_file(&path).unwrap();
        client.blobs().iter().for_each(|b| fs::remove_file(b).unwrap());
    }
}

#[test]
fn content_that_is_not_what_its_hash_says_is_removed() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    server.set(|s| s.corrupt = true);
    client.assert_refused("hf:org/tiny:tiny-q8_0.gguf", &["tiny-q8_0.gguf has SHA-256", "was removed, pull again"]);
    assert_eq!(client.blobs(), Vec::<PathBuf>::new());
    server.set(|s| s.corrupt = false);
    assert!(client.pull("hf:org/tiny:tiny-q8_0.gguf").is_ok());
}

#[test]
fn tokens() {
    let server = HubServer::start(repository());
    let mut client = Client::new(&server);
    server.set(|s| s.token = Some("hf_right".into()));
    client.assert_refused(MODEL, &["wants a token (HTTP 401)", "/org/tiny", "set HF_TOKEN"]);
    client.hub.hf.token = Some("hf_wrong".into());
    client.assert_refused(MODEL, &["refuses the token (HTTP 401)", "check HF_TOKEN"]);
    client.hub.hf.token = Some("hf_\r\nx: y".into());
    server.requests();
    client.assert_refused(MODEL, &["HF_TOKEN has characters"]);
    assert_eq!(server.requests(), Vec::<String>::new());
    client.hub.hf.token = Some("hf_right".into());
    assert!(client.pull(MODEL).is_ok());
}

#[test]
fn what_is_not_there_is_named() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    client.assert_refused("hf:org/other", &["no repository org/other", "404"]);
    client.assert_refused("hf:org/tiny:x.gguf", &["no file \"x.gguf\"", "gguf/tiny f32.gguf, tiny-q8_0.gguf"]);
    client.assert_refused(
        "hf:org/tiny:m-00001-of-00002.gguf",
        &["no file \"m-00001-of-00002.gguf\"", ".gguf files are"],
    );
    let without = |gone: &[&str]| server.set(|s| s.files.retain(|name, _| !gone.iter().any(|g| name.contains(g))));
    without(&["00002-of-00002"]);
    client.assert_refused(MODEL, &["index.json names \"model-00002-of-00002.safetensors\", which the repository"]);
    without(&["safetensors"]);
    client.assert_refused(MODEL, &["name one of its files", "its .gguf files are gguf/tiny f32.gguf, tiny-q8_0.gguf"]);
    without(&["gguf"]);
    client.assert_refused(MODEL, &["original LLaMA checkpoint", "convert_llama_weights_to_hf.py"]);
    without(&["consolidated"]);
    client.assert_refused(MODEL, &["Python pickles"]);
    without(&[".bin"]);
    client.assert_refused(MODEL, &["no model.safetensors"]);
    server.set(|s| _ = s.files.insert("model.safetensors".into(), vec![0; 10]));
    without(&["config.json"]);
    client.assert_refused(MODEL, &["no config.json"]);
}

#[test]
fn a_server_that_is_away_busy_or_strange() {
    let server = HubServer::start(repository());
    let mut client = Client::new(&server);
    server.set(|s| s.busy = 2);
    assert!(client.pull("hf:org/tiny:tiny-q8_0.gguf").is_ok(), "a busy moment passes");
    server.set(|s| s.busy = 99);
    client.assert_refused(MODEL, &["answers HTTP 503"]);
    server.set(|s| s.busy = 0);
    // Names that the server gives are not trusted.
    server.set(|s| s.etag = Some("../../../../evil".into()));
    client.assert_refused(MODEL, &["no usable ETag for config.json"]);
    server.set(|s| s.commit = Some("../../evil".into()));
    client.assert_refused(MODEL, &["names \"../../evil\" as the commit"]);
    server.set(|s| (s.commit, s.etag) = (None, None));
    let index = br#"{"weight_map": {"a": "../../evil.safetensors"}}"#;
    server.set(|s| _ = s.files.insert("model.safetensors.index.json".into(), index.to_vec()));
    client.assert_refused(MODEL, &["\"../../evil.safetensors\", which is not a safetensors file beside it"]);

    client.hub.hf.endpoint = "http://127.0.0.1:9".into();
    client.assert_refused("hf:org/away", &["cannot reach http://127.0.0.1:9", "3 attempts", "HF_ENDPOINT"]);
    // What the cache has is used, as far as can be told.
    assert!(client.pull("hf:org/tiny").is_err());
    assert!(client.pull("hf:org/tiny:tiny-q8_0.gguf").is_ok());
    client.hub.hf.endpoint = "ftp://x".into();
    client.assert_refused("hf:org/away", &["HF_ENDPOINT is \"ftp://x\""]);
    client.hub.hf.offline = true;
    client.assert_refused("hf:org/away", &["not in the cache", "HF_HUB_OFFLINE"]);
}

#[test]
fn two_at_once_download_once() {
    let server = HubServer::start(repository());
    let client = Client::new(&server);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| client.pull(MODEL).unwrap())).collect();
        pulls.into_iter().map(|p| p.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|p| *p == paths[0]));
    assert_eq!(server.requests().iter().filter(|r| r.contains("/api/")).count(), 1);
}
