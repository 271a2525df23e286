//! The official clients, frameworks that applications use, and OpenAI's own schemas, against the real server.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::support::server::Server;

/// The variable's value. Without it there is nothing to run, which is an error where `CI` is set.
fn setting(name: &str, what: &str) -> Option<OsString> {
    let value = std::env::var_os(name);
    if value.is_none() {
        println!("skipped: {name} does not name {what}");
    }
    value
}

/// Runs `program scripts/{script}` with the arguments made from the API's address, and returns what it printed.
async fn run(program: OsString, script: &str, arguments: impl FnOnce(String) -> Vec<OsString>) -> String {
    let server = Server::start(&["--kv-cache-memory", "64MiB", "--max-model-len", "1024"]).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let arguments = arguments(format!("{}/v1", server.base));
    let run = move || {
        let names = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
        let mut command = Command::new(program);
        names.iter().for_each(|name| _ = command.env_remove(name));
        command.arg(script).args(arguments).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{printed}");
    assert!(output.status.success(), "{printed}\n{errors}");
    printed.into_owned()
}

/// `LIMA_TEST_PYTHON` can import `openai` and `jsonschema`.
fn python() -> Option<OsString> {
    let python = setting("LIMA_TEST_PYTHON", "a Python with the openai and jsonschema packages");
    assert!(python.is_some() || std::env::var_os("CI").is_none(), "LIMA_TEST_PYTHON must be set in CI");
    python
}

#[tokio::test]
async fn the_openai_client_is_served() {
    let Some(python) = python() else { return };
    let transcript = run(python, "openai_client.py", |base| vec![base.into()]).await;
    for part in [
        "streaming",
        "async",
        "cached",
        "n=2",
        "log-probabilities",
        "best of four",
        "dimensions",
        "responses",
        ".parse()",
        "get_weather(",
        "BadRequestError",
        "NotFoundError",
    ] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}

/// Whether the package is there; CI insists on it.
fn has(python: &OsString, package: &str) -> bool {
    let import = format!("import {package}");
    let known = Command::new(python).args(["-c", &import]).output().unwrap().status.success();
    if !known && std::env::var_os("CI").is_none() {
        println!("skipped: LIMA_TEST_PYTHON has no package {package}");
        return false;
    }
    true
}

#[tokio::test]
async fn the_anthropic_client_is_served() {
    let Some(python) = python().filter(|python| has(python, "anthropic")) else { return };
    let transcript = run(python, "anthropic_client.py", |base| vec![base.into()]).await;
    for part in ["streaming", "stop sequences", "a tool is called", "async", "BadRequestError", "NotFoundError"] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}

#[tokio::test]
async fn langchain_is_served() {
    let Some(python) = python().filter(|python| has(python, "langchain_openai")) else { return };
    let transcript = run(python, "langchain_client.py", |base| vec![base.into()]).await;
    for part in ["streaming", "structured output", "a tool is called", "all as expected"] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}

/// `LIMA_TEST_LITELLM` is a Python of its own: the framework keeps to an older major version of the official client.
#[tokio::test]
async fn litellm_is_served() {
    let Some(python) = setting("LIMA_TEST_LITELLM", "a Python with the package litellm") else { return };
    let transcript = run(python, "litellm_client.py", |base| vec![base.into()]).await;
    for part in ["streaming", "async", "BadRequestError", "all as expected"] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}

/// `LIMA_TEST_NODE` names a folder into which npm installed `openai`.
#[tokio::test]
async fn the_openai_client_for_node_is_served() {
    if setting("LIMA_TEST_NODE", "a folder with the npm package openai").is_none() {
        return;
    }
    let transcript = run("node".into(), "node_client.mjs", |base| vec![base.into()]).await;
    for part in ["streaming", "a tool is called", "responses", "BadRequestError, NotFoundError"] {
        assert!(transcript.contains(part), "no {part:?} in\n{transcript}");
    }
}

/// The description is not part of this repository.
#[tokio::test]
async fn answers_are_as_openai_describes_them() {
    let Some(spec) = setting("LIMA_OPENAI_SPEC", "OpenAI's API description") else { return };
    let Some(python) = python() else { return };
    let printed = run(python, "openai_schema.py", |base| vec![spec, base.into()]).await;
    assert!(printed.contains("answers and chunks are as the description says"), "{printed}");
}
