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
