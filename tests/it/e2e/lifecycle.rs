//! The way out.

use serde_json::json;

use crate::support::server::{Server, ask, spelled};

#[tokio::test]
async fn a_signal_drains() {
    let server = Server::start(&["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]).await;
    let mut body = ask("Write a long story about a lighthouse.", 150, 1);
    body["ignore_eos"] = json!(true);
    let mut running = server.stream(&body).await;
    let mut chunks = vec![running.next().await.unwrap()];
    server.terminate();
    while server.status("/readyz").await != Some(503) {
        chunks.push(running.next().await.expect("the stream outlives its beginning"));
    }
    assert_eq!(server.status("/livez").await, Some(200));
    assert_eq!(server.post(&ask("Too late?", 4, 2)).await.status(), 503);
    chunks.extend(running.rest().await);
    assert_eq!(spelled(&chunks, 0).1.as_deref(), Some("length"));
    let (code, log) = server.wait().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    let server = Server::start(&["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]).await;
    server.terminate();
    let (code, log) = server.wait().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("ready after") && log.contains("max-num-batched-tokens"), "{log}");
}

#[tokio::test]
async fn keys_are_read_again_at_sighup_and_never_logged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "first-secret\n").unwrap();
    let arguments = ["--api-key", "given-secret", "--api-key-file", file.to_str().unwrap()];
    let server =
        Server::start(&[&arguments[..], &["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]].concat()).await;
    let status = async |key: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("{}/v1/models", server.base)).bearer_auth(key);
        request.send().await.unwrap().status().as_u16()
    };
    let logged = async |text: &str| {
        while !server.stderr().contains(text) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(server.status("/v1/models").await, Some(401));
    assert_eq!(
        [status("first-secret").await, status("given-secret").await, status("second-secret").await],
        [200, 200, 401]
    );

    std::fs::write(&file, "second-secret\n").unwrap();
    server.signal("HUP");
    logged("API keys were read again: 2").await;
    assert_eq!(
        [status("first-secret").await, status("given-secret").await, status("second-secret").await],
        [401, 200, 200]
    );

    std::fs::write(&file, "a broken-secret\n").unwrap();
    server.signal("HUP");
    logged("API keys stay as they were").await;
    assert_eq!(status("second-secret").await, 200);
    server.terminate();
    let (code, log) = server.wait().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn logs_are_json_if_that_is_wanted() {
    let arguments = ["--kv-cache-memory", "64MiB", "--max-model-len", "1024", "--log-format", "json"];
    let server = Server::start(&arguments).await;
    server.chat(&ask("A prompt that nobody shall log.", 4, 1)).await;
    server.terminate();
    let (code, log) = server.wait().await;
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{line}");
    }
    assert!(log.contains("ready after") && !log.contains("nobody shall log"));
}
