//! LoRA adapters by name: loaded, listed, used and unloaded over HTTP.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use lima::engine::AdapterError;
use lima::http::Adapters;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, Setup};

/// A server whose clients may load what is below `root`; an adapter is a folder with `adapter_config.json`.
async fn server(root: Option<&Path>) -> Server {
    let mut server = Server::start(Setup { load: false, answer: "\0", ..Setup::default() }).await;
    let load = |dir: &Path| match dir.join("adapter_config.json").exists() {
        true => Ok(Arc::new(()) as _),
        false => Err("adapter_config.json: No such file or directory (os error 2)".to_owned()),
    };
    let adapters = Adapters::new(Box::new(load), root.map(Path::to_owned));
    server.model = Some(server.model.take().unwrap().with_adapters(adapters));
    server
}

/// A root with the adapters `a`, `b`, `c` and one outside.
fn folders() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["root/a", "root/b", "root/c", "outside"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("adapter_config.json"), "{}").unwrap();
    }
    std::fs::create_dir(dir.path().join("root/empty")).unwrap();
    dir
}

async fn post(server: &Server, path: &str, body: Value) -> (u16, String) {
    let response = server.request(Method::POST, path).json(&body).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn load(server: &Server, name: &str, path: &str) -> (u16, String) {
    post(server, "/v1/load_lora_adapter", json!({"lora_name": name, "lora_path": path})).await
}

async fn unload(server: &Server, name: &str) -> (u16, String) {
    post(server, "/v1/unload_lora_adapter", json!({"lora_name": name})).await
}

fn error((status, body): (u16, String)) -> (u16, String, Value, String) {
    let body: Value = serde_json::from_str(&body).unwrap();
    let error = &body["error"];
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    (status, text("code"), error["param"].clone(), text("message"))
}

async fn text(server: &Server, model: &str) -> String {
    let body = server.chat(json!({"model": model, "temperature": 0, "max_tokens": 12})).await;
    assert_eq!(body["model"], model);
    body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn loaded_listed_used_and_unloaded() {
    let dir = folders();
    let root = dir.path().join("root");
    let mut server = server(Some(&root)).await;
    server.load();
    assert_eq!(
        load(&server, "first", "a").await,
        (200, "Success: LoRA adapter 'first' added successfully.".to_owned())
    );
    // By its whole path, too.
    assert_eq!(load(&server, "org/second", root.join("b").to_str().unwrap()).await.0, 200);

    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let data = list["data"].as_array().unwrap();
    let ids: Vec<_> = data.iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["test/model", "alias", "first", "org/second"]);
    assert_eq!((&data[0]["root"], &data[0]["parent"]), (&json!("somewhere"), &Value::Null));
    assert_eq!((&data[2]["root"], &data[2]["parent"]), (&json!("a"), &json!("test/model")));
    let one: Value = server.get("/v1/models/org/second").await.json().await.unwrap();
    assert_eq!(one, data[3]);

    let (base, first, second) =
        (text(&server, "alias").await, text(&server, "first").await, text(&server, "org/second").await);
    assert!(base != first && first != second && base != second);
    assert_eq!(text(&server, "first").await, first);

    // Both slots are taken.
    let (status, code, param, message) = error(load(&server, "third", "c").await);
    assert_eq!((status, code.as_str(), param), (400, "adapter_limit_reached", json!("lora_name")));
    assert!(message.contains("--max-loras"), "{message}");

    assert_eq!(unload(&server, "first").await, (200, "Success: LoRA adapter 'first' removed successfully.".to_owned()));
    let gone = server.post(json!({"model": "first"})).await;
    assert_eq!(gone.status(), 404);
    assert_eq!(server.get("/v1/models/first").await.status(), 404);
    assert_eq!(error(unload(&server, "first").await).1, "model_not_found");
    server.until("one adapter", |s| s.engine.stats().adapters.load(Relaxed) == 1).await;
    // Again, in the same slot: another generation, another answer of the fake model.
    assert_eq!(load(&server, "first", "a").await.0, 200);
    assert_ne!(text(&server, "first").await, first);
}

/// What has no place is not read, whoever asks at once; and what cannot be read leaves its place free.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_kept_before_weights_are_read() {
    let dir = folders();
    let root = dir.path().join("root");
    let mut server = Server::start(Setup { load: false, ..Setup::default() }).await;
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reads);
    let read = move |dir: &Path| {
        counter.fetch_add(1, Relaxed);
        if dir.ends_with("empty") { Err("nothing is there".to_owned()) } else { Ok(Arc::new(()) as _) }
    };
    let adapters = Adapters::new(Box::new(read), Some(root));
    server.model = Some(server.model.take().unwrap().with_adapters(adapters));
    server.load();
    assert_eq!(load(&server, "a", "a").await.0, 200);
    for _ in 0..3 {
        assert_eq!(error(load(&server, "e", "empty").await).3, "Invalid 'lora_path': nothing is there.");
    }
    assert_eq!(reads.swap(0, Relaxed), 4);
    // One slot is left, for one of eight.
    let all: Vec<_> = (0..8)
        .map(|i| {
            let body = json!({"lora_name": format!("b{i}"), "lora_path": "b"});
            tokio::spawn(server.request(Method::POST, "/v1/load_lora_adapter").json(&body).send())
        })
        .collect();
    let mut loaded = 0;
    for answer in all {
        let answer = answer.await.unwrap().unwrap();
        match answer.status().as_u16() {
            200 => loaded += 1,
            status => {
                let (_, code, ..) = error((status, answer.text().await.unwrap()));
                assert_eq!(code, "adapter_limit_reached");
            }
        }
    }
    assert_eq!((loaded, reads.load(Relaxed)), (1, 1));

    // Beside each other, on the engine itself: dropping a reservation frees its slot.
    assert_eq!(unload(&server, "a").await.0, 200);
    server.until("one adapter", |s| s.engine.stats().adapters.load(Relaxed) == 1).await;
    let kept = server.engine.reserve_adapter().unwrap();
    assert_eq!(server.engine.reserve_adapter().unwrap_err(), AdapterError::Full(2));
    assert_eq!(server.engine.load_adapter(Arc::new(())).unwrap_err(), AdapterError::Full(2));
    drop(kept);
    let kept = server.engine.reserve_adapter().unwrap();
    kept.load(Arc::new(())).unwrap();
}

