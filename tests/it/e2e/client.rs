//! The official Python client against the real server.

use std::path::Path;
use std::process::Command;

use crate::support::server::Server;

/// Runs scripts/openai_client.py with the interpreter that `LIMA_TEST_PYTHON` names: one that can import
/// `openai`. Without it there is nothing to run, which is an error where `CI` is set.
#[tokio::test]
async fn the_openai_client_is_served() {
    let Some(python) = std::env::var_os("LIMA_TEST_PYTHON") else {
        assert!(std::env::var_os("CI").is_none(), "LIMA_TEST_PYTHON must name a Python with the openai package");
        println!("skipped: LIMA_TEST_PYTHON names no Python with the openai package");
        return;
    };
    let server = Server::start(&["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/openai_client.py");
    let base = format!("{}/v1", server.base);
    let run = move || {
        let names = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
        let mut command = Command::new(python);
        names.iter().for_each(|name| _ = command.env_remove(name));
        command.arg(script).arg(base).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let (transcript, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{transcript}");
    assert!(output.status.success(), "{transcript}\n{errors}");
    for part in ["streaming", "async", "cached", "n=2", "log-probabilities", "BadRequestError", "NotFoundError"] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}
