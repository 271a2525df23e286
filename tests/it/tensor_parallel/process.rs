//! The binary over ranks: it answers as with one, and ends when one of its ranks' threads no longer runs.

use std::fs;
use std::sync::mpsc::channel;
use std::thread;

use lima::ops::quant::DType;
use serde_json::Value;

use crate::support::server::{Server, ask};
use crate::train::tiny::base_of;

fn message(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_answers_over_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let base = base_of(&dir.path().join("base"), DType::F32, 2);
    let one = Server::of(&base, &[]).await;
    let several = Server::of(&base, &["-tp", "3"]).await;
    let mut request = ask("say red", 24, 7);
    request["temperature"] = 0.into();
    assert_eq!(message(&one.chat(&request).await), message(&several.chat(&request).await));
    for server in [one, several] {
        server.terminate();
        assert_eq!(server.wait().await.0, Some(0));
    }
}

/// Stops one thread of a process, as a debugger does, until the process ends. False where the system forbids it.
fn stop_thread(thread: i32) -> bool {
    let (stopped, answer) = channel();
    thread::spawn(move || {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: no memory is handed over but the status, which outlives the calls.
        unsafe {
            let mut status = 0;
            let attached = libc::ptrace(libc::PTRACE_ATTACH, thread, nothing, nothing) == 0
                && libc::waitpid(thread, &mut status, libc::__WALL) == thread;
            let _ = stopped.send(attached);
            // Its end is to be seen by whoever traces it.
            while attached && libc::waitpid(thread, &mut status, libc::__WALL) == thread && !libc::WIFEXITED(status) {
                if libc::WIFSIGNALED(status) {
                    break;
                }
            }
        }
    });
    answer.recv().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_rank_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let base = base_of(&dir.path().join("base"), DType::F32, 2);
    let server = Server::of(&base, &["--tensor-parallel-size", "2", "--watchdog-timeout", "1"]).await;
    let thread = fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().find_map(|task| {
        let task = task.unwrap();
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        (name.trim() == "rank-1").then(|| task.file_name().to_str().unwrap().parse().unwrap())
    });
    if !stop_thread(thread.expect("the thread of the second rank")) {
        println!("skipped: threads cannot be stopped here");
        return;
    }
    let response = server.post(&ask("say red", 24, 7)).await;
    assert!(response.status().is_server_error(), "{response:?}");
    let body = response.text().await.unwrap();
    assert!(body.contains("engine_error"), "{body}");
    let (code, log) = server.wait().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("lima: the ranks of the model can compute no more: rank 1 has not answered within"), "{log}");
}
