//! `lima eval`: the binary against scripted servers.

mod goldens;
mod judge;
mod page;
mod resume;
mod verdicts;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// The binary, knowing nothing of this process's own settings.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lima"));
    command.arg("eval").env_remove("LIMA_URL").env_remove("LIMA_API_KEY");
    command
}

/// Runs `lima eval` to its end.
async fn eval(arguments: &[&str]) -> Output {
    let mut command = command();
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it says, if it succeeds.
async fn said(arguments: &[&str]) -> String {
    let output = eval(arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it complains about.
async fn refused(arguments: &[&str]) -> String {
    let output = eval(arguments).await;
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Answers of a system, `name` in each; to prompts "question 0" and so on.
fn answers(dir: &Path, name: &str, n: usize) -> String {
    let row = |i: usize| {
        let row = json!({"id": i.to_string(), "prompt": format!("question {i}"), "answer": format!("{name} says {i}")});
        row.to_string() + "\n"
    };
    let path = dir.join(format!("{name}.jsonl"));
    std::fs::write(&path, (0..n).map(row).collect::<String>()).unwrap();
    format!("{name}={}", path.display())
}