#[tokio::test]
async fn a_running_request_keeps_its_adapter() {
    let dir = folders();
    let mut server = server(Some(&dir.path().join("root"))).await;
    server.load();
    assert_eq!(load(&server, "a", "a").await.0, 200);
    let expected = text(&server, "a").await;
    server.control.hold();
    let body = super::body(json!({"model": "a", "temperature": 0, "max_tokens": 12}));
    let running = tokio::spawn(server.request(Method::POST, "/v1/chat/completions").json(&body).send());
    server.until("a running request", |s| s.engine.stats().accepted.load(Relaxed) == 2).await;
    server.control.permit(2);
    assert_eq!(unload(&server, "a").await.0, 200);
    assert_eq!(server.post(json!({"model": "a"})).await.status(), 404);
    assert_eq!(server.engine.stats().adapters.load(Relaxed), 1);
    server.control.open();
    let body: Value = running.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], expected);
    server.until("no adapter", |s| s.engine.stats().adapters.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn refusals_name_the_field() {
    let dir = folders();
    let root = dir.path().join("root");
    std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
    std::fs::create_dir(root.join("linked-file")).unwrap();
    let outside = dir.path().join("outside/adapter_config.json");
    std::os::unix::fs::symlink(&outside, root.join("linked-file/adapter_config.json")).unwrap();
    let mut server = server(Some(&root)).await;
    assert_eq!(load(&server, "a", "a").await.0, 503);
    server.load();
    assert_eq!(load(&server, "a", "a").await.0, 200);
    for name in ["a", "test/model", "alias"] {
        let (status, code, param, message) = error(load(&server, name, "b").await);
        assert_eq!((status, code.as_str(), param), (400, "invalid_value", json!("lora_name")));
        assert!(message.contains("already loaded"), "{message}");
    }
    let outside = dir.path().join("outside");
    let whole = outside.to_str().unwrap();
    let mut told = Vec::new();
    for path in ["../outside", "a/../../outside", whole, "link", "linked-file", "/etc", "none", "a\u{0}b", ".."] {
        let (status, code, param, message) = error(load(&server, "x", path).await);
        assert_eq!((status, code.as_str(), param), (400, "invalid_value", json!("lora_path")), "{path}");
        told.push(message);
    }
    // What is outside is not told apart from what is not there.
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    let empty = error(load(&server, "x", "empty").await);
    assert!(empty.0 == 400 && empty.3.contains("adapter_config.json"), "{empty:?}");

    for (body, code, param) in [
        (json!({"lora_path": "a"}), "missing_required_parameter", "lora_name"),
        (json!({"lora_name": "x"}), "missing_required_parameter", "lora_path"),
        (json!({"lora_name": 1, "lora_path": "a"}), "invalid_type", "lora_name"),
        (json!({"lora_name": "x", "lora_path": null}), "invalid_type", "lora_path"),
        (json!({"lora_name": "", "lora_path": "a"}), "invalid_value", "lora_name"),
        (json!({"lora_name": "a b", "lora_path": "a"}), "invalid_value", "lora_name"),
        (json!({"lora_name": "x".repeat(257), "lora_path": "a"}), "string_above_max_length", "lora_name"),
        (json!({"lora_name": "x", "lora_path": "a", "more": 1}), "unknown_parameter", "more"),
    ] {
        let (status, got, at, _) = error(post(&server, "/v1/load_lora_adapter", body.clone()).await);
        assert_eq!((status, got.as_str(), at), (400, code, json!(param)), "{body}");
    }
    let (status, code, ..) = error(unload(&server, "alias").await);
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    assert_eq!(error(post(&server, "/v1/load_lora_adapter", json!([])).await).1, "invalid_json");
}

#[tokio::test]
async fn off_unless_there_is_a_root() {
    let dir = folders();
    let path = dir.path().join("root/a");
    let mut server = server(None).await;
    server.load();
    for answer in [load(&server, "a", path.to_str().unwrap()).await, unload(&server, "a").await] {
        let (status, code, param, _) = error(answer);
        assert_eq!((status, code.as_str(), param), (403, "adapter_updates_disabled", Value::Null));
    }
    // At the start, a path may be anywhere.
    let model = Arc::clone(server.app.model().unwrap());
    let add = |name: &'static str, parent: Option<&'static str>| {
        let (model, path) = (Arc::clone(&model), path.clone());
        tokio::task::spawn_blocking(move || model.load_adapter(name, &path, parent))
    };
    add("a", Some("alias")).await.unwrap().unwrap();
    let one: Value = server.get("/v1/models/a").await.json().await.unwrap();
    assert_eq!((&one["parent"], &one["root"]), (&json!("alias"), &json!(path)));
    assert!(add("a", None).await.unwrap().unwrap_err().contains("already loaded"));
    assert!(add("b", Some("other")).await.unwrap().unwrap_err().contains("base_model_name 'other'"));
    text(&server, "a").await;
}
